# shellcheck shell=sh
# install_docker: engine, Compose and Buildx on Debian or Ubuntu, from packages of
# the machine's own mirror. The plugins come from the distribution where it has a
# Compose 2.24 or newer; else out of Debian trixie's packages, unpacked (not
# installed: their other dependencies are not needed) into Docker's plugin folder.

PLUGIN_FOLDER=/usr/local/lib/docker/cli-plugins
DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
TRIXIE_MIRROR_DEFAULT=http://deb.debian.org/debian

# The mirror that this machine's own apt sources name for Debian; empty if none. Only one that
# debootstrap and builds can use: cloud images name a mirror+file:/… list.
debian_mirror() {
    mirror=$(setting DEBIAN_MIRROR '')
    if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
        mirror=$(apt-get indextargets --format '$(ORIGIN)|$(SITE)|$(REPO_URI)' 2>/dev/null |
            sed -n 's/^Debian|[^|]*|\(https\{0,1\}:\)/\1/p' | grep -v security | sed 's,/*$,,' | sort -u | head -n 1)
    fi
    printf '%s' "${mirror:-$TRIXIE_MIRROR_DEFAULT}"
}

apt_update() {
    apt-get update --quiet --quiet || die 'apt could not read its package lists' 'nothing was installed' \
        'mend what the lines above say (apt-get update), then run the command again'
}

# apt_install PACKAGE…
apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "$@" >&2 ||
        die "apt could not install: $*" 'what was there before is still there' \
            'mend what the lines above say, then run the command again'
}

# apt_offers PACKAGE VERSION: apt has PACKAGE at VERSION or newer.
apt_offers() {
    candidate=$(LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p')
    case $candidate in '' | '(none)') return 1 ;; esac
    dpkg --compare-versions "$candidate" ge "$2"
}

# Unpack the binaries of Debian trixie's docker-compose and docker-buildx.
plugins_from_trixie() {
    make_work_directory
    apt=$work_directory/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
    [ -f "$DEBIAN_KEYRING" ] || apt_install debian-archive-keyring
    echo "deb [signed-by=$DEBIAN_KEYRING] $(debian_mirror) trixie main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<-CONF
		Dir::Etc::SourceList "$apt/sources.list";
		Dir::Etc::SourceParts "$apt/parts";
		Dir::State::Lists "$apt/lists";
		Dir::Cache "$apt/cache";
		APT::Sandbox::User "root";
	CONF
    if ! (cd "$apt" && export APT_CONFIG="$apt/apt.conf" && apt-get update --quiet --quiet >&2 &&
        apt-get download --quiet docker-compose docker-buildx >&2 &&
        for package in ./*.deb; do dpkg-deb --extract "$package" unpacked || exit; done); then
        die "Debian's docker-compose and docker-buildx could not be had from $(debian_mirror)" 'Docker works, but without them' \
            'set DEBIAN_MIRROR=http://…/debian to a mirror that this machine reaches, then run ./stack install-docker'
    fi
    mkdir -p "$PLUGIN_FOLDER"
    find "$apt/unpacked" -type f -path '*/cli-plugins/*' -exec install -m 0755 -t "$PLUGIN_FOLDER" {} +
    rm -rf "$apt"
}

install_docker() {
    missing=$(missing_parts)
    missing=${missing:-Docker Engine}
    distribution=$(sed -n 's/^ID=//p' /etc/os-release 2>/dev/null | tr -d '"')
    case $distribution in
        debian | ubuntu) ;;
        *) die "missing on this machine: $missing" './stack installs it on Debian and Ubuntu only; nothing was changed' \
            'install Docker Engine 20.10 or newer with the Compose and Buildx plugins (or start Docker Desktop), then run ./stack up' \
            "$STATUS_REFUSED" ;;
    esac
    is_root || die "missing on this machine: $missing" 'only root can install it; nothing was changed' \
        'sudo ./stack install-docker' "$STATUS_NOT_ALLOWED"

    step "missing on this machine: $missing; this installs it with apt and starts the Docker daemon"
    confirm 'Go on?' || die 'Docker was not installed' 'you said no; nothing was changed' './stack install-docker --yes' "$STATUS_REFUSED"

    apt_update
    packages=''
    if ! docker_daemon_there && ! engine_answers; then
        packages='docker.io iptables'
        # From trixie on the command is a package of its own.
        if apt_offers docker-cli 0; then packages="$packages docker-cli"; fi
    fi
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
    [ -z "$packages" ] || apt_install $packages
    [ "$from_trixie" = no ] || plugins_from_trixie
    missing=$(missing_parts)
    [ -z "$missing" ] || die "the packages are installed, and still missing: $missing" \
        "an older plugin hides the new one, or this distribution's C library is older than 2.34" \
        "remove the older one from ~/.docker/cli-plugins, or upgrade the distribution; then run ./stack up"
}

docker_daemon_there() { command -v dockerd >/dev/null; }
engine_answers() { docker info >/dev/null 2>&1; }
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

# What of Docker is not on this machine, for a message; empty when all is there.
missing_parts() {
    if ! command -v docker >/dev/null; then
        printf 'Docker Engine, Docker Compose 2.24 or newer, Buildx'
        return
    fi
    compose_is_new_enough || printf 'Docker Compose 2.24 or newer (here: %s)' "${compose_version:-none}"
    buildx_works || { compose_is_new_enough || printf ', '; printf 'Buildx'; }
}

# start_docker: with systemd as a service, else as a plain process with a log.
start_docker() {
    if [ -d /run/systemd/system ]; then
        step 'starting the Docker daemon'
        daemon_log='journalctl --unit docker --lines 20'
        systemctl enable --quiet --now docker || :
    else
        step 'starting the Docker daemon (log: /var/log/dockerd.log)'
        warn 'this machine has no systemd: the daemon will not come back after a reboot; run ./stack up again then'
        daemon_log='tail -n 20 /var/log/dockerd.log'
        setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
    fi
    tries=0
    until engine_answers; do
        tries=$((tries + 1))
        if [ "$tries" -gt 60 ]; then
            $daemon_log >&2 || :
            die 'the Docker daemon does not answer after 60 s' 'its last lines are above; nothing else was started' \
                "mend what they say ($daemon_log), then run ./stack up"
        fi
        sleep 1
    done
}
