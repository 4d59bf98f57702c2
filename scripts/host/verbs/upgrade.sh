# shellcheck shell=sh
#: ./stack upgrade [--yes] — go to the version of this checkout: back up, build, migrate, verify, start
#:
#: For after `git pull`, and for a database that an older MLflow wrote. Everything that can be
#: checked is checked while the old version still serves. Then writers stop, the database is
#: copied aside, migrated, and every table compared with what it was. If anything fails, the
#: old version and the old data run again; ./stack rollback does the same later.
. scripts/host/options.sh
. scripts/host/check-settings.sh
. scripts/host/check-machine.sh
. scripts/host/make-base-image.sh
. scripts/host/build-environment.sh
. scripts/host/report-failure.sh
. scripts/host/operations.sh
parse_options '--yes' '' "$@"

# The old version serves on; only images are built.
check_settings
need_stack
take_lock
check_engine
check_disk "$DISK_NEEDED_BUILT_MB"
keep_images
build_environment
make_base_image
step 'building images'
build_images

migrate() { docker compose run --rm --no-deps -T prepare python -m stackserver.prepare --migrate; }

back_to_former() {  # WHAT
    (report_failure) || :  # it exits where every container is well
    step 'going back to the former version'
    docker compose stop nginx mlflow cron backup postgres
    restoring restore roll-back
    start_former || die "$1, and the former version does not start" 'its data is in its place' './stack status; ./stack logs'
    die "$1" 'the former version and its data run again; nothing is lost' 'mend what the lines above say, then ./stack upgrade again'
}

docker compose up --detach --wait --no-build --no-deps postgres minio
step 'checking the database'
if ! docker compose run --rm --no-deps -T prepare python -m stackserver.prepare --check; then
    images_back || :
    die 'this database cannot be upgraded' 'nothing was changed; the former version runs' 'see the lines above and docs/upgrade.md' "$STATUS_REFUSED"
fi
confirm 'Stop the service, migrate and start the new version?' || { images_back; die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"; }

# From here on things change.
stop_writers
if [ -n "$(docker compose ps --quiet backup)" ]; then
    step 'making a backup set'
    ops backup run --label before-upgrade || { start_former; die 'the backup before the upgrade failed' 'the former version runs; nothing was changed' './stack backup status'; }
fi
stop_database
step 'copying the database aside'
if ! restoring restore keep; then
    start_former
    die 'the database could not be copied aside' 'the former version runs; nothing was changed' 'make room on the disk'
fi
step 'migrating'
{ docker compose up --detach --wait --no-build --no-deps secrets postgres minio && migrate; } || back_to_former 'the migration failed'
start_everything || back_to_former 'the new version does not start'
step 'using it'
smoke_test || back_to_former 'the new version does not work'
remember_compose
say
say "Upgraded, verified and running: $(stack_url)"
say 'Back again: ./stack rollback'
