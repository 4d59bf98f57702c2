# shellcheck shell=sh
#: ./stack backup run|list|verify|status|drill|offsite|recovery-key|begin-anew — sets, their proof, their copy elsewhere
#:
#: run [--full]     make a set now: database, objects, sealed secrets
#: list             the sets that can be restored
#: verify [SET]     read every byte of a set and compare it (the newest one, unless named)
#: status           what runs by itself, its last result and its next run (exit 1 if one failed)
#: drill [SET]      restore a set inside a throwaway container, compare and use it
#: offsite          copy the backup volume to OFFSITE_REPOSITORY now
#: recovery-key     print the key that opens the copy elsewhere: keep it outside of this machine
#: begin-anew       put all sets aside: the database or the bucket is another one now, on purpose
#: With --json, run, list, verify, status and drill print what a machine may read.
. scripts/host/options.sh
. scripts/host/check-machine.sh
. scripts/host/operations.sh
parse_options '--full --json' 'run, list, verify, status, drill, offsite, recovery-key or begin-anew' "$@"
# shellcheck disable=SC2086  # words
set -- $REST
action=${1:-}
[ $# -eq 0 ] || shift
need_stack

flags=''
[ "$JSON" = no ] || flags=--json
case $action in
    run)
        [ "$FULL" = no ] || flags="$flags --full"
        # shellcheck disable=SC2086  # none or some words
        ops backup run $flags "$@" ;;
    list | verify | status | drill | offsite | begin-anew)
        # shellcheck disable=SC2086  # none or one word
        ops backup "$action" $flags "$@" ;;
    recovery-key) secrets_step show recovery_key ;;
    *) die "backup what? '$action' is none of run, list, verify, status, drill, offsite, recovery-key, begin-anew" 'nothing was done' './stack backup --help' "$STATUS_USAGE" ;;
esac
