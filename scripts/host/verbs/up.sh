# shellcheck shell=sh
#: ./stack up [--yes] [--no-build] — check this machine, build what changed, start everything
#:
#: Safe to run again at any time, also after an interruption. On a bare Debian or Ubuntu
#: it first installs Docker (as root; at a terminal it asks, --yes answers).
#: --no-build starts the images that are there.
. scripts/host/options.sh
. scripts/host/check-settings.sh
. scripts/host/check-machine.sh
. scripts/host/make-base-image.sh
. scripts/host/build-environment.sh
. scripts/host/report-failure.sh
. scripts/host/operations.sh
parse_options '--yes --no-build' '' "$@"

# Pre-flight. Nothing is changed yet, except that a bare machine gets its Docker.
check_settings
take_lock
check_engine
image_tag=$(setting IMAGE_TAG latest)
if image_there "mlflow-stack/nginx:$image_tag"; then
    check_disk "$DISK_NEEDED_BUILT_MB"
elif [ "$BUILD" = yes ]; then
    check_disk "$DISK_NEEDED_MB"
else
    die "--no-build, but images with the tag $image_tag are not here" 'nothing was changed' './stack up' "$STATUS_REFUSED"
fi
check_memory
check_ports
warn_if_open

# From here on things change; every step may be repeated.
if [ "$BUILD" = yes ]; then
    build_environment
    make_base_image
    step 'building images (a few minutes the first time, seconds after that)'
    build_images
fi
step 'starting'
if ! docker compose up --detach --wait --remove-orphans --no-build; then
    report_failure
    exit "$STATUS_FAILED"
fi

remember_version

if [ "$(setting TLS_MODE off)" = acme ]; then
    step 'looking after the certificate'
    docker compose exec -T acme stackops acme obtain || certificate=bad
fi

say
say "MLflow is ready:  $(stack_url)"
say "User:             admin"
say "Password:         ./stack password"
say "For a shell:      eval \"\$(./stack env)\""
[ "${certificate:-}" != bad ] || exit "$STATUS_FAILED"
