#!/bin/bash
# Start PostgreSQL 17: make the cluster once, set what follows from the container's
# memory limit, and set each role's password from its file at every start (so a lost
# secrets volume, or a rotation, is mended by a restart).
set -euo pipefail

MAJOR=17
DATA=/data/$MAJOR
SECRETS=/secrets/postgres

refuse() { printf 'REFUSED: %s\nfix: %s\n' "$1" "$2" >&2; exit 78; }

for other in /data/*/PG_VERSION /data/PG_VERSION; do
    [ -e "$other" ] || continue
    found=$(<"$other")
    if [ "$found" != "$MAJOR" ]; then
        refuse "the data volume belongs to PostgreSQL $found, this image is PostgreSQL $MAJOR; nothing was changed" \
            "./stack upgrade moves the database"
    fi
done

max_connections=${POSTGRES_MAX_CONNECTIONS:-500}
case $max_connections in
    *[!0-9]* | ????*) refuse "POSTGRES_MAX_CONNECTIONS is '$max_connections', not a number below 1000" 'correct it in .env (for example 500)' ;;
esac

# The container's limit (cgroup 2, then 1); without one, half of the machine.
limit_bytes() {
    local machine limit
    machine=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) * 1024))
    limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || echo max)
    if [ "$limit" = max ] || [ "${#limit}" -gt 18 ] || [ "$limit" -gt "$machine" ]; then limit=$((machine / 2)); fi
    echo "$limit"
}
memory_mb=$(($(limit_bytes) / 1048576))

# One container at a time has this volume: the kernel keeps this lock as long as PostgreSQL or a
# child of it lives. PostgreSQL's own file names a process number, which after a kill -9 belongs to
# somebody else here (mostly to this script): it would refuse to start because of itself.
exec 9>>/data/lock
flock --timeout 10 9 || refuse 'another container runs PostgreSQL on this data volume; nothing was changed' \
    'docker ps --filter volume=NAME names it, with NAME from docker volume ls; stop it'
# The same goes for the lock beside its socket, which lies in a volume.
rm -f "$DATA/postmaster.pid" /run/postgresql/.s.PGSQL.*

# What a restore or upgrade put aside, once it is as old as the oldest backup.
if [ -s "$DATA/PG_VERSION" ] && [ -d /data/kept ]; then
    find /data/kept -mindepth 1 -maxdepth 1 -mtime "+${BACKUP_KEEP_DAYS:-14}" -exec rm -rf {} +
fi

if [ ! -s "$DATA/PG_VERSION" ] && [ -d /data/kept ]; then
    refuse 'a restore was interrupted: the database was put aside and no other has taken its place' \
        './stack rollback brings it back; ./stack restore begins again'
fi

if [ ! -s "$DATA/PG_VERSION" ]; then
    # Made beside its place and renamed: an interrupted first start leaves nothing half made.
    rm -rf "$DATA.new"
    initdb --pgdata="$DATA.new" --data-checksums --username=postgres --locale=C.UTF-8 --encoding=UTF8 \
        --auth-local=peer --auth-host=scram-sha-256 >/dev/null
    printf 'CREATE ROLE mlflow LOGIN;\nCREATE DATABASE mlflow OWNER mlflow;\n' |
        postgres --single -D "$DATA.new" postgres >/dev/null
    mv "$DATA.new" "$DATA"
fi

password_statements() {
    for role in mlflow stackops backup; do
        printf "ALTER ROLE %s PASSWORD '%s';\n" "$role" "$(sed "s/'/''/g" "$SECRETS/${role}_password")"
    done
}

# One statement a line: single-user mode ends a statement at the newline.
single() { postgres --single -D "$DATA" -c summarize_wal=on postgres; }  # or its checkpoint drops what has no summary yet

# MLflow's permissions are in a database of their own. CREATE DATABASE knows no IF NOT EXISTS.
if [ "${AUTHORIZATION:-roles}" = rbac ] &&
    ! grep -q '"mlflow_auth"' <<<"$(single <<<"SELECT datname FROM pg_database WHERE datname = 'mlflow_auth';")"; then
    single <<<'CREATE DATABASE mlflow_auth OWNER mlflow;' >/dev/null
fi

{
    for role in stackops backup; do
        printf 'DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = %s) THEN CREATE ROLE %s LOGIN; END IF; END $$;\n' "'$role'" "$role"
    done
    password_statements
    printf 'REVOKE ALL ON DATABASE mlflow FROM PUBLIC;\nGRANT CONNECT, CREATE ON DATABASE mlflow TO stackops;\n'
    [ "${AUTHORIZATION:-roles}" = roles ] || printf 'REVOKE ALL ON DATABASE mlflow_auth FROM PUBLIC;\n'
    # Cleanup deletes MLflow's rows: as MLflow may.
    printf 'GRANT mlflow TO stackops;\n'
    # Copies the cluster, reads every table (digests), locks them for a moment (pg_maintain).
    printf 'ALTER ROLE backup REPLICATION;\nGRANT CONNECT ON DATABASE mlflow TO backup;\n'
    printf 'GRANT pg_read_all_data, pg_read_all_settings, pg_read_all_stats, pg_maintain, pg_checkpoint TO backup;\n'
    printf 'GRANT EXECUTE ON FUNCTION pg_switch_wal(), pg_create_restore_point(text), pg_backup_start(text, boolean), pg_backup_stop(boolean) TO backup;\n'
} | single >/dev/null

# A rotated password counts within two seconds, without a restart.
follow_passwords() {
    local known now
    known=$(cksum "$SECRETS"/*)
    while sleep 2; do
        now=$(cksum "$SECRETS"/* 2>/dev/null) || continue
        if [ "$now" != "$known" ] &&
            password_statements | PGOPTIONS='-c synchronous_commit=local' psql --quiet --host=/run/postgresql --username=postgres --dbname=postgres --set=ON_ERROR_STOP=1; then
            known=$now
            echo 'the roles have new passwords'
        fi
    done
}
follow_passwords &

case ${POSTGRES_WAL_KEEP:-10g} in
    *[!0-9kmgtKMGTbB]*) refuse "POSTGRES_WAL_KEEP is '$POSTGRES_WAL_KEEP', not a size" 'correct it in .env (for example 10g)' ;;
esac
wal_keep=$(printf '%s' "${POSTGRES_WAL_KEEP:-10g}" | tr 'KMGTb' 'kmgtB' | sed 's/[bB]$//; s/k$/kB/; s/m$/MB/; s/g$/GB/; s/t$/TB/; s/[0-9]$/&B/')
# On: a commit waits until the backup volume has it too.
standby_names=''
[ "${BACKUP_SYNCHRONOUS:-off}" = off ] || standby_names=barman_receive_wal

exec postgres -D "$DATA" -c config_file=/opt/postgres/postgresql.conf -c data_directory="$DATA" \
    -c max_connections="$max_connections" \
    -c max_slot_wal_keep_size="$wal_keep" \
    -c synchronous_standby_names="$standby_names" \
    -c shared_buffers="$((memory_mb / 4))MB" \
    -c effective_cache_size="$((memory_mb * 6 / 10))MB" \
    -c maintenance_work_mem="$((memory_mb / 16))MB" \
    -c work_mem="$((memory_mb / 64 > 4 ? memory_mb / 64 : 4))MB"
