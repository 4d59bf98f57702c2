# shellcheck shell=sh
#: ./stack certificate [--renew] — the certificate that an ACME server gave, and until when (exit 1 if something is wrong)
#:
#: With TLS_MODE=acme it is renewed by itself. --renew asks for another one now: after a failure whose
#: cause is mended, or when its key may be known to others. Open connections go on.
. scripts/host/options.sh
. scripts/host/check-machine.sh
parse_options '--renew' '' "$@"
need_stack
[ "$(setting TLS_MODE off)" = acme ] || die "TLS_MODE is $(setting TLS_MODE off): no ACME server gives the certificate" \
    'nothing was done' 'docs/access.md says what each TLS_MODE does' "$STATUS_REFUSED"

if [ "$RENEW" = yes ]; then
    docker compose exec -T acme stackops acme obtain --renew
else
    docker compose exec -T acme stackops acme status
fi
