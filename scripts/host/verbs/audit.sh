# shellcheck shell=sh
#: ./stack audit [--user NAME] [--since 2d] [--words TEXT] [--requests] [--json] — who changed what
#:
#: --since     2d, 3h, 30m ago, or a time such as 2026-11-21T08:00 (UTC); 7d unless told
#: --words     only lines whose event or objects contain this, such as a run's id
#: --requests  every request instead of the changes
. scripts/host/options.sh
. scripts/host/check-machine.sh
. scripts/host/operations.sh
parse_options '--user= --since= --words= --requests --json' '' "$@"
need_stack

set -- --since "${SINCE:-7d}"
[ -z "$NAMED" ] || set -- "$@" --user "$NAMED"
[ -z "$WORDS" ] || set -- "$@" --words "$WORDS"
[ "$REQUESTS" = no ] || set -- "$@" --requests
[ "$JSON" = no ] || set -- "$@" --json
ops audit "$@"
