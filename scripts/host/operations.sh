# shellcheck shell=sh
# Running `stackops` in throwaway containers, and stopping and starting around it.

# ops WORDS…: beside the running stack.
ops() { docker compose run --rm --no-deps -T ops "$@"; }

# restoring WORDS…: the same, with the volume of the (stopped) database.
restoring() { docker compose run --rm --no-deps -T restore "$@"; }

# secrets_step WORDS…: as root, without network, on the volume of secrets.
secrets_step() { docker compose run --rm --no-deps -T secrets secrets "$@"; }

stop_writers() {
    step 'stopping what writes'
    docker compose stop nginx mlflow cron
}

stop_database() { docker compose stop backup postgres; }

# Database and storage only, made ready, so that something can be put into them.
start_stores() {
    docker compose up --detach --wait --no-build --no-deps secrets postgres minio
    docker compose run --rm --no-deps -T prepare
}

start_everything() {
    step 'starting'
    docker compose up --detach --wait --remove-orphans --no-build
}

# put_back_former: the database as it was before the step that failed.
put_back_former() {
    step 'rolling back'
    docker compose stop nginx mlflow cron backup postgres
    restoring restore roll-back && start_everything
}
