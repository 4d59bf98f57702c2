# shellcheck shell=sh
#: ./stack accept-keys [--yes] — make the present encryption keys valid after the old ones are lost
#:
#: Values that were encrypted under the old keys (gateway and webhook secrets) stay
#: unreadable and must be entered again.
. scripts/host/options.sh
parse_options "$@"
take_lock
confirm 'Stored secrets that were encrypted under the old keys become unreadable for ever. Go on?' ||
    die 'nothing was changed' 'you said no' 'put the old keys into config/secrets, then ./stack up' "$STATUS_REFUSED"
docker compose up --detach --wait --no-build postgres minio
docker compose run --rm --no-deps -T prepare python -m stackserver.prepare --accept-keys
docker compose up --detach --wait --no-build
