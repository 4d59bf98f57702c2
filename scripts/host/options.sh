# shellcheck shell=sh
# parse_options OPTIONS WORDS ARGUMENT…: sort a verb's arguments. OPTIONS are the options that
# it takes, with a = after those that take a value; WORDS says what its other words are (they
# go to REST), or is empty if it has none.

parse_options() {
    options=" $1 "
    words=$2
    shift 2
    # Never from the environment: VOLUMES=yes there must not delete anything.
    ASSUME_YES=no JSON=no VERSIONS=no VOLUMES=no LONG=no BUILD=yes REST=''
    FULL=no REPLACE=no REFRESH=no RENEW=no REQUESTS=no SINCE='' NAMED='' WORDS='' FROM_OFFSITE=no TO='' SET='' QUICK=no
    ROUNDS='' SAVE='' FROM='' AND='' option=''
    for argument in "$@"; do
        case $option in
            --to) TO=$argument option='' && continue ;;
            --set) SET=$argument option='' && continue ;;
            --user) NAMED=$argument option='' && continue ;;
            --since) SINCE=$argument option='' && continue ;;
            --words) WORDS=$argument option='' && continue ;;
            --rounds) ROUNDS=$argument option='' && continue ;;
            --save) SAVE=$argument option='' && continue ;;
            --from) FROM=$argument option='' && continue ;;
            --and) AND=$argument option='' && continue ;;
        esac
        case $options in
            *" $argument= "*) option=$argument ;;
            *" $argument "*)
                case $argument in
                    --yes) ASSUME_YES=yes ;;
                    --json) JSON=yes ;;
                    --versions) VERSIONS=yes ;;
                    --volumes) VOLUMES=yes ;;
                    --long) LONG=yes ;;
                    --no-build) BUILD=no ;;
                    --full) FULL=yes ;;
                    --replace) REPLACE=yes ;;
                    --refresh) REFRESH=yes ;;
                    --renew) RENEW=yes ;;
                    --requests) REQUESTS=yes ;;
                    --from-offsite) FROM_OFFSITE=yes ;;
                    --quick) QUICK=yes ;;
                esac ;;
            *)
                case $words,$argument in
                    *,-*) die "$verb has no option '$argument'" 'nothing was done' "./stack $verb --help" "$STATUS_USAGE" ;;
                    ,*) die "$verb takes no '$argument'" 'nothing was done' "./stack $verb --help" "$STATUS_USAGE" ;;
                esac
                REST="$REST $argument" ;;
        esac
    done
    [ -z "$option" ] || die "$verb $option needs a value" 'nothing was done' "./stack $verb --help" "$STATUS_USAGE"
}
