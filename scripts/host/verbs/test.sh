# shellcheck shell=sh
#: ./stack test [--long] [NAME…] — lint and test this checkout against a throwaway stack
#:
#: NAME is a folder of tests/ (unit, live, differential, browser, security, faults) or a path below
#: it; without, all of them, after lint. Installs what it needs: Docker, Python's venv, and Chromium on
#: Debian or Ubuntu as root; Python packages by hash into .venv. --long adds what CI has no
#: time for. Leaves no container, volume or network behind.
. scripts/host/options.sh
. scripts/host/prepare-tests.sh
parse_options '--long' NAME "$@"

paths=''
for name in $REST; do
    if [ -d "tests/$name" ]; then paths="$paths tests/$name"; else paths="$paths $name"; fi
done

prepare_python
if [ -z "$paths" ]; then
    step 'lint'
    sh scripts/lint.sh
    paths='tests/unit tests/live tests/differential tests/browser tests/security tests/faults'
fi
case $paths in *live* | *differential* | *browser* | *security* | *faults*) prepare_docker ;; esac
case $paths in *unit*) prepare_node ;; esac
case $paths in *browser*) prepare_browser ;; esac

step 'tests'
export HYPOTHESIS_PROFILE=ci
if [ "$LONG" = yes ]; then
    HYPOTHESIS_PROFILE=long
    paths="--long $paths"
fi
# shellcheck disable=SC2086  # a list of paths
exec .venv/bin/python -m pytest $paths
