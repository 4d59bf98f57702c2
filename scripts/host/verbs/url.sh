# shellcheck shell=sh
#: ./stack url — print the address of the stack
. scripts/host/options.sh
parse_options '' '' "$@"
say "$(stack_url)"
