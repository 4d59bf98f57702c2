# shellcheck shell=sh
#: ./stack metrics — print the metrics of the server (one replica), the fast path and the jobs (Prometheus text)
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' '' "$@"
need_docker

# metrics_of SERVICE URL
metrics_of() {
    docker compose exec -T "$1" python3 -c "
import urllib.request
print(urllib.request.urlopen('$2', timeout=10).read().decode(), end='')" ||
        die "the service $1 gave no metrics" 'it does not run, or is not well' './stack status'
}
metrics_of mlflow http://127.0.0.1:5000/stack/metrics
metrics_of fastpath http://127.0.0.1:8092/metrics
case $(docker compose config --services) in *backup*) metrics_of backup http://127.0.0.1:9100/metrics ;; esac
