# shellcheck shell=sh
#: ./stack install-docker [--yes] — install Docker, Compose and Buildx on Debian or Ubuntu (as root)
#:
#: Does nothing where a working Docker with Compose 2.24 or newer is there already.
#: At a terminal it shows what it will do and asks; --yes, or no terminal, means yes.
. scripts/host/install-docker.sh
. scripts/host/options.sh
parse_options "$@"

if docker_daemon_there && compose_is_new_enough && buildx_works; then
    say 'Docker, Compose and Buildx are there already.'
else
    install_docker
fi
start_docker
docker --version
docker compose version
docker buildx version
