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
own_database_only
take_lock
check_engine
check_disk "$DISK_NEEDED_BUILT_MB"
keep_version
build_environment
make_base_image
step 'building images'
build_images

migrate() { docker compose run --rm --no-deps -T prepare python -m stackserver.prepare --migrate; }

# The former server reads its own files, in its own image, on a socket inside the volume.
move_over_major() {
    former_name=$(project_name)-former-postgres
    docker rm --force "$former_name" >/dev/null 2>&1 || :
    # shellcheck disable=SC2016  # expanded in the container
    docker run --detach --name "$former_name" --network none --user 10001:10001 --cap-drop ALL \
        --volume "$(project_name)_postgres-data:/data" --entrypoint sh "$former_image" -c '
            umask 077; mkdir -p /data/former-socket; printf "local all all trust\n" >/data/former-socket/hba
            for postgres in "/usr/lib/postgresql/$0/bin/postgres" "$(command -v postgres)"; do
                [ ! -x "$postgres" ] || exec "$postgres" -D "/data/$0" -c "config_file=/data/$0/postgresql.conf" \
                    -c listen_addresses= -c unix_socket_directories=/data/former-socket -c hba_file=/data/former-socket/hba
            done; echo "there is no PostgreSQL $0 in this image"; exit 1' "$former_major" >/dev/null || return 1
    moved=yes
    restoring restore move-over || { moved=no; docker logs --tail 10 "$former_name" >&2; }
    docker stop --time 60 "$former_name" >/dev/null
    docker rm --force "$former_name" >/dev/null
    [ "$moved" = yes ]
}

back_to_former() {  # WHAT
    (report_failure) || :  # it exits where every container is well
    step 'going back to the former version'
    docker compose stop nginx fastpath mlflow cron backup postgres
    undo_swap --failed || die "$1, and going back failed" 'the service is stopped; both databases are kept' 'mend what the lines above say, then ./stack rollback'
    start_former || die "$1, and the former version does not start" 'its data is in its place' './stack status; ./stack logs'
    die "$1" 'the former version and its data run again; nothing is lost' 'mend what the lines above say, then ./stack upgrade again'
}

# A cluster of another major version of PostgreSQL: {"major": "16", "folder": "/data/16"}, or {}.
former=$(restoring restore former --json)
former_major=$(printf '%s' "$former" | sed -n 's/.*"major": "\([0-9]*\)".*/\1/p')
if [ -n "$former_major" ]; then
    former_image=$(setting POSTGRES_FORMER_IMAGE "mlflow-stack/postgres:$(setting IMAGE_TAG latest)-previous")
    confirm "Stop the service and move the database from PostgreSQL $former_major?" || { images_back; die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"; }
    stop_writers
    stop_database
    docker compose up --detach --wait --no-build --no-deps secrets minio
    step "moving the database from PostgreSQL $former_major ($former_image)"
    move_over_major || {
        start_former || :
        die 'the database could not be moved' 'the former one is as it was' 'see the lines above; docs/upgrade.md'
    }
fi

docker compose up --detach --wait --no-build --no-deps postgres minio || {
    start_former || :
    die 'the new version of the stores does not start' 'the database was not changed' './stack logs postgres minio'
}
step 'checking the database'
if ! docker compose run --rm --no-deps -T prepare python -m stackserver.prepare --check; then
    [ -z "$former_major" ] || back_to_former 'this database cannot be upgraded'
    images_back || :
    die 'this database cannot be upgraded' 'nothing was changed; the former version runs' 'see the lines above and docs/upgrade.md' "$STATUS_REFUSED"
fi
[ -n "$former_major" ] || confirm 'Stop the service, migrate and start the new version?' || { images_back; die 'you said no' 'nothing was changed' '' "$STATUS_REFUSED"; }

# From here on things change.
stop_writers
if [ -n "$former_major" ] || [ -z "$(docker compose ps --quiet backup)" ]; then
    warn 'no backup set is made before this upgrade: the service backup cannot; the database is copied aside'
else
    step 'making a backup set'
    ops backup run --label before-upgrade || { start_former; die 'the backup before the upgrade failed' 'the former version runs; nothing was changed' './stack backup status'; }
fi
stop_database
step 'copying the database aside'
if [ -z "$former_major" ] && ! restoring restore keep; then
    start_former
    die 'the database could not be copied aside' 'the former version runs; nothing was changed' 'make room on the disk'
fi
step 'migrating'
{ docker compose up --detach --wait --no-build --no-deps secrets postgres minio && migrate; } || back_to_former 'the migration failed'
start_everything || back_to_former 'the new version does not start'
step 'using it'
smoke_test || back_to_former 'the new version does not work'
remember_version
say
say "Upgraded, verified and running: $(stack_url)"
say 'Back again: ./stack rollback'
