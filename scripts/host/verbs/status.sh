# shellcheck shell=sh
#: ./stack status [--json] [--versions] — what runs, and whether it is well (exit 1 if not)
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '--json --versions' '' "$@"
need_docker

# A line per container: service, state, health, exit status, restarts, memory limit, image.
container_lines() {
    for container in $(docker compose ps --all --quiet); do
        docker inspect --format '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}} {{.State.ExitCode}} {{.RestartCount}} {{.Name}}' "$container"
    done | sort
}

# A one-shot that ended well, or a service that runs and is not unhealthy.
is_well() { case "$1 $2 $3" in 'running healthy '* | 'running - '* | 'exited - 0') ;; *) return 1 ;; esac }

lines=$(container_lines)
missing=''
for service in $(docker compose config --services | sort); do
    printf '%s\n' "$lines" | grep -q "^$service " || missing="$missing $service"
done
bad=$(printf '%s\n' "$lines" | while read -r service state health exit_status restarts name; do
    [ -z "$service" ] || is_well "$state" "$health" "$exit_status" || printf ' %s' "$service"
done)

# What the jobs and the continuous backup say (asked inside the service that runs them).
backup_problems=''
backup_status() {
    case "$lines" in *'cron running '*) docker compose exec -T cron stackops backup status "$@" ;; esac
}

# What the service acme says, where it runs.
certificate_problem=''
certificate_status() {
    case "$lines" in *'acme running '*) docker compose exec -T acme stackops acme status "$@" ;; esac
}

# A line per volume of data: service, bytes, free bytes, and "full" where writing may soon fail.
room_lines() {
    for service in postgres minio; do
        case "$lines" in *"$service running "*) ;; *) continue ;; esac
        docker compose exec -T "$service" df --block-size=1 --output=size,avail /data 2>/dev/null |
            awk -v service="$service" 'NR == 2 { print service, $1, $2, ($2 < $1 / 20 && $2 < 2 ^ 31) ? "full" : "room" }'
    done
}
room=$(room_lines)
full=$(printf '%s\n' "$room" | awk '$4 == "full" { printf " %s (%d MB left)", $1, $3 / 2 ^ 20 }')

versions() {
    docker compose run --rm --no-deps --quiet-pull -T mlflow python -c '
import importlib.metadata as m
for name in ("mlflow", "SQLAlchemy", "psycopg2-binary", "boto3", "gunicorn", "minio"):
    print(name, m.version(name))' 2>/dev/null
    docker compose exec -T postgres postgres --version 2>/dev/null | awk '{ print "postgresql", $3 }'
    docker compose exec -T nginx nginx -v 2>&1 | sed 's,.*nginx/\([0-9.]*\).*,nginx \1,'
    docker version --format 'docker {{.Server.Version}}'
    printf 'compose %s\n' "$(docker compose version --short)"
}

if [ "$JSON" = yes ]; then
    jobs=$(backup_status --json) || backup_problems=yes
    certificate=$(certificate_status --json) || certificate_problem=yes
    printf '{"project": "%s", "url": "%s", "ok": %s, "services": [' "$(project_name)" "$(stack_url)" \
        "$([ -z "$bad$missing$full$backup_problems$certificate_problem" ] && echo true || echo false)"
    printf '%s\n' "$lines" | awk 'NF { printf "%s{\"service\": \"%s\", \"state\": \"%s\", \"health\": \"%s\", \"exit_status\": %d, \"restarts\": %d, \"container\": \"%s\"}", separator, $1, $2, ($3 == "-" ? "" : $3), $4, $5, substr($6, 2); separator = ", " }'
    printf '], "room": ['
    printf '%s\n' "$room" | awk 'NF { printf "%s{\"service\": \"%s\", \"bytes\": %s, \"free_bytes\": %s}", separator, $1, $2, $3; separator = ", " }'
    printf ']'
    [ -z "$jobs" ] || printf ', "backup": %s' "$jobs"
    [ -z "$certificate" ] || printf ', "certificate": %s' "$certificate"
    if [ "$VERSIONS" = yes ]; then
        versions | awk 'BEGIN { printf ", \"versions\": {" } { printf "%s\"%s\": \"%s\"", separator, $1, $2; separator = ", " } END { printf "}" }'
    fi
    printf '}\n'
else
    say "project $(project_name) at $(stack_url)"
    printf '%s\n' "$lines" | awk 'NF { state = ($2 == "exited" && $4 == 0) ? "done" : $2; printf "  %-10s %-10s %-10s restarts %s\n", $1, state, ($3 == "-" ? "" : $3), $5 }'
    printf '%s\n' "$room" | awk 'NF { printf "  %-12s %.1f of %.1f GB free\n", "disk of " $1, $3 / 1e9, $2 / 1e9 }'
    backup_status || backup_problems=yes
    certificate=$(certificate_status) || certificate_problem=yes
    [ -z "$certificate" ] || say "  $certificate"
    [ "$VERSIONS" = no ] || versions | awk '{ printf "  %-16s %s\n", $1, $2 }'
fi
if [ -n "$backup_problems" ]; then
    printf 'error: backup: see above\nfix:   ./stack backup status; ./stack logs backup cron\n' >&2
fi
if [ -n "$bad$missing$full$backup_problems$certificate_problem" ]; then
    [ -z "$full" ] || printf 'error: the disk is nearly full:%s\nfix:   make room on the disk of that volume\n' "$full" >&2
    [ -z "$missing" ] || printf 'error: not there:%s\n' "$missing" >&2
    [ -z "$bad" ] || printf 'error: not well:%s\n' "$bad" >&2
    [ -z "$bad$missing" ] || printf 'fix:   ./stack logs SERVICE shows why; ./stack up starts what is missing\n' >&2
    exit "$STATUS_FAILED"
fi
