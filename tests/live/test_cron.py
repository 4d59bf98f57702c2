"""The scheduler: runs what is due, by the stack's time zone, one of a kind at a time."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from kit.stack import Stack, poll


def backup_status(stack: Stack, **settings: str) -> dict:
    return json.loads(stack.verb("backup", "status", "--json", check=False, **settings).stdout)


def test_a_job_runs_by_its_schedule_and_leaves_its_result(stack: Stack) -> None:
    before = datetime.now(UTC)
    settings = {"VERIFY_SCHEDULE": "* * * * *", "TZ": "Asia/Ho_Chi_Minh"}
    stack.compose("up", "--detach", "--wait", "--no-build", "--no-deps", "cron", **settings)
    try:

        def ran() -> dict | None:
            verify = backup_status(stack, **settings)["jobs"]["verify"]
            return verify if verify["last"] and datetime.fromisoformat(verify["last"]) > before else None

        verify = poll(ran, seconds=130, what="the job ran by itself")
        assert verify["ok"] is True, verify
        assert verify["facts"]["set"]
        assert verify["next"].endswith("+07:00")
        drill = backup_status(stack, **settings)["jobs"]["drill"]
        assert drill["next"].endswith("T04:00+07:00")
        log = stack.compose("logs", "--no-color", "cron").stdout
        assert "stackops job verify" in log
    finally:
        stack.compose("up", "--detach", "--wait", "--no-build", "cron")


def test_the_first_set_of_a_stack_that_nobody_has_used_passes_the_drill(stack: Stack) -> None:
    first, *_ = json.loads(stack.verb("backup", "list", "--json").stdout)
    assert first["label"] == "first"
    assert json.loads(stack.verb("backup", "drill", first["set"], "--json").stdout)["set"] == first["set"]


def test_a_schedule_that_is_none_is_refused_before_anything_is_changed(stack: Stack) -> None:
    before = stack.container("cron")
    refused = stack.verb("up", "--no-build", check=False, BACKUP_SCHEDULE="at noon")
    assert refused.returncode == 5
    assert "BACKUP_SCHEDULE" in refused.stderr
    assert stack.container("cron") == before


def test_two_of_a_kind_do_not_run_at_once(stack: Stack) -> None:
    holder = (
        "import fcntl, sys, time; f = open('/backups/state/verify.lock', 'w');"
        " fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
    )
    stack.compose("exec", "--detach", "cron", "python3", "-c", holder)
    find = "for p in /proc/[0-9]*; do grep -aqs verify.lock $p/cmdline && basename $p; done; true"
    try:
        poll(
            lambda: stack.verb("backup", "verify", check=False).returncode == 4,
            seconds=30,
            what="the second one finds the first at work",
        )
        assert "another verify is at work" in stack.verb("backup", "verify", check=False).stderr
    finally:
        for pid in stack.compose("exec", "-T", "cron", "sh", "-c", find).stdout.split():
            stack.compose("exec", "-T", "cron", "sh", "-c", f"kill {pid} 2>/dev/null || :")
    assert stack.verb("backup", "verify").returncode == 0
