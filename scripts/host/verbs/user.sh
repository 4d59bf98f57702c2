# shellcheck shell=sh
#: ./stack user add|list|passwd|role|disable|enable|remove|token — who may log in, and what they may do
#:
#: add NAME [--role reader|writer|approver|admin] [--no-password] [--password-stdin]
#:                    a new user (a writer, unless told) with a random password, or with the line on stdin
#: list [--json]      all users and their tokens
#: passwd NAME [--password-stdin]
#: role NAME ROLE     what it may do: docs/access.md
#: disable NAME       closed, with all tokens, until `enable NAME`
#: remove NAME
#: token NAME [--label LABEL] [--days N] | --revoke LABEL
#:                    a machine's key, shown once; it opens the door as the user does
#: Everything counts within two seconds; nothing restarts.
. scripts/host/options.sh
. scripts/host/check-machine.sh
case ${1:-} in
    add | list | passwd | role | disable | enable | remove | token) ;;
    -*) die "user has no option '$1'" 'nothing was done' './stack user --help' "$STATUS_USAGE" ;;
    '') die 'user what?' 'nothing was done' './stack user --help' "$STATUS_USAGE" ;;
    *) die "user takes no '$1'" 'nothing was done' './stack user --help' "$STATUS_USAGE" ;;
esac
need_stack
docker compose run --rm --no-deps -T -e "STACK_URL=$(stack_url)" -e "STACK_USER=$(id -un)" secrets user "$@"
