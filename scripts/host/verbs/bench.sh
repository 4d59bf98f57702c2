# shellcheck shell=sh
#: ./stack bench [ROW…] [--rounds N] [--quick] [--long] [--save docs] — measure this checkout against stock MLflow and FastTrackML
#: ./stack bench --from FILE [--and FILE] [--save docs]
#:
#: ROW is flow, held, client, search, artifacts, pages or models; without, all of them (docs/performance.md says what each is).
#: A throwaway stack and the others beside it, on the same PostgreSQL and MinIO; they take turns in each of N
#: rounds (5). The whole of it takes about 90 minutes, and wants a quiet machine with 12 GB of memory and 20 GB of
#: disk. --quick: seconds, one round, only to see that it works. --long: also a million runs. The tables and every
#: sample are kept in build/bench/; --save docs writes them into docs/performance.md; --from takes a kept FILE.json
#: instead of measuring, --and another one of other rows. A stack of yours is not touched, but it is slower meanwhile.
. scripts/host/options.sh
. scripts/host/prepare-tests.sh
. scripts/host/build-environment.sh
parse_options '--rounds= --quick --long --save= --from= --and=' ROW "$@"

flags=''
[ "$QUICK" = no ] || flags="$flags --quick"
[ "$LONG" = no ] || flags="$flags --long"
case $SAVE in
    '') ;;
    docs) flags="$flags --save docs" ;;
    *) die "bench --save takes docs, not '$SAVE'" 'nothing was measured' './stack bench --help' "$STATUS_USAGE" ;;
esac
case $ROUNDS in
    '') ;;
    0* | *[!0-9]*) die "bench --rounds takes a whole number from 1, not '$ROUNDS'" 'nothing was measured' './stack bench --help' "$STATUS_USAGE" ;;
    *) flags="$flags --rounds $ROUNDS" ;;
esac
for name in $REST; do
    case $name in flow | held | client | search | artifacts | pages | models) ;; *)
        die "bench has no row '$name'" 'nothing was measured' './stack bench --help' "$STATUS_USAGE" ;;
    esac
done

prepare_python
if [ -z "$FROM" ]; then
    prepare_docker
    build_environment
    case " $REST " in '  ' | *' pages '*) prepare_browser ;; esac
    step 'measuring'
fi
# shellcheck disable=SC2086  # words
exec .venv/bin/python benchmarks/compare.py $REST $flags ${FROM:+--from "$FROM"} ${AND:+--and "$AND"}
