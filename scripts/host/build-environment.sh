# shellcheck shell=sh
# build_environment: a build trusts what the host trusts and fetches where the host fetches.
# What is set already, in the environment or in .env, stays.

build_environment() {
    for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
        [ ! -r "$bundle" ] || take_from BUILD_CA_FILE echo "$bundle"
    done
    # A mirror of one's own; not the address that images have anyway.
    mirror=$(debian_mirror)
    [ "$mirror" = "$TRIXIE_MIRROR_DEFAULT" ] || take_from APT_MIRROR echo "$mirror"
    take_from PIP_INDEX_URL pip_setting index-url
    take_from PIP_EXTRA_INDEX_URL pip_setting extra-index-url
    take_from PIP_TRUSTED_HOST pip_setting trusted-host
    for name in GOPROXY GOSUMDB GONOSUMDB; do
        take_from "$name" go_setting "$name"
    done
    take_from BUILD_HTTP_PROXY echo "${HTTP_PROXY:-${http_proxy:-}}"
    take_from BUILD_HTTPS_PROXY echo "${HTTPS_PROXY:-${https_proxy:-}}"
    take_from BUILD_NO_PROXY echo "${NO_PROXY:-${no_proxy:-}}"
}

# take_from NAME COMMAND…: export NAME from what COMMAND prints, unless it is set.
take_from() {
    target=$1
    shift
    [ -z "$(setting "$target" '')" ] || return 0
    found=$("$@") || return 0
    [ -z "$found" ] || export "$target=$found"
}

pip_setting() { command -v pip3 >/dev/null && pip3 config get "global.$1" 2>/dev/null; }

go_setting() { command -v go >/dev/null && go env "$1" 2>/dev/null; }
