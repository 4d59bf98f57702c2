# shellcheck shell=sh
# check_settings: every line of the settings file, against .env.example, which names each
# variable and, in brackets at the end of its comment, its type.

# type_of NAME: what .env.example says of a variable; empty if it does not know it.
type_of() {
    awk -v name="$1" '
        /^#? *\[[a-z-]*\]/ { match($0, /\[[a-z-]*\]/); type = substr($0, RSTART + 1, RLENGTH - 2) }
        $0 ~ "^#?" name "=" { print type; exit }
    ' .env.example
}

# value_fits TYPE VALUE
value_fits() {
    case $1 in
        port) printf '%s' "$2" | grep -Eq '^[0-9]{1,5}$' && [ "$2" -ge 1 ] && [ "$2" -le 65535 ] ;;
        number) printf '%s' "$2" | grep -Eq '^[0-9]{1,9}$' ;;
        size) printf '%s' "$2" | grep -Eqi '^[0-9]+[kmgt]?b?$' ;;
        switch) [ "$2" = on ] || [ "$2" = off ] ;;
        address) printf '%s' "$2" | grep -Eq '^([0-9]{1,3}\.){3}[0-9]{1,3}$|^\[[0-9A-Fa-f:]+\]$' ;;
        name) printf '%s' "$2" | grep -Eq '^[a-z0-9][a-z0-9_-]*$' ;;
        url) printf '%s' "$2" | grep -Eq '^https?://[^/[:space:]]+/?$' ;;
        database) printf '%s' "$2" | grep -Eq '^postgres(ql)?(\+psycopg2)?://[^:@/]+@[^/]+/[^/]+$' ;;
        text) : ;;
        *) return 1 ;;
    esac
}

meaning_of() {
    case $1 in
        port) echo 'a port is a number from 1 to 65535' ;;
        number) echo 'it takes a whole number' ;;
        size) echo 'it takes a size such as 512m or 2g' ;;
        switch) echo 'it takes on or off' ;;
        address) echo 'it takes an address of this machine, such as 127.0.0.1 or 0.0.0.0' ;;
        name) echo 'it takes small letters, digits, - and _' ;;
        url) echo 'it takes scheme, host and, if any, port: https://mlflow.example.com' ;;
        database) echo 'it takes postgresql+psycopg2://USER@HOST/DATABASE, the password in config/secrets/database_password' ;;
    esac
}

check_value() {  # NAME VALUE WHERE
    type=$(type_of "$1")
    [ -n "$type" ] || die "$3: there is no setting $1" 'nothing was changed' \
        'see .env.example for the names; take the line out or correct it' "$STATUS_REFUSED"
    [ -n "$2" ] || return 0
    value_fits "$type" "$2" || die "$3: $1 is '$2'" "$(meaning_of "$type"); nothing was changed" \
        "correct the line (see .env.example)" "$STATUS_REFUSED"
}

check_settings() {
    file=$(env_file)
    if [ ! -f "$file" ]; then
        [ -z "${COMPOSE_ENV_FILES:-}" ] || die "COMPOSE_ENV_FILES names $file, which is not there" \
            'nothing was changed' 'correct or unset COMPOSE_ENV_FILES' "$STATUS_REFUSED"
    else
        number=0
        while IFS= read -r line || [ -n "$line" ]; do
            number=$((number + 1))
            case $line in '' | \#* | [[:space:]]*\#*) continue ;; esac
            printf '%s' "$line" | grep -Eq '^[A-Z][A-Z0-9_]*=' ||
                die "$file, line $number: '$line' is not NAME=value" 'nothing was changed' \
                    'correct the line, or start it with # to switch it off' "$STATUS_REFUSED"
            name=${line%%=*}
            check_value "$name" "$(unset "$name"; setting "$name" '')" "$file, line $number"
        done <"$file"
    fi
    # The environment of this shell beats the file in Compose: its values are checked too.
    # shellcheck disable=SC2013  # names: words without blanks
    for name in $(sed -n 's/^#\{0,1\}\([A-Z][A-Z0-9_]*\)=.*/\1/p' .env.example); do
        eval "value=\${$name:-}"
        [ -z "$value" ] || check_value "$name" "$value" 'the environment'
    done
}
