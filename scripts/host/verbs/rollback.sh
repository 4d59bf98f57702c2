# shellcheck shell=sh
#: ./stack rollback [--yes] — undo the last restore or upgrade: bring back the database that was put aside
#:
#: After an upgrade its former images come back too. The present database is put aside in its
#: turn: a second rollback undoes the first.
. scripts/host/options.sh
. scripts/host/check-machine.sh
. scripts/host/operations.sh
parse_options '--yes' '' "$@"
need_stack
own_database_only
take_lock
confirm 'What was logged since then will be put aside. Go on?' || die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"
docker compose stop nginx fastpath mlflow cron backup postgres
status=0
undo_swap || status=$?
case $status in
    0) ;;
    "$STATUS_REFUSED")
        start_everything
        die 'there is nothing to undo' 'the present version runs; nothing was changed' './stack restore --to a moment brings an earlier state' ;;
    *) die 'the roll back failed' 'the service is stopped; both databases are kept' 'mend what the lines above say, then ./stack rollback again' ;;
esac
case $UNDONE in
    *upgrade*) start_former ;;
    *) start_stores && objects_back && start_everything ;;
esac || die 'the former database does not start' 'both are kept' './stack logs postgres; ./stack rollback goes back'
say "Running: $(stack_url)"
