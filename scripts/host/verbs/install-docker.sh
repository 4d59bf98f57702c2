# shellcheck shell=sh
#: ./stack install-docker [--yes] — install Docker, Compose and Buildx on Debian or Ubuntu (as root)
#:
#: Does nothing where a working Docker with Compose 2.24 or newer is there already.
#: At a terminal it shows what it will do and asks; --yes, or no terminal, means yes.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '--yes' '' "$@"

if engine_answers && [ -z "$(missing_parts)" ]; then
    say 'Docker, Compose and Buildx are there already.'
fi
check_engine
docker --version
docker compose version
docker buildx version
