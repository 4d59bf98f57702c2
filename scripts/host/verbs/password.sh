# shellcheck shell=sh
#: ./stack password — print the password of the user admin
docker compose run --rm --no-deps -T secrets secrets show admin_password
