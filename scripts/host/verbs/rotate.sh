# shellcheck shell=sh
#: ./stack rotate admin|database|storage — make a password anew and put it into use
#:
#: database restarts PostgreSQL (clients wait and retry for some seconds); the others
#: interrupt nothing. The keys that encrypt stored values are never rotated by this.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '' admin "$@"
what=${REST# }
case $what in
    admin | database | storage) ;;
    *) die "rotate what? '$what' is none of admin, database, storage" 'nothing was changed' './stack rotate admin' "$STATUS_USAGE" ;;
esac
need_stack
take_lock
docker compose run --rm --no-deps -T secrets secrets rotate "$what"
case $what in
    database) docker compose restart postgres ;;
    storage) docker compose run --rm --no-deps -T prepare ;;
esac
docker compose up --detach --wait --no-build
