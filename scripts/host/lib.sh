# shellcheck shell=sh
# Shared by ./stack and every file in scripts/host/: messages, settings, lock.

STATUS_FAILED=1       # the thing was tried and did not work
STATUS_USAGE=2        # the words of the call are off
STATUS_NOT_ALLOWED=3  # needs root, or the Docker group
STATUS_BUSY=4         # another ./stack works on the same project
STATUS_REFUSED=5      # a check said no; nothing was changed
export STATUS_FAILED STATUS_USAGE STATUS_NOT_ALLOWED STATUS_BUSY STATUS_REFUSED

BASE_IMAGE_DEFAULT=mlflow-stack/base:trixie

say() { printf '%s\n' "$*"; }
step() { printf '==> %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }

# die WHAT MEANING FIX [STATUS]: what is wrong, what it means, the command that mends it.
die() {
    printf 'error: %s\n' "$1" >&2
    [ -z "$2" ] || printf '       %s\n' "$2" >&2
    [ -z "$3" ] || printf 'fix:   %s\n' "$3" >&2
    exit "${4:-$STATUS_FAILED}"
}

# The settings file that Compose reads too (COMPOSE_ENV_FILES is Compose's own name).
env_file() { printf '%s' "${COMPOSE_ENV_FILES:-.env}"; }

# setting NAME DEFAULT: the environment first, then the settings file, then DEFAULT.
# An empty value counts as unset, as ${NAME:-default} does in docker-compose.yml.
setting() {
    eval "setting_value=\${$1:-}"
    if [ -z "$setting_value" ] && [ -f "$(env_file)" ]; then
        setting_value=$(sed -n "s/^[[:space:]]*$1=//p" "$(env_file)" | tail -n 1 |
            sed -e 's/[[:space:]][[:space:]]*#.*$//' -e 's/[[:space:]]*$//' \
                -e 's/^"\(.*\)"$/\1/' -e "s/^'\(.*\)'$/\1/")
    fi
    printf '%s' "${setting_value:-$2}"
}

project_name() { setting COMPOSE_PROJECT_NAME mlflow-stack; }

# The address a person on this machine types, without a trailing slash.
stack_url() {
    public_url=$(setting PUBLIC_URL '')
    if [ -n "$public_url" ]; then
        printf '%s' "${public_url%/}"
    else
        address=$(setting BIND_ADDRESS 127.0.0.1)
        case $address in 0.0.0.0 | '::' | '[::]') address=127.0.0.1 ;; esac
        printf 'http://%s:%s' "$address" "$(setting HTTP_PORT 8080)"
    fi
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# confirm QUESTION: true when the user agrees, --yes was given, or nobody is there to ask.
confirm() {
    if [ "${ASSUME_YES:-no}" = yes ] || [ ! -t 0 ]; then return 0; fi
    printf '%s [y/N] ' "$1" >&2
    read -r confirm_answer
    case $confirm_answer in y | Y | yes) return 0 ;; *) return 1 ;; esac
}

# One ./stack at a time may change a project. A directory is made atomically
# everywhere; a lock whose owner is gone (kill -9, reboot) is taken over.
take_lock() {
    lock_directory=${TMPDIR:-/tmp}/$(project_name).stack-lock
    if ! mkdir "$lock_directory" 2>/dev/null; then
        lock_owner=$(cat "$lock_directory/pid" 2>/dev/null || echo '')
        if [ -z "$lock_owner" ]; then  # between its mkdir and its first line
            sleep 1
            lock_owner=$(cat "$lock_directory/pid" 2>/dev/null || echo '')
        fi
        if [ -n "$lock_owner" ] && kill -0 "$lock_owner" 2>/dev/null; then
            die "another ./stack (process $lock_owner) is working on project $(project_name)" \
                'this one did nothing' 'wait for it, then run the command again' "$STATUS_BUSY"
        fi
        rm -rf "$lock_directory"
        mkdir "$lock_directory" 2>/dev/null ||
            die "another ./stack has just started on project $(project_name)" \
                'this one did nothing' 'wait for it, then run the command again' "$STATUS_BUSY"
    fi
    echo $$ >"$lock_directory/pid"
    trap 'rm -rf "$lock_directory"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}
