#!/bin/bash
# Ready = the object layer answers. Without a Host header MinIO says 400.
exec 3<>/dev/tcp/127.0.0.1/9000
printf 'GET /minio/health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3
read -r status <&3
[[ $status == *' 200 '* ]]
