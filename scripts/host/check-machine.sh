# shellcheck shell=sh
# Checks that change nothing: engine, disk, memory, port.
. scripts/host/install-docker.sh

DISK_NEEDED_MB=8000      # images 2 GB, their build 4 GB, room to start
DISK_NEEDED_BUILT_MB=1000
MEMORY_NEEDED_MB=3500

# Docker answers, with a Compose and a Buildx that are new enough; else installs or refuses.
check_engine() {
    if ! command -v docker >/dev/null || ! compose_is_new_enough || ! buildx_works; then
        if command -v docker >/dev/null && docker info >/dev/null 2>&1 && ! is_root; then
            die "Docker Compose 2.24 or newer and Buildx are needed; here: Compose ${compose_version:-none}" \
                'nothing was changed' 'sudo ./stack install-docker' "$STATUS_NOT_ALLOWED"
        fi
        install_docker
    fi
    if ! docker info >/dev/null 2>&1; then
        if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
            die "you ($(id -un)) may not use Docker's socket" 'nothing was changed' \
                "sudo usermod --append --groups docker $(id -un), log in again; or: sudo ./stack $verb" "$STATUS_NOT_ALLOWED"
        fi
        if is_root; then
            docker_daemon_there || install_docker
            start_docker || die 'the Docker daemon does not answer, and there is no dockerd here to start' \
                'nothing was changed' 'start Docker (Desktop), then run ./stack up' "$STATUS_REFUSED"
        else
            die 'the Docker daemon does not answer' 'nothing was changed' \
                'sudo systemctl start docker (or start Docker Desktop), then run ./stack up' "$STATUS_NOT_ALLOWED"
        fi
    fi
    engine_version=$(docker version --format '{{.Server.Version}}')
    [ "${engine_version%%.*}" -ge 20 ] || die "Docker Engine $engine_version is too old; 20.10 or newer is needed" \
        'nothing was changed' 'upgrade Docker Engine, then run ./stack up' "$STATUS_REFUSED"
}

# check_disk MEGABYTES: free space where Docker keeps images and volumes.
check_disk() {
    docker_folder=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null)
    [ -d "$docker_folder" ] || return 0  # a remote engine, or Docker Desktop's own machine
    free_mb=$(df -Pm "$docker_folder" | awk 'NR == 2 { print $4 }')
    [ "$free_mb" -ge "$1" ] || die "the disk has $free_mb MB free where Docker keeps its data; $1 MB are needed" \
        'nothing was changed' 'free some space (docker system df; docker builder prune), then run ./stack up' "$STATUS_REFUSED"
}

check_memory() {
    memory_mb=$(($(docker info --format '{{.MemTotal}}') / 1048576))
    [ "$memory_mb" -ge "$MEMORY_NEEDED_MB" ] ||
        warn "Docker has $memory_mb MB of memory; below $MEMORY_NEEDED_MB MB the stack may be killed under load"
}

# The port is free, or it is this project's own nginx that holds it.
check_port() {
    port=$(setting HTTP_PORT 8080)
    address=$(setting BIND_ADDRESS 127.0.0.1)
    holder=$(docker ps --filter "publish=$port" --format '{{.Label "com.docker.compose.project"}}/{{.Names}}' | head -n 1)
    case $holder in "$(project_name)"/*) return 0 ;; esac
    if [ -n "$holder" ] || port_is_taken "$port"; then
        die "port $port on $address is taken${holder:+ by the container ${holder#*/}}" \
            'nothing was changed' "choose another: HTTP_PORT=$((port + 1)) ./stack up, or write HTTP_PORT into .env" "$STATUS_REFUSED"
    fi
}

# Someone listens on PORT of this machine (Linux says so in /proc; elsewhere lsof).
port_is_taken() {
    if [ -r /proc/net/tcp ]; then
        hex=$(printf '%04X' "$1")
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v port="$hex" \
            '$4 == "0A" { split($2, a, ":"); if (a[2] == port) found = 1 } END { exit !found }'
    else
        lsof -nP -iTCP:"$1" -sTCP:LISTEN >/dev/null 2>&1
    fi
}

# Opening the door to a network is a stated choice.
warn_if_open() {
    case $(setting BIND_ADDRESS 127.0.0.1) in
        127.* | '[::1]') ;;
        *) case $(setting PUBLIC_URL '') in
            https://*) ;;
            *) warn 'BIND_ADDRESS opens the stack to a network over plain HTTP: passwords can be read on the way. Put a proxy that ends TLS before it, and set PUBLIC_URL and TRUSTED_PROXIES' ;;
        esac ;;
    esac
}
