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

smoke_test() { secrets_step show admin_password 2>/dev/null | ops smoke; }

# What runs now, so that a failed upgrade can start exactly that again.
remember_compose() {
    { mkdir -p .stack && docker compose config >".stack/$(project_name).yml"; } ||
        warn 'the folder .stack cannot be written: a failed upgrade could not start this version again by itself'
}

# keep_images: give the images that run a second tag, image_tag-previous.
keep_images() {
    for container in $(docker compose ps --all --quiet); do
        # shellcheck disable=SC2046  # two words
        set -- $(docker inspect --format '{{.Image}} {{.Config.Image}}' "$container")
        docker tag "$1" "${2%:*}:${2##*:}-previous"
    done
}

# images_back: the tag again as it was before keep_images; false where nothing was kept.
images_back() {
    kept_images=$(docker images --format '{{.Repository}}:{{.Tag}}' | grep "^mlflow-stack/[a-z]*:$(setting IMAGE_TAG latest)-previous\$") || return 1
    for image in $kept_images; do
        docker tag "$image" "${image%-previous}"
    done
}

# The former version: its images and the Compose file that started them.
start_former() {
    images_back || warn 'the former images are gone'
    if [ -s ".stack/$(project_name).yml" ]; then
        docker compose --file ".stack/$(project_name).yml" up --detach --wait --remove-orphans --no-build
    else
        start_everything
    fi
}
