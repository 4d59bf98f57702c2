"""Health check of `backup` (its two loops turn and work), `cron` and `acme` (the scheduler lives).

Run by the system's Python without site packages: it starts in 20 ms.
"""

import json
import shutil
import sys
import time
from pathlib import Path

# Older news of the log's loop, which turns every two seconds, are no news.
STALE_SECONDS = 180
# A segment of the log: with less room the receiver cannot begin the next one.
ROOM_NEEDED_BYTES = 16 << 20


def scheduler_lives():
    """Return whether a process of this container is supercronic."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text() == "supercronic\n":
                return True
        except OSError:
            continue
    return False


def problems_of_backup(backups):
    """Return what is wrong with the continuous backup in a folder, a line each."""
    problems = []
    for part in ("log", "objects"):
        try:
            value = json.loads((backups / "state" / f"{part}.json").read_text())
        except (OSError, ValueError) as error:
            problems.append(f"{part}: {error}")
            continue
        if not value["ok"]:
            problems.append(f"{part}: {value['error']}")
        elif time.time() - value["at"] > STALE_SECONDS and part == "log":
            problems.append(f"{part}: nothing for {time.time() - value['at']:.0f} s")
    try:
        full = no_room(backups)
    except OSError as error:
        full = str(error)
    return [*problems, full] if full else problems


def no_room(backups):
    """Return what is wrong if the backup volume is full, or ""."""
    free = shutil.disk_usage(backups).free
    return f"the backup volume is full: {free >> 20} MB left" if free < ROOM_NEEDED_BYTES else ""


def problems_of_loop(folder):
    """Return what is wrong with a loop that notes in a folder when it must have turned again."""
    try:
        late = time.time() - json.loads((folder / "state" / "turn.json").read_text())["next"]
    except (OSError, ValueError) as error:
        return [str(error)]
    return [f"the loop has not turned for {late:.0f} s too long"] if late > STALE_SECONDS else []


if __name__ == "__main__":
    if sys.argv[1] == "cron":
        found = [] if scheduler_lives() else ["supercronic does not run"]
    elif sys.argv[1] == "acme":
        found = problems_of_loop(Path("/acme"))
    else:
        found = problems_of_backup(Path("/backups"))
    print("\n".join(found) or "well")
    raise SystemExit(1 if found else 0)
