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
    docker compose stop nginx fastpath mlflow cron
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

# own_database_only: a PostgreSQL of the operator's own is nothing that we can copy aside.
own_database_only() {
    case $(setting DATABASE_URI '') in '' | *@postgres[:/]*) return 0 ;; esac
    die "$verb works on the stack's own PostgreSQL; DATABASE_URI names another one" 'nothing was changed' \
        'use that database'"'"'s own tools; for its schema: mlflow db upgrade' "$STATUS_REFUSED"
}

# undo_swap WORDS…: bring the database back that was put aside last; what was undone is in UNDONE.
undo_swap() { UNDONE=$(restoring restore roll-back --json "$@"); }

# objects_back: after a restore is undone, objects that it replaced get their bytes back too.
objects_back() {
    case $UNDONE in *restore*) ;; *) return 0 ;; esac
    moment=$(printf '%s' "$UNDONE" | sed -n 's/.*"moment": "\([^"]*\)".*/\1/p')
    ops backup copy-objects && ops restore objects --to "$moment"
}

# put_back_former: the database and the objects as they were before the step that failed.
put_back_former() {
    step 'rolling back'
    docker compose stop nginx fastpath mlflow cron backup postgres
    undo_swap --failed && start_stores && objects_back && start_everything
}

smoke_test() { secrets_step show stack_token 2>/dev/null | ops smoke; }

# A version is its images, by a suffix of their tag, and its Compose file: `running` is the one that last ran well,
# `previous` the one to go back to.

version_file() { printf '.stack/%s.%s.yml' "$(project_name)" "$1"; }

# retag FROM TO: give each image with one suffix (none, -running, -previous, -next) the other one too.
retag() {
    images=$(docker images --format '{{.Repository}}:{{.Tag}}' | grep "^mlflow-stack/[a-z]*:$(setting IMAGE_TAG latest)$1\$") || return 1
    for image in $images; do
        docker tag "$image" "${image%"$1"}$2"
    done
}

# tag_containers SUFFIX: the images of the containers that are there.
tag_containers() {
    for container in $(docker compose ps --all --quiet); do
        # shellcheck disable=SC2046  # two words
        set -- "$1" $(docker inspect --format '{{.Image}} {{.Config.Image}}' "$container")
        docker tag "$2" "$3$1"
    done
}

# remember_version: what runs now runs well.
remember_version() {
    tag_containers -running
    { mkdir -p .stack && docker compose config >"$(version_file running)"; } ||
        warn 'the folder .stack cannot be written: a failed upgrade could not start this version again by itself'
}

# keep_version: the version that last ran well is the one to go back to from now on. The containers' own images
# are it only where nothing was remembered: an `up` that was refused may have made them of newer ones.
keep_version() {
    if [ -s "$(version_file running)" ] && retag -running -previous; then
        cp "$(version_file running)" "$(version_file previous)"
    else
        tag_containers -previous
        rm -f "$(version_file previous)"
    fi
}

# images_back: the tag as it was before something was built.
images_back() { retag -previous ''; }

# start_former: the former version runs; the present one becomes the one to go back to.
start_former() {
    retag '' -next || :
    images_back || warn 'the former images are gone'
    retag -next -previous || :
    if [ -s "$(version_file previous)" ]; then
        docker compose --file "$(version_file previous)" up --detach --wait --remove-orphans --no-build || return 1
        cp "$(version_file running)" "$(version_file next)" 2>/dev/null || :
        mv "$(version_file previous)" "$(version_file running)"
        mv "$(version_file next)" "$(version_file previous)" 2>/dev/null || :
    else
        start_everything
    fi
}
