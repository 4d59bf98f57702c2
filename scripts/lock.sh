#!/bin/sh
# Write every requirements.txt anew from its requirements.in, with hashes, for the
# Python of the images (3.13) and, for the tests, for any Python from 3.11 on.
# The locks name no index, so a site builds from its own (uv.lock would pin the
# addresses of the files). Needs: pip install uv.
set -eu
cd "$(dirname "$0")/.."

lock() {
    uv pip compile --quiet --no-config --generate-hashes --no-annotate --no-header "$@"
}

lock --python-version 3.13 --python-platform linux mlflow/requirements.in --output-file mlflow/requirements.txt
for part in auth fastpath scripts minio; do
    lock --python-version 3.13 --python-platform linux --constraint mlflow/requirements.txt \
        "$part/requirements.in" --output-file "$part/requirements.txt"
done
lock --python-version 3.13 --no-deps nginx/requirements.in --output-file nginx/requirements.txt
lock --python-version 3.13 --no-deps benchmarks/requirements.in --output-file benchmarks/requirements.txt
lock --universal --python-version 3.11 tests/requirements.in --output-file tests/requirements.txt
