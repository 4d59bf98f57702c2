#!/bin/sh
# The door answers, and it is closed to strangers.
[ "$(curl --silent --max-time 3 --output /dev/null --write-out '%{http_code}' http://127.0.0.1:8081/)" = 401 ]
