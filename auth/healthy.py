"""Health check of the container: the login service answers, and can read its users."""

import http.client

connection = http.client.HTTPConnection("127.0.0.1", 8090, timeout=3)
connection.request("GET", "/healthy")
raise SystemExit(connection.getresponse().status != 204)
