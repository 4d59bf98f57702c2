# shellcheck shell=sh
#: ./stack down [--volumes [--yes]] — stop and remove the containers; data stays
#:
#: --volumes also deletes all data of this project: records, artifacts and secrets.
. scripts/host/options.sh
OPTIONS='--volumes --yes'
parse_options "$@"
take_lock

if [ "${VOLUMES:-no}" = yes ]; then
    if [ ! -t 0 ] && [ "${ASSUME_YES:-no}" = no ]; then
        die '--volumes deletes all runs, models and secrets' 'nothing was changed' './stack down --volumes --yes' "$STATUS_REFUSED"
    fi
    confirm "Delete all runs, models, artifacts and secrets of project $(project_name)?" ||
        die 'nothing was deleted' 'you said no' './stack down' "$STATUS_REFUSED"
    docker compose down --remove-orphans --volumes
else
    docker compose down --remove-orphans
fi
