# shellcheck shell=sh
# Building, and what to say when building or starting went wrong.

# Build with a line per step on a terminal, quietly into a file elsewhere.
build_images() {
    build_log=$(mktemp)
    if [ -t 2 ]; then
        docker compose build || build_failed=$?
    else
        docker compose --progress=plain build >"$build_log" 2>&1 || build_failed=$?
    fi
    if [ "${build_failed:-0}" -ne 0 ]; then
        tail -n 20 "$build_log" >&2
        rm -f "$build_log"
        die 'an image could not be built' 'nothing that runs was touched' \
            'mend what the last lines say (mostly: network, disk, proxy or CA; see docs/install.md), then run ./stack up'
    fi
    rm -f "$build_log"
}

# Name each service that is not well, with the end of its log.
report_failure() {
    for container in $(docker compose ps --all --quiet); do
        state=$(docker inspect --format \
            '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{.State.ExitCode}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}}' \
            "$container")
        # shellcheck disable=SC2086  # four words
        set -- $state
        case "$2 $3 $4" in
            'running '*' healthy' | 'running '*' -' | 'exited 0 '* | 'created '*) continue ;;
        esac
        printf '\n' >&2
        reason=$(docker logs --tail 200 "$container" 2>&1 | grep '^REFUSED: ' | tail -n 1)
        if [ -n "$reason" ]; then
            printf 'error: %s refused to start: %s\n' "$1" "${reason#REFUSED: }" >&2
            docker logs --tail 200 "$container" 2>&1 | grep '^fix: ' | tail -n 1 >&2
            continue
        fi
        printf 'error: service %s is %s (health: %s, exit status %s); its last lines:\n' "$1" "$2" "$4" "$3" >&2
        docker logs --tail 8 "$container" 2>&1 | sed 's/^/       /' >&2
        [ "$4" = - ] || docker inspect --format '{{range .State.Health.Log}}{{.Output}}{{end}}' "$container" | tail -n 2 | sed 's/^/       /' >&2
        printf 'fix:   ./stack logs %s; then run ./stack up again\n' "$1" >&2
    done
}
