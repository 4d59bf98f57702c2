"""kill -9 of each service while a client logs: it comes back, nothing acknowledged is lost."""

from __future__ import annotations

import subprocess

import mlflow
import pytest

from kit.stack import ROOT, Stack, poll
from kit.writer import Writer


@pytest.mark.parametrize("service", ["postgres", "minio", "mlflow", "fastpath", "auth", "nginx"])
def test_a_killed_service_comes_back_and_loses_nothing_acknowledged(stack: Stack, service: str) -> None:
    container = stack.container(service)
    restarts = stack.inspect(container)["RestartCount"]
    with Writer(stack) as writer:
        poll(lambda: len(writer.acknowledged) > 20, seconds=60, what="the client logs")
        stack.kill(service)
        poll(
            lambda: stack.inspect(container)["RestartCount"] > restarts,
            seconds=60,
            what=f"Docker restarts {service}",
        )
        stack.wait_ready()
        before = len(writer.acknowledged)
        poll(lambda: len(writer.acknowledged) > before + 20, seconds=120, what="the client logs again")
    assert set(writer.acknowledged) <= writer.stored()
    assert writer.failed == []  # the client's own retries carried it over
    poll(
        lambda: stack.inspect(container)["State"]["Health"]["Status"] == "healthy",
        seconds=60,
        what=f"{service} is healthy",
    )
    assert stack.inspect(container)["RestartCount"] == restarts + 1


def test_a_killed_worker_is_replaced_while_the_others_serve(stack: Stack) -> None:
    pids = (
        "import os\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    line = open(f'/proc/{pid}/cmdline').read()\n"
        "    parent = open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1]\n"
        "    if 'gunicorn' in line and parent != '1' and parent != '0': print(pid)\n"
    )

    def workers() -> set[str]:
        return set(stack.compose("exec", "-T", "mlflow", "python3", "-c", pids).stdout.split())

    before = workers()
    assert len(before) == 2
    victim = min(before)
    stack.compose("exec", "-T", "mlflow", "python3", "-c", f"import os; os.kill({victim}, 9)")
    for _ in range(20):
        assert stack.get("/api/2.0/mlflow/experiments/search?max_results=1").status_code == 200
    after = poll(lambda: workers() if len(workers()) == 2 else None, seconds=60, what="a new worker")
    assert victim not in after


def test_a_restart_of_everything_keeps_runs_artifacts_and_models(stack: Stack) -> None:
    client = mlflow.MlflowClient(tracking_uri=stack.url)
    run = client.create_run("0", run_name="before")
    client.log_text(run.info.run_id, "kept", "note.txt")
    client.create_registered_model("kept-model")
    password = stack.password

    stack.verb("down")
    assert stack.compose("ps", "--all", "--quiet").stdout == ""
    stack.verb("up", "--no-build")

    stack.forget_password()
    assert stack.password == password
    assert client.get_run(run.info.run_id).info.run_name == "before"
    assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/note.txt") == "kept"
    assert client.get_registered_model("kept-model").name == "kept-model"


def test_a_stopped_dependency_is_named_and_its_return_is_noticed(stack: Stack) -> None:
    for service, dependency in (("postgres", "database"), ("minio", "storage")):
        stack.compose("stop", service)
        try:

            def report(name: str = dependency) -> str | None:
                health = stack.compose(
                    *("exec", "-T", "mlflow", "answers", "5000", "/stack/ready", "200"), check=False
                ).stdout
                return health if f'"{name}": {{"ok": false' in health else None

            text = poll(report, seconds=60, what=f"readiness names {dependency}")
            other = {"database": "storage", "storage": "database"}[dependency]
            assert f'"{other}": {{"ok": true' in text
            poll(
                lambda: stack.verb("status", check=False).returncode == 1,
                seconds=90,
                what="./stack status exits 1",
            )
        finally:
            stack.compose("start", service)
        stack.wait_ready()
    poll(lambda: stack.verb("status", check=False).returncode == 0, seconds=90, what="./stack status exits 0")


def test_three_replicas_share_the_work_and_one_may_die(stack: Stack) -> None:
    stack.compose("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "mlflow=3")
    try:
        assert len(stack.containers("mlflow")) == 3
        session = stack.session()

        def answers(count: int) -> list[int]:
            url = f"{stack.url}/api/2.0/mlflow/experiments/search?max_results=1"
            return [session.get(url, timeout=30).status_code for _ in range(count)]

        assert answers(60) == [200] * 60
        log = stack.compose("logs", "--no-color", "--tail", "60", "nginx").stdout
        searches = [line for line in log.splitlines() if "experiments/search" in line]
        replicas = {line.split("mlflow=")[1].split()[0] for line in searches}
        assert len(replicas) == 3
        stack.kill_container(stack.containers("mlflow")[0])
        assert answers(40) == [200] * 40
    finally:
        stack.compose("up", "--detach", "--wait", "--no-build", "--no-recreate", "--scale", "mlflow=1")
    stack.wait_ready()


def test_after_the_first_build_a_restart_needs_no_network(stack: Stack) -> None:
    """`up` runs where there is no network at all; the containers' own network has no way out.

    Builds are asked for too: every layer comes from the cache.
    """
    stack.verb("down")
    command = ["unshare", "--net", str(ROOT / "stack"), "up"]
    done = subprocess.run(
        command, env=stack.environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert stack.get("/version").text == "3.17.2"
