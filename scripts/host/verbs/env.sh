# shellcheck shell=sh
#: ./stack env — print what a shell needs: eval "$(./stack env)"
#:
#: The password is not put into the address: clients print addresses.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' '' "$@"
need_stack

# In single quotes, so that the shell which reads it changes nothing.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

password=$(docker compose run --rm --no-deps -T secrets secrets show admin_password)
printf 'export MLFLOW_TRACKING_URI=%s\n' "$(quoted "$(stack_url)")"
printf 'export MLFLOW_TRACKING_USERNAME=%s\n' "$(quoted admin)"
printf 'export MLFLOW_TRACKING_PASSWORD=%s\n' "$(quoted "$password")"
