#!/bin/sh
# All linters, from .venv. Every one runs; the exit status says whether any complained.
set -u
cd "$(dirname "$0")/.." || exit 1
PATH=$PWD/.venv/bin:$PATH
failed=0

run() {
    "$@" || { printf 'lint: %s failed\n' "$1" >&2; failed=1; }
}

run ruff check .
run ruff format --check .
# shellcheck disable=SC2046  # paths without blanks; files without #! say their shell in line 1
run shellcheck stack .ci/run base/answers base/healthy base/install-packages base/with-host-trust $(git ls-files --cached --others --exclude-standard '*.sh')
run hadolint --config .hadolint.yaml base/Dockerfile postgres/Dockerfile minio/Dockerfile mlflow/Dockerfile auth/Dockerfile nginx/Dockerfile benchmarks/Dockerfile tests/pebble/Dockerfile
run yamllint --strict .
exit "$failed"
