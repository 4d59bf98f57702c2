# shellcheck shell=sh
#: ./stack rollback [--yes] — undo the last restore or upgrade: bring back the database that was put aside
#:
#: The present one is put aside in its turn: a second rollback undoes the first.
. scripts/host/options.sh
. scripts/host/check-machine.sh
. scripts/host/operations.sh
parse_options '--yes' '' "$@"
need_stack
take_lock
confirm 'What was logged since then will be put aside. Go on?' || die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"
put_back_former || die 'the former database does not start' 'both are kept' './stack logs postgres; ./stack rollback goes back'
say "Running: $(stack_url)"
