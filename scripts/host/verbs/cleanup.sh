# shellcheck shell=sh
#: ./stack cleanup plan|run|approve|undo|purge|list|deleted|explain|orphans — what may go, goes; what matters stays
#:
#: plan             what the policy would delete now, and what is kept although a rule names it
#: run              delete those runs the way MLflow does: the page and `undo` can bring them back
#: approve BATCH    carry out the batch that waits
#: undo BATCH       bring back what a batch deleted
#: purge            free the space of what was deleted RETENTION_PURGE_AFTER_DAYS ago; only a backup undoes that
#: list             the batches
#: deleted          what is deleted and can still be brought back, by a batch or by a person
#: explain ID       the rule that decides over a run, model or trace, and why it is kept
#: orphans          objects without a record, records without objects
#: With --json they print what a machine may read. The policy: config/retention.toml (docs/retention.md).
. scripts/host/options.sh
. scripts/host/check-machine.sh
. scripts/host/operations.sh
parse_options '--json' 'plan, run, approve, undo, purge, list, deleted, explain or orphans' "$@"
# shellcheck disable=SC2086  # words
set -- $REST
action=${1:-}
[ $# -eq 0 ] || shift
need_stack

flags=''
[ "$JSON" = no ] || flags=--json
case $action:$# in
    plan:0 | run:0 | purge:0 | list:0 | deleted:0 | orphans:0 | approve:1 | undo:1 | explain:1)
        secrets_step ensure >/dev/null  # a changed policy counts at once
        # shellcheck disable=SC2086  # none or one word
        ops cleanup "$action" $flags "$@" ;;
    approve:* | undo:*) die "$action which batch?" 'nothing was done' './stack cleanup list' "$STATUS_USAGE" ;;
    explain:*) die 'explain which run, model or trace?' 'nothing was done' './stack cleanup explain ID' "$STATUS_USAGE" ;;
    *) die "cleanup what? '$action' is none of plan, run, approve, undo, purge, list, deleted, explain, orphans" 'nothing was done' './stack cleanup --help' "$STATUS_USAGE" ;;
esac
