# shellcheck shell=sh
#: ./stack accept-keys [--yes] — make the present encryption keys valid after the old ones are lost
#:
#: Values that were encrypted under the old keys (gateway and webhook secrets) stay
#: unreadable and must be entered again.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '--yes' '' "$@"
need_stack
confirm_loss 'what the old keys encrypted (gateway and webhook secrets)' './stack accept-keys --yes'
take_lock
docker compose run --rm -T prepare python -m stackserver.prepare --accept-keys
docker compose up --detach --wait --no-build
