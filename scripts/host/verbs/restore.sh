# shellcheck shell=sh
#: ./stack restore [--to TIME] [--set NAME] [--replace] [--from-offsite] [--yes] — bring database, objects and secrets back
#:
#: Without --to and --set: the newest state. --to '2026-11-21 14:03:07': exactly that moment
#: (time zone: TZ in .env, or write one). --set NAME: the moment of that set, compared with
#: the digests of every table.
#: --replace is needed where there is a database already: it is put aside, and
#: ./stack rollback brings it back. Objects of the bucket are never deleted.
#: --from-offsite, on an empty machine: fetch the backups from OFFSITE_REPOSITORY first; the
#: recovery key is read from config/secrets/recovery_key.
#: Everything that is needed is read and verified before anything is touched.
. scripts/host/options.sh
. scripts/host/check-settings.sh
. scripts/host/check-machine.sh
. scripts/host/make-base-image.sh
. scripts/host/build-environment.sh
. scripts/host/report-failure.sh
. scripts/host/operations.sh
parse_options '--to= --set= --replace --from-offsite --yes' '' "$@"

# Checks. Nothing is changed yet, except that missing images are built, and that an empty
# backup volume is filled from elsewhere.
check_settings
own_database_only
take_lock
check_engine
if ! image_there "mlflow-stack/nginx:$(setting IMAGE_TAG latest)"; then
    build_environment
    make_base_image
    step 'building images (a few minutes)'
    build_images
fi
if [ "$FROM_OFFSITE" = yes ]; then
    step 'fetching the backups from the off-site repository'
    secrets_step offsite
    ops backup fetch
fi
secrets_step unseal
secrets_step ensure

set -- restore plan --json
[ -z "$SET" ] || set -- "$@" --set "$SET"
[ -z "$TO" ] || set -- "$@" --to "$TO"
[ "$REPLACE" = no ] || set -- "$@" --replace
step 'verifying what will be needed'
plan=$(restoring "$@")
fact() { printf '%s' "$plan" | sed -n "s/.*\"$1\": \"\{0,1\}\([^\",}]*\).*/\1/p"; }
chosen=$(fact set)
say "restore:  $(fact target)"
say "from set: $chosen, made $(fact made)"
say "objects:  $(fact objects)"
if [ "$(fact replaces)" = true ]; then
    say 'The present database is put aside; ./stack rollback brings it back.'
    confirm 'Go on?' || die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"
fi

# From here on things change.
stop_writers
if [ "$(fact replaces)" = true ]; then
    copied=0
    ops backup copy-objects || copied=$?
    case $copied in
        0) ;;
        "$STATUS_REFUSED") warn 'the bucket is not the one that was copied: what is in it stays, unless the backup has another version' ;;
        *)
            start_everything || :
            die 'the objects of the present bucket could not be copied to the backup volume first' 'the former database runs; nothing was changed' './stack up, ./stack backup status; has the backup volume room?' ;;
    esac
fi
stop_database
step 'restoring the database'
set -- restore database --set "$chosen"
[ -z "$SET" ] || set -- "$@" --own-moment
[ -z "$TO" ] || set -- "$@" --to "$TO"
if ! restoring "$@"; then
    start_everything || :
    die 'the restore failed' 'the former database is in its place and runs' './stack backup list; ./stack restore --set an older one'
fi
step 'restoring objects'
set --
[ -z "$TO" ] || set -- --to "$TO"
[ -z "$SET" ] || [ -n "$TO" ] || set -- --set "$chosen"
if start_stores && ops restore objects "$@" && start_everything && ops restore verify "$@" && smoke_test; then
    remember_version
    say
    say "Restored, verified and running: $(stack_url)"
    exit 0
fi
(report_failure) || :  # it exits where every container is well
[ "$(fact replaces)" = true ] ||
    die 'the restore could not be verified' 'there was no former state to go back to' './stack status; then ./stack restore --replace --set an older one'
put_back_former || die 'the restore could not be verified, and the former state does not start' 'both databases are kept' './stack status; ./stack rollback'
die 'the restore could not be verified' 'the former database is in its place again and runs' './stack backup verify; ./stack restore --set an older one'
