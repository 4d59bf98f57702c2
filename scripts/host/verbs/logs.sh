# shellcheck shell=sh
#: ./stack logs [SERVICE…] — the last 200 lines of each service (or of one)
. scripts/host/options.sh
OPTIONS=' '
parse_options "$@"
# shellcheck disable=SC2086  # a list of names
docker compose logs --no-color --tail 200 $REST
