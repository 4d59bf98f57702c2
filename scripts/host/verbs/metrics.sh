# shellcheck shell=sh
#: ./stack metrics — print the server's metrics (Prometheus text, of one replica)
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' '' "$@"
need_docker
docker compose exec -T mlflow python3 -c '
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:5000/stack/metrics", timeout=10).read().decode(), end="")' ||
    die 'the server gave no metrics' 'it does not run, or is not well' './stack status'
