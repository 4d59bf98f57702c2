# shellcheck shell=sh
# build_environment: a build trusts what the host trusts and fetches where the host fetches.
# What is set already stays.

build_environment() {
    if [ -z "$(setting BUILD_CA_FILE '')" ]; then
        for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
            if [ -r "$bundle" ]; then
                export BUILD_CA_FILE="$bundle"
                break
            fi
        done
    fi
    # A mirror of one's own; not the address that images have anyway.
    mirror=$(debian_mirror)
    if [ -z "${APT_MIRROR:-}" ] && [ "$mirror" != "$TRIXIE_MIRROR_DEFAULT" ]; then
        export APT_MIRROR="$mirror"
    fi
    take_from PIP_INDEX_URL pip_setting index-url
    take_from PIP_EXTRA_INDEX_URL pip_setting extra-index-url
    take_from PIP_TRUSTED_HOST pip_setting trusted-host
    for name in GOPROXY GOSUMDB GONOSUMDB; do
        take_from "$name" go_setting "$name"
    done
    export BUILD_HTTP_PROXY="${HTTP_PROXY:-${http_proxy:-}}" BUILD_HTTPS_PROXY="${HTTPS_PROXY:-${https_proxy:-}}" \
        BUILD_NO_PROXY="${NO_PROXY:-${no_proxy:-}}"
}

# take_from NAME COMMAND…: export NAME from what COMMAND prints, unless it is set.
take_from() {
    target=$1
    shift
    eval "current=\${$target:-}"
    [ -z "$current" ] || return 0
    found=$("$@")
    [ -z "$found" ] || export "$target=$found"
}

pip_setting() {
    ! command -v pip3 >/dev/null || pip3 config get "global.$1" 2>/dev/null || :
}

go_setting() {
    ! command -v go >/dev/null || go env "$1" 2>/dev/null
}
