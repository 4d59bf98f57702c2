# shellcheck shell=sh
# Checks that change nothing: engine, disk, memory, port.
. scripts/host/install-docker.sh

DISK_NEEDED_MB=8000      # images 2 GB, their build 4 GB, room to start
DISK_NEEDED_BUILT_MB=1000
MEMORY_NEEDED_MB=3500

# Docker answers, with a Compose and a Buildx that are new enough; else installs or refuses.
check_engine() {
    ! engine_answers || check_engine_version  # before anything is installed
    [ -z "$(missing_parts)" ] || install_docker
    if ! engine_answers; then
        if ! is_root || user_may_not || [ -n "${DOCKER_HOST:-}" ]; then die_of_silence; fi
        docker_daemon_there || install_docker
        start_docker
    fi
    check_engine_version
}

check_engine_version() {
    engine_version=$(docker version --format '{{.Server.Version}}')
    if [ "${engine_version%%.*}" -ge 20 ] 2>/dev/null; then return 0; fi
    die "Docker Engine $engine_version is too old; 20.10 or newer is needed" \
        'nothing was changed' 'upgrade Docker Engine, then run ./stack up' "$STATUS_REFUSED"
}

# For verbs that work on a stack that is there: Docker answers.
need_docker() {
    command -v docker >/dev/null || die 'Docker is not on this machine' 'so no stack runs here' './stack up' "$STATUS_REFUSED"
    engine_answers || die_of_silence
}

# For verbs that work on secrets: without a first start Compose would build images and make an
# empty volume for them.
need_stack() {
    need_docker
    docker volume inspect "$(project_name)_secrets" >/dev/null 2>&1 ||
        die "no stack of the name $(project_name) was ever started here" 'nothing was changed' './stack up' "$STATUS_REFUSED"
}

user_may_not() { docker info 2>&1 | grep -qi 'permission denied'; }

# Docker's command is there and gets no answer, and ./stack cannot mend it.
die_of_silence() {
    if user_may_not; then
        die "you ($(id -un)) may not use Docker's socket" 'nothing was changed' \
            "sudo usermod --append --groups docker $(id -un), log in again; or: sudo ./stack $verb" "$STATUS_NOT_ALLOWED"
    fi
    [ -z "${DOCKER_HOST:-}" ] || die "no Docker daemon answers at DOCKER_HOST=$DOCKER_HOST" 'nothing was changed' \
        'start that daemon, or: unset DOCKER_HOST' "$STATUS_REFUSED"
    die 'the Docker daemon does not answer' 'nothing was changed' \
        "sudo systemctl start docker (or start Docker Desktop), then run ./stack $verb" "$STATUS_NOT_ALLOWED"
}

# check_disk MEGABYTES: free space where Docker keeps images and volumes.
check_disk() {
    docker_folder=$(docker info --format '{{.DockerRootDir}}')
    [ -d "$docker_folder" ] || return 0  # a remote engine, or Docker Desktop's own machine
    free_mb=$(df -Pm "$docker_folder" | awk 'NR == 2 { print $4 }')
    [ "${free_mb:-0}" -ge "$1" ] || die "the disk has ${free_mb:-?} MB free where Docker keeps its data ($docker_folder); $1 MB are needed" \
        'nothing was changed' 'free some space (docker system df; docker builder prune), then run ./stack up' "$STATUS_REFUSED"
}

check_memory() {
    memory_mb=$(($(docker info --format '{{.MemTotal}}') / 1048576))
    [ "$memory_mb" -ge "$MEMORY_NEEDED_MB" ] ||
        warn "Docker has $memory_mb MB of memory; below $MEMORY_NEEDED_MB MB the stack may be killed under load"
}

check_ports() {
    check_port HTTP_PORT 8080
    [ "$(setting TLS_MODE off)" != acme ] || check_port ACME_HTTP_PORT 80
}

# check_port NAME DEFAULT: the port is free, or it is this project's own nginx that holds it.
check_port() {
    port=$(setting "$1" "$2")
    address=$(setting BIND_ADDRESS 127.0.0.1)
    publishers=$(docker ps --filter "publish=$port" --format '{{.Label "com.docker.compose.project"}}/{{.Names}} {{.Ports}}')
    case $publishers in "$(project_name)"/* | *"
$(project_name)"/*) return 0 ;; esac
    case $address in
        0.0.0.0 | '[::]') overlap=":$port->" ;;
        *) overlap=" $address:$port->
 0.0.0.0:$port->
 [::]:$port->
 :::$port->" ;;
    esac
    holder=$(printf '%s\n' "$publishers" | grep -F -e "$overlap" | head -n 1)
    if [ -z "$holder" ] && ! port_is_taken "$port" "$address"; then return 0; fi
    holder=${holder%% *}
    [ "$port" -lt 65535 ] && other=$((port + 1)) || other=8080
    die "port $port on $address is taken${holder:+ by the container ${holder#*/}}" 'nothing was changed' \
        "write $1=$other (or another that is free) into .env, then run ./stack up" "$STATUS_REFUSED"
}

# port_is_taken PORT ADDRESS: someone listens there, or on PORT of every address of this machine
# (Linux says so in /proc, in hexadecimal, the last octet first; elsewhere lsof).
port_is_taken() {
    if [ ! -r /proc/net/tcp ]; then
        lsof -nP -iTCP:"$1" -sTCP:LISTEN >/dev/null 2>&1
        return
    fi
    hex_address='.*'
    case $2 in
        0.0.0.0 | *:*) ;;
        *)
            IFS=.
            # shellcheck disable=SC2086  # four octets
            set -- "$1" $2
            unset IFS
            hex_address=$(printf '.*%02X%02X%02X%02X' "$5" "$4" "$3" "$2") ;;
    esac
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == "0A" { print $2 }' |
        grep -Exq "(0+|$hex_address):$(printf '%04X' "$1")"
}

# Opening the door to a network is a stated choice.
warn_if_open() {
    case $(setting BIND_ADDRESS 127.0.0.1) in
        127.* | '[::1]')
            [ "$(setting TLS_MODE off)" != acme ] ||
                warn "BIND_ADDRESS is this machine alone: an ACME server outside gets in only if something forwards port 80 of $(stack_url) to port $(setting ACME_HTTP_PORT 80) here" ;;
        *) case $(setting PUBLIC_URL '') in
            https://*) ;;
            *) warn 'BIND_ADDRESS opens the stack to a network over plain HTTP: passwords can be read on the way. Put a proxy that ends TLS before it, and set PUBLIC_URL and TRUSTED_PROXIES' ;;
        esac ;;
    esac
}
