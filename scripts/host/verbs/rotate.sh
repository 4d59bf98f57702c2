# shellcheck shell=sh
#: ./stack rotate admin|database|storage|door — make a password or key anew and put it into use
#:
#: Nothing restarts: every service follows its file within seconds. The keys that encrypt
#: stored values are never rotated by this.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' admin "$@"
what=${REST# }
case $what in
    admin | database | storage | door) ;;
    *) die "rotate what? '$what' is none of admin, database, storage, door" 'nothing was changed' './stack rotate admin' "$STATUS_USAGE" ;;
esac
need_stack
take_lock
docker compose run --rm --no-deps -T secrets secrets rotate "$what"
docker compose up --detach --wait --no-build
