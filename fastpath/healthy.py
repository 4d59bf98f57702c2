"""Health check of the container: the service answers; a database that is away is not its illness."""

import http.client

connection = http.client.HTTPConnection("127.0.0.1", 8092, timeout=3)
connection.request("GET", "/healthy")
raise SystemExit(connection.getresponse().status != 204)
