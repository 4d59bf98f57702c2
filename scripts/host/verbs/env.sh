# shellcheck shell=sh
#: ./stack env — print what a shell needs: eval "$(./stack env)"
#:
#: The password is not put into the address: clients print addresses.
password=$(docker compose run --rm --no-deps -T secrets secrets show admin_password)
printf "export MLFLOW_TRACKING_URI='%s'\n" "$(stack_url)"
printf "export MLFLOW_TRACKING_USERNAME='admin'\n"
printf "export MLFLOW_TRACKING_PASSWORD='%s'\n" "$(printf '%s' "$password" | sed "s/'/'\\\\''/g")"
