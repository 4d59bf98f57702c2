#!/bin/sh
# Ask the databases of known weaknesses about all that is pinned: the Python locks (pip-audit: PyPI) and the Go programs
# as they are in the images (govulncheck: vuln.go.dev). What is named in SECURITY.md has been judged and is not
# repeated. Exit 1: something new, or something could not be asked. Not part of ./stack test: it needs both databases
# from outside, and fails on the day that something is found, not on the day that something is changed.
# Needs: images that are built, Python with venv, Go. Other databases: PIP_AUDIT_VULNERABILITY_SERVICE, GOVULNDB.
set -eu
cd "$(dirname "$0")/.."
tag=${IMAGE_TAG:-latest}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

judged() { grep -Eo '(CVE|GHSA|GO|PYSEC)-[0-9A-Za-z-]*[0-9a-z]' SECURITY.md | sort -u; }

# scan_python LOCK: --strict, or what the database does not know would count as good.
scan_python() {
    # shellcheck disable=SC2046  # words
    "$work/venv/bin/pip-audit" --strict --progress-spinner off --disable-pip --require-hashes --requirement "$1" \
        $(judged | sed 's/^/--ignore-vuln /')
}

# scan_go IMAGE PATH: the modules that a program was linked from.
scan_go() {
    container=$(docker create "mlflow-stack/$1:$tag")
    docker cp --quiet "$container:$2" "$work/program" 2>"$work/said" || { cat "$work/said" >&2; docker rm "$container" >/dev/null; return 1; }
    docker rm "$container" >/dev/null
    "$work/bin/govulncheck" -mode binary -format json ${GOVULNDB:+-db "$GOVULNDB"} "$work/program" >"$work/found" || return 1
    sed -n 's/^ *"osv": "\(GO-[0-9-]*\)",*$/\1/p' "$work/found" | sort -u >"$work/known"
    judged >"$work/judged"
    new=$(comm -23 "$work/known" "$work/judged")
    [ -z "$new" ] || printf '%s\n' "$new"
    [ -z "$new" ]
}

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pip-audit==2.10.1
GOBIN=$work/bin go install golang.org/x/vuln/cmd/govulncheck@v1.8.0

for lock in */requirements.txt; do
    printf '== %s\n' "$lock"
    scan_python "$lock" || failed=1
done
for program in minio:/usr/local/bin/minio scripts:/usr/local/bin/supercronic scripts:/opt/operations/bin/rclone; do
    printf '== %s\n' "$program"
    if scan_go "${program%%:*}" "${program#*:}"; then echo 'nothing that was not judged'; else failed=1; fi
done
exit "$failed"
