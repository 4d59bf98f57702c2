# shellcheck shell=sh
# parse_options WORD…: the options that verbs share. A verb names what it takes in
# OPTIONS (default: --yes); what is left goes to REST.

parse_options() {
    REST=''
    for word in "$@"; do
        case " ${OPTIONS:---yes} " in
            *" $word "*)
                case $word in
                    --yes) ASSUME_YES=yes ;;
                    --json) JSON=yes ;;
                    --versions) VERSIONS=yes ;;
                    --volumes) VOLUMES=yes ;;
                    --long) LONG=yes ;;
                    --no-build) BUILD=no ;;
                esac ;;
            *)
                case $word in
                    -*) die "this verb has no option '$word'" 'nothing was done' "./stack $verb --help" "$STATUS_USAGE" ;;
                esac
                REST="$REST $word" ;;
        esac
    done
    export ASSUME_YES JSON VERSIONS VOLUMES LONG BUILD REST
}
