#!/bin/bash
# MinIO on one drive: erasure format, so every part carries a checksum (a flipped byte is an
# error, never wrong data). Its Go runtime keeps four fifths of the container's memory limit.
set -euo pipefail
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || echo max)
if [ "$limit" != max ] && [ "${#limit}" -lt 18 ]; then
    export GOMEMLIMIT=$((limit * 4 / 5))
fi
exec minio server --quiet --address :9000 /data
