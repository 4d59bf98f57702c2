# shellcheck shell=sh
# Shared by ./stack and every file in scripts/host/: messages, settings, lock.

STATUS_FAILED=1       # the thing was tried and did not work
STATUS_USAGE=2        # the words of the call are off
STATUS_NOT_ALLOWED=3  # needs root, or the Docker group
STATUS_BUSY=4         # another ./stack works on the same project
STATUS_REFUSED=5      # a check said no; nothing was changed

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

# The settings files that Compose reads too, one a line (COMPOSE_ENV_FILES is Compose's own
# name, and a list with commas).
env_files() { printf '%s\n' "${COMPOSE_ENV_FILES:-.env}" | tr ',' '\n'; }

# file_setting NAME: its value in the settings files, read as Compose reads them: the last
# line counts; without quotes, and without a comment after a blank.
file_setting() {
    [ -e .env ] || [ -n "${COMPOSE_ENV_FILES:-}" ] || return 0
    IFS=,
    # shellcheck disable=SC2086  # a list of files
    awk -v name="$1" '
        { sub(/^[ \t]+/, ""); sub(/[ \t\r]+$/, "") }
        index($0, name "=") == 1 {
            value = substr($0, length(name) + 2)
            if (match(value, /^("[^"]*"|\047[^\047]*\047)/) && substr(value, RLENGTH + 1) ~ /^[ \t]*(#.*)?$/)
                value = substr(value, 2, RLENGTH - 2)
            else
                sub(/[ \t]+#.*$/, "", value)
        }
        END { printf "%s", value }' ${COMPOSE_ENV_FILES:-.env} 2>/dev/null || :
    unset IFS
}

# setting NAME DEFAULT: the environment, else the settings files; an empty value is DEFAULT.
# As in Compose, a variable that is set but empty hides what the file says.
setting() {
    if eval "[ -n \"\${$1+set}\" ]"; then
        eval "setting_value=\$$1"
    else
        setting_value=$(file_setting "$1")
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
        case $address in 0.0.0.0) address=127.0.0.1 ;; '[::]') address='[::1]' ;; esac
        case $(setting TLS_MODE off) in off) scheme=http ;; *) scheme=https ;; esac
        printf '%s://%s:%s' "$scheme" "$address" "$(setting HTTP_PORT 8080)"
    fi
}

is_root() { [ "$(id -u)" -eq 0 ]; }

# confirm QUESTION: true when the user agrees, --yes was given, or nobody is there to ask.
confirm() {
    if [ "$ASSUME_YES" = yes ] || [ ! -t 0 ]; then return 0; fi
    printf '%s [y/N] ' "$1" >&2
    read -r confirm_answer
    case $confirm_answer in y | Y | yes) return 0 ;; *) return 1 ;; esac
}

# confirm_loss LOSS COMMAND: for what cannot be undone. Where nobody is there to ask, only
# --yes means yes: COMMAND says it.
confirm_loss() {
    if [ "$ASSUME_YES" = no ] && [ ! -t 0 ]; then
        die "$1 would be lost for ever" 'there is no terminal to ask at; nothing was changed' "$2" "$STATUS_REFUSED"
    fi
    confirm "$1 will be lost for ever. Go on?" || die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"
}

# What ./stack made for itself goes when it ends, also by Ctrl-C.
lock_directory=''
work_directory=''
clean_up() {
    [ -z "$lock_directory" ] || rm -rf "$lock_directory"
    [ -z "$work_directory" ] || rm -rf "$work_directory"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

make_work_directory() { [ -n "$work_directory" ] || work_directory=$(mktemp -d); }

# A process of another user counts too, so kill -0 alone would not do.
process_lives() { kill -0 "$1" 2>/dev/null || [ -d "/proc/$1" ] || ps -p "$1" >/dev/null 2>&1; }

# A directory is made atomically everywhere. Other users must be able to read who holds it.
make_lock() { (umask 022 && mkdir "$lock" && echo $$ >"$lock/pid") 2>/dev/null; }

refuse_if_held() {
    lock_owner=$(cat "$lock/pid" 2>/dev/null || :)
    if [ -z "$lock_owner" ] || [ "$lock_owner" = $$ ] || ! process_lives "$lock_owner"; then return 0; fi
    die "another ./stack (process $lock_owner) is working on project $(project_name); this one did nothing" '' \
        "wait for it, then run the command again (if that process is no ./stack: rm -r $lock)" "$STATUS_BUSY"
}

# The owner is gone (kill -9, reboot), or is between its mkdir and its first line.
take_over_lock() {
    refuse_if_held
    sleep 1
    refuse_if_held
    rm -rf "$lock" 2>/dev/null || :
    if ! make_lock; then
        refuse_if_held
        die "the lock $lock cannot be made" 'another user left it behind, or /tmp cannot be written; nothing was changed' \
            "sudo rm -rf $lock; df /tmp" "$STATUS_REFUSED"
    fi
    sleep 1  # two may have found the same dead owner: the later one has the lock
    refuse_if_held
}

# One ./stack at a time may change a project. The lock is in /tmp, not in TMPDIR: two users
# must meet at the same place.
take_lock() {
    lock=/tmp/$(project_name).stack-lock
    make_lock || take_over_lock
    lock_directory=$lock
}
