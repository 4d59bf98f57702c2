"""Health check of the container: the readiness route says ready. Prints what is not."""

import http.client

connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=8)
connection.request("GET", "/stack/ready")
response = connection.getresponse()
body = response.read(2000).decode()
if response.status != 200:
    print(body)
    raise SystemExit(1)
