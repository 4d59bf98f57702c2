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
        tls) matches "$2" 'off|self-signed|files|acme' ;;
        authorization) matches "$2" 'roles|rbac' ;;
        bytes) matches "$2" 'nginx|mlflow' ;;
        permission) matches "$2" 'READ|USE|EDIT|MANAGE|NO_PERMISSIONS' ;;
        address) matches "$2" '(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\]' ;;
        name) matches "$2" '[a-z0-9][a-z0-9_-]*' ;;
        tag) matches "$2" '[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}' ;;
        directory) matches "$2" 'https://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[^ ?#]*' ;;
        email) matches "$2" '[^ @,]+@[^ @,]+' ;;
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
        tls) echo 'it takes off, self-signed, files or acme' ;;
        authorization) echo 'it takes roles or rbac' ;;
        bytes) echo 'it takes nginx or mlflow' ;;
        permission) echo 'it takes READ, USE, EDIT, MANAGE or NO_PERMISSIONS' ;;
        directory) echo 'it takes the https address of an ACME directory' ;;
        email) echo 'it takes one address: admin@example.com' ;;
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
    check_acme
}

# TLS_MODE=acme, its overlay, and a name that an ACME server can vouch for go together
# (stackops/tls.py looks again, for a start without ./stack).
check_acme() {
    case $(setting TLS_MODE off):$(setting COMPOSE_FILE '') in
        acme:*compose/acme.yml*) ;;
        acme:*) die 'TLS_MODE is acme, and the service that gets certificates is not there' 'nothing was changed' \
            'COMPOSE_FILE=docker-compose.yml:compose/acme.yml in .env' "$STATUS_REFUSED" ;;
        *compose/acme.yml*) die 'compose/acme.yml is among the overlays, and TLS_MODE is not acme' 'nothing was changed' \
            'TLS_MODE=acme in .env; or take compose/acme.yml out of COMPOSE_FILE' "$STATUS_REFUSED" ;;
        *) return 0 ;;
    esac
    public_url=$(setting PUBLIC_URL '')
    if ! matches "$public_url" 'https://([A-Za-z0-9-]+\.)+[A-Za-z][A-Za-z0-9-]*(:[0-9]+)?/?' || matches "$public_url" '.*\.localhost[:/0-9]*'; then
        die "TLS_MODE=acme needs a PUBLIC_URL with https and a name; it is '$public_url'" \
            'an ACME server vouches for names only; nothing was changed' \
            'the name that clients use, in .env: PUBLIC_URL=https://mlflow.example.com' "$STATUS_REFUSED"
    fi
    [ "$(setting HTTP_PORT 8080)" != "$(setting ACME_HTTP_PORT 80)" ] ||
        die "HTTP_PORT and ACME_HTTP_PORT are both $(setting ACME_HTTP_PORT 80)" 'nothing was changed' \
            'HTTP_PORT=443 in .env: clients come there; the ACME server comes to ACME_HTTP_PORT' "$STATUS_REFUSED"
}
