# shellcheck shell=sh
#: ./stack usage [--refresh] [--json] — storage by experiment, model and trace, its growth and where that leads
#:
#: The figures are those of the nightly inventory; --refresh makes one now.
. scripts/host/options.sh
. scripts/host/check-machine.sh
. scripts/host/operations.sh
parse_options '--refresh --json' '' "$@"
need_stack

flags=''
[ "$JSON" = no ] || flags="$flags --json"
[ "$REFRESH" = no ] || flags="$flags --refresh"
# shellcheck disable=SC2086  # words
ops usage $flags
