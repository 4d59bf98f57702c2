# shellcheck shell=sh
#: ./stack env [--renew] — print what a shell needs: eval "$(./stack env)"
#:
#: Who asks becomes a user of the stack (a writer, by the name on this machine) with a token, which is kept in
#: .stack/, readable by that user alone. --renew takes it back and makes another one. Not put into the address:
#: clients print addresses.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '--renew' '' "$@"
need_stack

# In single quotes, so that the shell which reads it changes nothing.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

user_step() { docker compose run --rm --no-deps -T -e "STACK_USER=$(id -un)" secrets user "$@"; }

name=$(id -un | tr -c 'A-Za-z0-9._@+\n-' _)
file=.stack/$(project_name).token.$name
label=env-$(uname -n | tr -c 'A-Za-z0-9._\n-' _)
users=$(user_step list --json)
case $users in *'"name": "'"$name"'"'*) known=yes ;; *) known=no ;; esac
case $users in *'"owner": "'"$name"'", "label": "'"$label"'"'*) has_token=yes ;; *) has_token=no ;; esac

if [ ! -s "$file" ] || [ "$has_token" = no ] || [ "$RENEW" = yes ]; then
    [ "$known" = yes ] || user_step add "$name" --role writer --no-password >/dev/null
    [ "$has_token" = no ] || user_step token "$name" --revoke "$label" >/dev/null
    mkdir -p .stack
    (
        umask 077
        user_step token "$name" --label "$label" | sed -n 's/^export MLFLOW_TRACKING_PASSWORD=//p' >"$file.new"
    )
    [ -s "$file.new" ] || die "no token was made for $name" 'nothing was printed' './stack user list' "$STATUS_FAILED"
    mv "$file.new" "$file"
fi
# A certificate that no browser knows: clients are told to trust it.
trust=''
case $(setting TLS_MODE off) in
    self-signed)
        trust=$PWD/.stack/$(project_name).certificate.pem
        docker compose run --rm --no-deps -T secrets secrets certificate >"$trust" ;;
    files | acme)
        trust=$(setting CONFIG_FOLDER ./config)/tls/ca.pem
        if [ -r "$trust" ]; then trust=$(cd "$(dirname "$trust")" && pwd)/ca.pem; else trust=''; fi ;;
esac
printf 'export MLFLOW_TRACKING_URI=%s\n' "$(quoted "$(stack_url)")"
printf 'export MLFLOW_TRACKING_USERNAME=%s\n' "$(quoted "$name")"
printf 'export MLFLOW_TRACKING_PASSWORD=%s\n' "$(quoted "$(cat "$file")")"
if [ -n "$trust" ]; then
    printf 'export MLFLOW_TRACKING_SERVER_CERT_PATH=%s\n' "$(quoted "$trust")"
    printf 'export OTEL_EXPORTER_OTLP_CERTIFICATE=%s\n' "$(quoted "$trust")"
fi
