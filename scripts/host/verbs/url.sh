# shellcheck shell=sh
#: ./stack url — print the address of the stack
stack_url
echo
