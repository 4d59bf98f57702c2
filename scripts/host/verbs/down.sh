# shellcheck shell=sh
#: ./stack down [--volumes [--yes]] — stop and remove the containers; data stays
#:
#: --volumes also deletes all data of this project: records, artifacts and secrets.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '--volumes --yes' '' "$@"
need_docker

if [ "$VOLUMES" = yes ]; then
    confirm_loss "all runs, models, artifacts and secrets of project $(project_name)" './stack down --volumes --yes'
    take_lock
    docker compose down --remove-orphans --volumes
else
    take_lock
    docker compose down --remove-orphans
fi
