# shellcheck shell=sh
#: ./stack logs [SERVICE…] — the last 200 lines of each service (or of one)
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' SERVICE "$@"
need_docker
# shellcheck disable=SC2086  # a list of names
docker compose logs --no-color --tail 200 $REST
