# shellcheck shell=sh
# check_settings: every line of the settings files and every value of this shell's environment,
# against .env.example, which names each variable and, in brackets above it, its type.

# type_of NAME: what .env.example says of a variable; empty if it does not know it.
type_of() {
    awk -v name="$1" '
        /^# \[[a-z]*\]$/ { type = substr($2, 2, length($2) - 2) }
        index($0, "#" name "=") == 1 { print type; exit }
    ' .env.example
}

# value_fits TYPE VALUE
value_fits() {
    case $2 in \"* | \'*) return 1 ;; esac  # a quote that nothing closes
    case $1 in
        port) matches "$2" '[1-9][0-9]{0,4}' && [ "$2" -le 65535 ] ;;
        number) matches "$2" '[1-9][0-9]{0,8}' ;;
        size) matches "$2" '[1-9][0-9]*[kmgtKMGT]?[bB]?' ;;
        schedule) matches "$2" 'off|[0-9*/,-]+( [0-9A-Za-z*/,#L-]+){4}' ;;
        switch) matches "$2" 'on|off' ;;
        answer) matches "$2" 'yes|no' ;;
        address) matches "$2" '(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]' ;;
        name) matches "$2" '[a-z0-9][a-z0-9_-]*' ;;
        tag) matches "$2" '[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}' ;;
        url) matches "$2" 'https?://[A-Za-z0-9._~:-]+/?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]+)?/?' ;;
        database) matches "$2" 'postgres(ql)?(\+psycopg2)?://[^:@/]+@[^/?]+/[^/?]+(\?.*)?' ;;
        file) [ -r "$2" ] ;;
        files) printf '%s\n' "$2" | tr ':' '\n' | while IFS= read -r part; do [ -r "$part" ] || exit 1; done ;;
        text) : ;;
        *) return 1 ;;
    esac
}

# matches VALUE PATTERN: all of VALUE is one line that PATTERN describes.
matches() { printf '%s\n' "$1" | grep -Exq -- "$2"; }

meaning_of() {
    case $1 in
        port) echo 'a port is a number from 1 to 65535' ;;
        number) echo 'it takes a whole number from 1' ;;
        size) echo 'it takes a size such as 512m or 2g' ;;
        schedule) echo 'it takes minute hour day month weekday, such as 0 1 * * *, or off' ;;
        switch) echo 'it takes on or off' ;;
        answer) echo 'it takes yes or no' ;;
        address) echo 'it takes an address of this machine: 127.0.0.1, 0.0.0.0 or, in brackets, [::1]' ;;
        name) echo 'it takes small letters, digits, - and _' ;;
        tag) echo 'it takes letters, digits, ., - and _' ;;
        url) echo 'it takes scheme, host and, if any, port: https://mlflow.example.com' ;;
        database) echo 'it takes postgresql+psycopg2://USER@HOST/DATABASE, the password in config/secrets/database_password' ;;
        file) echo 'that is no file that can be read' ;;
        files) echo 'it takes files that are there, with colons between them' ;;
        text) echo 'its quotes do not match' ;;
    esac
}

check_value() {  # NAME VALUE WHERE FIX
    type=$(type_of "$1")
    [ -n "$type" ] || die "$3: there is no setting $1" 'nothing was changed' \
        'take the line out, or correct the name (.env.example has them all)' "$STATUS_REFUSED"
    if [ -z "$2" ] || value_fits "$type" "$2"; then return 0; fi
    if [ "$type" = database ] && matches "$2" '[^:]*://[^@]*:[^@]*@.*'; then  # not printed: it is secret
        die "$3: $1 holds a password" 'it would stand in docker inspect and in error messages; nothing was changed' \
            'write the password into config/secrets/database_password, and USER@HOST without it here' "$STATUS_REFUSED"
    fi
    die "$3: $1 is '$2'" "$(meaning_of "$type"); nothing was changed" "$4" "$STATUS_REFUSED"
}

check_settings_file() {
    number=0
    while IFS= read -r line || [ -n "$line" ]; do
        number=$((number + 1))
        line=$(printf '%s' "$line" | sed 's/^[[:space:]]*//; s/[[:space:]]*$//')
        case $line in '' | \#*) continue ;; esac
        matches "$line" '[A-Za-z_][A-Za-z0-9_]*=.*' ||
            die "$1, line $number: '$line' is not NAME=value" 'nothing was changed' \
                'correct the line, or start it with # to switch it off' "$STATUS_REFUSED"
        check_value "${line%%=*}" "$(file_setting "${line%%=*}")" "$1, line $number" \
            'correct the line (.env.example explains it)'
    done <"$1"
}

check_settings() {
    env_files | while IFS= read -r settings_file; do
        if [ -r "$settings_file" ]; then
            check_settings_file "$settings_file"
        elif [ -e "$settings_file" ]; then
            die "you ($(id -un)) may not read $settings_file" 'nothing was changed' \
                "sudo chown $(id -un) $settings_file" "$STATUS_NOT_ALLOWED"
        elif [ -n "${COMPOSE_ENV_FILES:-}" ]; then
            die "COMPOSE_ENV_FILES names $settings_file, which is not there" 'nothing was changed' \
                'correct it, or: unset COMPOSE_ENV_FILES' "$STATUS_REFUSED"
        fi
    done || exit  # die leaves only the pipe
    # shellcheck disable=SC2013  # names: words without blanks
    for name in $(sed -n 's/^#\([A-Z][A-Z0-9_]*\)=.*/\1/p' .env.example); do
        eval "value=\${$name:-}"
        [ -z "$value" ] || check_value "$name" "$value" 'the environment' "export another value, or: unset $name"
    done
    case $(setting OFFSITE_REPOSITORY ''):$(setting COMPOSE_FILE '') in
        :* | *compose/offsite.yml*) ;;
        *) die 'OFFSITE_REPOSITORY is set, but the jobs have no way out of the internal network' 'nothing was changed' \
            'COMPOSE_FILE=docker-compose.yml:compose/offsite.yml in .env' "$STATUS_REFUSED" ;;
    esac
}
