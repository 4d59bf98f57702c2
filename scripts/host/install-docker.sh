# shellcheck shell=sh
# install_docker: engine, Compose and Buildx on Debian or Ubuntu, from packages of
# the machine's own mirror. The plugins come from the distribution where it has a
# Compose 2.24 or newer; else out of Debian trixie's packages, unpacked (not
# installed: their other dependencies are not needed) into Docker's plugin folder.

PLUGIN_FOLDER=/usr/local/lib/docker/cli-plugins
TRIXIE_MIRROR_DEFAULT=http://deb.debian.org/debian

# The mirror that this machine's own apt sources name for Debian; empty if none.
debian_mirror() {
    mirror=$(setting DEBIAN_MIRROR '')
    if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
        mirror=$(apt-get indextargets --format '$(ORIGIN)|$(SITE)|$(REPO_URI)' 2>/dev/null |
            sed -n 's/^Debian|[^|]*|//p' | grep -v security | sed 's,/*$,,' | sort -u | head -n 1)
    fi
    printf '%s' "${mirror:-$TRIXIE_MIRROR_DEFAULT}"
}

# True when apt offers PACKAGE at VERSION or newer.
apt_offers() {
    candidate=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
    case $candidate in '' | '(none)') return 1 ;; esac
    dpkg --compare-versions "$candidate" ge "$2"
}

# Unpack the binaries of Debian trixie's docker-compose and docker-buildx.
plugins_from_trixie() {
    work=$(mktemp -d)
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] || apt-get install --yes --quiet --no-install-recommends debian-archive-keyring
    echo "deb [signed-by=$keyring] $(debian_mirror) trixie main" >"$work/sources.list"
    cat >"$work/apt.conf" <<-CONF
		Dir::Etc::SourceList "$work/sources.list";
		Dir::Etc::SourceParts "$work/parts";
		Dir::State::Lists "$work/lists";
		Dir::Cache "$work/cache";
		APT::Sandbox::User "root";
	CONF
    APT_CONFIG=$work/apt.conf apt-get update --quiet --quiet
    (cd "$work" && APT_CONFIG=$work/apt.conf apt-get download --quiet docker-compose docker-buildx)
    mkdir -p "$PLUGIN_FOLDER"
    for package in "$work"/*.deb; do
        dpkg-deb --extract "$package" "$work/unpacked"
    done
    find "$work/unpacked" -type f -path '*/cli-plugins/*' -exec install -m 0755 -t "$PLUGIN_FOLDER" {} +
    rm -rf "$work"
}

install_docker() {
    distribution=$(sed -n 's/^ID=//p' /etc/os-release 2>/dev/null | tr -d '"')
    case $distribution in
        debian | ubuntu) ;;
        *) die 'Docker with Compose 2.24 and Buildx is not on this machine' \
            './stack installs them on Debian and Ubuntu only' \
            'install Docker Engine with the Compose and Buildx plugins, then run ./stack up' "$STATUS_REFUSED" ;;
    esac
    is_root || die 'Docker is not on this machine, and only root can install it' 'nothing was changed' \
        'sudo ./stack install-docker' "$STATUS_NOT_ALLOWED"

    step 'Docker is missing; this installs, with apt: docker.io, Compose and Buildx, and starts the daemon'
    confirm 'Go on?' || die 'Docker was not installed' 'you said no' './stack install-docker --yes' "$STATUS_REFUSED"

    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet --quiet
    packages=''
    docker_daemon_there || packages='docker.io iptables'
    from_trixie=no
    if ! compose_is_new_enough || ! buildx_works; then
        if apt_offers docker-compose-v2 2.24 && apt_offers docker-buildx 0; then
            packages="$packages docker-compose-v2 docker-buildx"
        elif apt_offers docker-compose 2.24 && apt_offers docker-buildx 0; then
            packages="$packages docker-compose docker-buildx"
        else
            from_trixie=yes
        fi
    fi
    # shellcheck disable=SC2086  # a list of package names
    [ -z "$packages" ] || apt-get install --yes --quiet --no-install-recommends $packages
    [ "$from_trixie" = no ] || plugins_from_trixie
}

docker_daemon_there() { command -v dockerd >/dev/null; }
buildx_works() { docker buildx version >/dev/null 2>&1; }

# Compose 2.24 brought COMPOSE_ENV_FILES and `include` without surprises.
compose_is_new_enough() {
    compose_version=$(docker compose version --short 2>/dev/null | sed 's/^v//; s/[^0-9.].*//')
    [ -n "$compose_version" ] || return 1
    major=${compose_version%%.*}
    minor=${compose_version#*.}
    minor=${minor%%.*}
    [ "$major" -gt 2 ] || { [ "$major" -eq 2 ] && [ "$minor" -ge 24 ]; }
}

# start_docker: with systemd as a service, else as a plain process with a log.
start_docker() {
    ! docker info >/dev/null 2>&1 || return 0
    docker_daemon_there || return 1
    if [ -d /run/systemd/system ]; then
        systemctl enable --quiet --now docker
    else
        step 'starting the Docker daemon (log: /var/log/dockerd.log)'
        warn 'this machine has no systemd: the daemon will not come back after a reboot; run ./stack up again then'
        setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
    fi
    tries=0
    until docker info >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 60 ]; then
            tail -n 5 /var/log/dockerd.log >&2 2>/dev/null
            die 'the Docker daemon does not answer after 60 s' 'nothing else was started' \
                'read /var/log/dockerd.log (or: journalctl -u docker), mend it, run ./stack up'
        fi
        sleep 1
    done
}
