# shellcheck shell=sh
# What ./stack test needs on a machine where nothing was ever installed.
. scripts/host/check-machine.sh

# need PACKAGE…: Debian packages that the tests use.
need() {
    command -v apt-get >/dev/null || die "the tests need: $*" 'nothing was changed' 'install them, then run ./stack test' "$STATUS_REFUSED"
    is_root || die "the tests need: $*" 'nothing was changed' "sudo apt-get install $*" "$STATUS_NOT_ALLOWED"
    apt_update
    apt_install "$@"
}

# .venv with the locked packages; made anew when the lock changes. Never where it is a link: `venv --clear`
# empties what it points to, which others may be using.
prepare_python() {
    command -v python3 >/dev/null || need python3 python3-venv
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die 'the tests need Python 3.11 or newer' \
        "here: $(python3 --version)" 'install one as python3, then run ./stack test' "$STATUS_REFUSED"
    python3 -c 'import ensurepip, venv' 2>/dev/null || need python3-venv
    lock_sum=$(cksum <tests/requirements.txt)
    if [ "$(cat .venv/lock-sum 2>/dev/null)" != "$lock_sum" ]; then
        [ ! -L .venv ] || die '.venv is a link, and what it points to is not what tests/requirements.txt asks for' \
            'nothing was changed: making it anew would empty that folder' 'rm .venv (only the link), then run it again' "$STATUS_REFUSED"
        step 'installing the test packages into .venv (two minutes the first time)'
        python3 -m venv --clear .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement tests/requirements.txt
        printf '%s' "$lock_sum" >.venv/lock-sum
    fi
}

# Node runs what nginx runs of JavaScript; without it those tests fail, and say so.
prepare_node() {
    if ! command -v node >/dev/null && is_root && command -v apt-get >/dev/null; then
        step 'installing Node'
        need nodejs
    fi
}

prepare_docker() {
    ASSUME_YES=yes
    check_engine
}

prepare_browser() {
    command -v chromium >/dev/null || {
        step 'installing Chromium'
        need chromium
    }
}
