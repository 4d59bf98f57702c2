# shellcheck shell=sh
#: ./stack password — print the password of the user admin
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' '' "$@"
need_stack
docker compose run --rm --no-deps -T secrets secrets show admin_password
