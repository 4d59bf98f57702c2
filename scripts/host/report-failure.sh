# shellcheck shell=sh
# Building, and what to say when building or starting went wrong.

die_of_build() {  # WHAT
    die "$1 could not be built" 'nothing that runs was touched' \
        'mend what the last lines say (mostly: network, disk, proxy or CA; see docs/install.md), then run ./stack up'
}

# Build with a line per step on a terminal, quietly into a file elsewhere.
build_images() {
    if [ -t 2 ]; then
        docker compose build || die_of_build 'an image'
    else
        make_work_directory
        build_log=$work_directory/build.log
        if ! docker compose --progress=plain build >"$build_log" 2>&1; then
            tail -n 20 "$build_log" >&2
            die_of_build 'an image'
        fi
    fi
}

# Name each service that is not well, with the end of its log.
report_failure() {
    named=no
    for container in $(docker compose ps --all --quiet); do
        state=$(docker inspect --format \
            '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{.State.ExitCode}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}}' \
            "$container") || continue
        # shellcheck disable=SC2086  # four words
        set -- $state
        case "$2 $3 $4" in
            'running '*' healthy' | 'running '*' -' | 'exited 0 '* | 'created '*) continue ;;
        esac
        named=yes
        printf '\n' >&2
        # A refusal is the last that a container says; an older one may have been mended.
        last_lines=$(docker logs --tail 20 "$container" 2>&1)
        reason=$(printf '%s\n' "$last_lines" | sed -n 's/^REFUSED: //p' | tail -n 1)
        if [ -n "$reason" ]; then
            printf 'error: %s refused to start: %s\n' "$1" "$reason" >&2
            printf '%s\n' "$last_lines" | grep '^fix: ' | tail -n 1 >&2
            continue
        fi
        printf 'error: service %s is %s (health: %s, exit status %s); its last lines:\n' "$1" "$2" "$4" "$3" >&2
        printf '%s\n' "$last_lines" | tail -n 8 | sed 's/^/       /' >&2
        [ "$4" = - ] || docker inspect --format '{{range .State.Health.Log}}{{.Output}}{{end}}' "$container" | tail -n 2 | sed 's/^/       /' >&2
        printf 'fix:   ./stack logs %s; mend what it says, then run ./stack up again\n' "$1" >&2
    done
    [ "$named" = yes ] || die 'the stack did not start' "Docker's own lines above say why" \
        'mend what they say, then run ./stack up again'
}
