"""./stack itself: its verbs, their help, words that are off, and what the small verbs print."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from kit.fake_host import (
    ROOT,
    SERVICES,
    SHELL_FILES,
    STATUS_FAILED,
    STATUS_NOT_ALLOWED,
    STATUS_REFUSED,
    STATUS_USAGE,
    VERBS,
    FakeHost,
    assert_error,
)

NEED_DOCKER = ["accept-keys", "certificate", "down", "env", "logs", "metrics", "password", "status"]


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_help_lists_every_verb_with_what_it_does(host: FakeHost) -> None:
    for words in ((), ("help",), ("--help",), ("-h",)):
        done = host.run(*words)
        assert done.returncode == 0
        listed = [line.split(maxsplit=1) for line in done.stdout.splitlines()[2:]]
        assert [line[0] for line in listed] == VERBS
        assert all(len(line[1]) > 10 for line in listed)
    assert host.calls == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_how_to_call_it_and_does_nothing(host: FakeHost, verb: str) -> None:
    for words in ((verb, "-h"), (verb, "--yes", "--help")):
        done = host.run(*words)
        assert done.returncode == 0
        assert done.stdout.startswith(f"./stack {verb}")
        assert " — " in done.stdout.splitlines()[0]
        assert done.stderr == ""
    assert host.calls == []


@pytest.mark.parametrize("verb", ["start", "Up", "../lib", "lib", "up.sh", "--version", "u p", "up;id", "-"])
def test_an_unknown_verb_is_refused_with_the_way_to_the_list(host: FakeHost, verb: str) -> None:
    assert_error(host.run(verb), STATUS_USAGE, f"there is no verb '{verb}'", fix="./stack help")
    assert host.calls == []


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_is_refused_with_the_way_to_the_help(host: FakeHost, verb: str) -> None:
    option = "-x" if verb < "l" else "--bogus"
    done = host.run(verb, option)
    assert_error(done, STATUS_USAGE, f"{verb} has no option '{option}'", fix=f"./stack {verb} --help")
    assert host.calls == []


TAKE_WORDS = {"backup", "bench", "cleanup", "logs", "rotate", "test"}


@pytest.mark.parametrize("verb", sorted(set(VERBS) - TAKE_WORDS))
def test_a_word_that_a_verb_does_not_take_is_refused(host: FakeHost, verb: str) -> None:
    done = host.run(verb, "volumes")
    assert_error(done, STATUS_USAGE, f"{verb} takes no 'volumes'", fix=f"./stack {verb} --help")
    assert host.calls == []


@pytest.mark.parametrize("words", [[], ["everything"], ["admin", "storage"]])
def test_rotate_takes_one_of_three_words(host: FakeHost, words: list[str]) -> None:
    assert_error(
        host.run("rotate", *words), STATUS_USAGE, "admin, database, storage", fix="./stack rotate admin"
    )
    assert host.calls == []


def test_rotate_makes_a_password_anew_and_puts_it_into_use(host: FakeHost) -> None:
    assert host.run("rotate", "database").returncode == 0
    assert host.changes == [
        "docker compose run --rm --no-deps -T secrets secrets rotate database",
        "docker compose up --detach --wait --no-build",
    ]


@pytest.mark.parametrize("name", SHELL_FILES)
def test_the_shell_is_valid_under_the_plainest_that_is_here(name: str) -> None:
    shell = shutil.which("dash") or "/bin/sh"  # Debian, and so CI, has dash
    done = subprocess.run([shell, "-n", str(ROOT / name)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_entry_point_stays_short() -> None:
    assert len((ROOT / "stack").read_text().splitlines()) <= 150
    assert (ROOT / "stack").read_text().startswith("#!/bin/sh\n")


def test_it_works_from_any_folder_and_through_symbolic_links(host: FakeHost, tmp_path: Path) -> None:
    host.settings("HTTP_PORT=9000\n")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    link = elsewhere / "my stack"
    link.symlink_to(host.checkout / "stack")
    second = tmp_path / "second"
    second.symlink_to("else where/my stack")
    for program in (host.checkout / "stack", link, second):
        assert host.run("url", program=program, cwd=elsewhere).stdout == "http://127.0.0.1:9000\n"
    relative = host.run("url", program=Path("../checkout/stack"), cwd=elsewhere, CDPATH="/")
    assert relative.stdout == "http://127.0.0.1:9000\n"
    by_path = subprocess.run(
        ["/bin/sh", "-c", "'my stack' url"],
        env=host.environment(PATH=f"{elsewhere}:{host.commands}"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert by_path.stdout == "http://127.0.0.1:9000\n", by_path.stderr


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ("", "http://127.0.0.1:8080"),
        ("HTTP_PORT=80", "http://127.0.0.1:80"),
        ("BIND_ADDRESS=0.0.0.0", "http://127.0.0.1:8080"),
        ("BIND_ADDRESS=192.168.1.5", "http://192.168.1.5:8080"),
        ("BIND_ADDRESS=[::1]\nHTTP_PORT=9000", "http://[::1]:9000"),
        ("BIND_ADDRESS=[::]", "http://[::1]:8080"),
        ("PUBLIC_URL=https://mlflow.example.com", "https://mlflow.example.com"),
        ("PUBLIC_URL=https://mlflow.example.com/\nHTTP_PORT=9000", "https://mlflow.example.com"),
    ],
)
def test_url_is_what_a_person_types(host: FakeHost, settings: str, url: str) -> None:
    host.settings(settings)
    done = host.run("url")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{url}\n", "")


def gives_tokens(host: FakeHost, token: str) -> None:
    line = shlex.quote(f"export MLFLOW_TRACKING_PASSWORD={token}")
    host.docker("compose run *user list --json", "echo '[]'")
    host.docker("compose run *user token *", f"printf '%s\\n' 'shown only now' {line}")


def variables_of(host: FakeHost, script: str) -> list[str]:
    shell = subprocess.run(
        ["/bin/sh", "-euc", 'eval "$1"; exec env', "sh", script],
        env={"PATH": str(host.commands)},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(line.split("=", 1) for line in shell.stdout.splitlines())
    return [seen[f"MLFLOW_TRACKING_{name}"] for name in ("URI", "USERNAME", "PASSWORD")]


@pytest.mark.parametrize(
    "token", ["plain", "it's", "two  words ", "$HOME `id` \\n", "'", '"', "a'b'c", "é#!*?", "-n"]
)
def test_env_makes_a_shell_ready_whatever_the_token(host: FakeHost, token: str) -> None:
    host.user("ann")
    gives_tokens(host, token)
    done = host.run("env")
    assert done.returncode == 0, done.stderr
    assert variables_of(host, done.stdout) == ["http://127.0.0.1:8080", "ann", token]
    (kept,) = (host.checkout / ".stack").glob("*.token.ann")
    assert kept.stat().st_mode & 0o777 == 0o600


def test_env_gives_the_same_token_again_until_it_is_taken_back(host: FakeHost) -> None:
    host.user("ann")
    gives_tokens(host, "first")
    host.run("env")
    label = next(call for call in host.calls if "user token" in call).split("--label ")[1]
    host.docker(
        "compose run *user list --json",
        f"""echo '[{{"name": "ann", "tokens": [{{"owner": "ann", "label": "{label}"}}]}}]'""",
    )
    gives = host.docker
    gives("compose run *user token *", "echo export MLFLOW_TRACKING_PASSWORD=second")
    assert variables_of(host, host.run("env").stdout)[2] == "first"
    assert variables_of(host, host.run("env", "--renew").stdout)[2] == "second"
    assert any(f"user token ann --revoke {label}" in call for call in host.calls)
    host.docker("compose run *user list --json", """echo '[{"name": "ann", "tokens": []}]'""")
    gives("compose run *user token *", "echo export MLFLOW_TRACKING_PASSWORD=third")
    assert variables_of(host, host.run("env").stdout)[2] == "third"
    assert len([call for call in host.calls if "user add" in call]) == 1


def test_env_prints_nothing_to_evaluate_when_there_is_no_token(host: FakeHost) -> None:
    host.docker("compose run *user list --json", "echo half; exit 5")
    done = host.run("env")
    assert done.returncode != 0
    assert done.stdout == ""


@pytest.mark.parametrize("verb", ["env", "password", "rotate", "accept-keys", "certificate"])
def test_before_the_first_start_nothing_is_made_by_asking(host: FakeHost, verb: str) -> None:
    host.docker("volume inspect mlflow-stack_secrets", "exit 1")
    words = {"rotate": ["admin"], "accept-keys": ["--yes"]}.get(verb, [])
    done = host.run(verb, *words)
    assert_error(
        done, STATUS_REFUSED, "no stack of the name mlflow-stack was ever started here", fix="./stack up"
    )
    assert done.stdout == ""
    assert host.changes == []


@pytest.mark.parametrize("verb", NEED_DOCKER)
def test_without_docker_a_verb_says_so(host: FakeHost, verb: str) -> None:
    host.without("docker")
    assert_error(host.run(verb), STATUS_REFUSED, "Docker is not on this machine", fix="./stack up")


@pytest.mark.parametrize("verb", NEED_DOCKER)
def test_without_the_right_to_use_docker_a_verb_says_how_to_get_it(host: FakeHost, verb: str) -> None:
    host.user("ann")
    host.docker("info", "echo 'permission denied while trying to connect' >&2; exit 1")
    done = host.run(verb)
    assert_error(
        done, STATUS_NOT_ALLOWED, "you (ann) may not use Docker's socket", fix=f"sudo ./stack {verb}"
    )
    assert done.stdout == ""
    assert host.changes == []


def test_down_keeps_the_data(host: FakeHost) -> None:
    assert host.run("down").returncode == 0
    assert host.changes == ["docker compose down --remove-orphans"]
    assert not host.lock.exists()


def test_down_with_volumes_asks_and_without_a_terminal_needs_yes(host: FakeHost) -> None:
    done = host.run("down", "--volumes")
    assert_error(
        done,
        STATUS_REFUSED,
        "project mlflow-stack would be lost for ever",
        fix="./stack down --volumes --yes",
    )
    done = host.run_at_terminal("down", "--volumes", typed="n\n")
    assert done.returncode == STATUS_REFUSED
    assert "[y/N]" in done.stderr
    assert "nothing was changed" in done.stderr
    done = host.run_at_terminal("down", "--volumes", typed="\n")
    assert done.returncode == STATUS_REFUSED
    assert host.changes == []
    assert host.run_at_terminal("down", "--volumes", typed="y\n").returncode == 0
    assert host.run("down", "--volumes", "--yes").returncode == 0
    assert host.changes == ["docker compose down --remove-orphans --volumes"] * 2


def test_nothing_in_the_environment_answers_for_an_option(host: FakeHost) -> None:
    """VOLUMES=yes of some other program must not delete the data of this one."""
    done = host.run("down", VOLUMES="yes", ASSUME_YES="yes", OPTIONS="--volumes --yes", REST="--volumes")
    assert done.returncode == 0
    assert host.changes == ["docker compose down --remove-orphans"]
    assert_error(host.run("down", "--volumes", ASSUME_YES="yes"), STATUS_REFUSED, "lost for ever")


def test_accept_keys_needs_yes_where_nobody_can_be_asked(host: FakeHost) -> None:
    assert_error(host.run("accept-keys"), STATUS_REFUSED, "lost for ever", fix="./stack accept-keys --yes")
    assert host.changes == []
    assert host.run("accept-keys", "--yes").returncode == 0
    assert "docker compose run --rm -T prepare python -m stackserver.prepare --accept-keys" in host.changes


def has_test_packages(host: FakeHost) -> None:
    """The test packages are installed; python and Chromium are there."""
    host.answer("python3", "*", "")
    host.answer("chromium", "*", "")
    (host.checkout / "tests").mkdir()
    lock = host.checkout / "tests" / "requirements.txt"
    lock.write_text("package==1\n")
    (host.checkout / ".venv" / "bin").mkdir(parents=True)
    python = host.checkout / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    python.chmod(0o755)
    said = subprocess.run(["cksum"], stdin=lock.open(), capture_output=True, text=True, check=True).stdout
    (host.checkout / ".venv" / "lock-sum").write_text(said.strip())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--rounds", "0"], "--rounds takes a whole number from 1, not '0'"),
        (["--rounds", "3x"], "--rounds takes a whole number from 1, not '3x'"),
        (["--rounds"], "--rounds needs a value"),
        (["--save", "page"], "--save takes docs, not 'page'"),
        (["speed"], "no row 'speed'"),
        (["../rows/flow"], "no row '../rows/flow'"),
    ],
)
def test_bench_refuses_words_that_it_does_not_know(host: FakeHost, words: list[str], problem: str) -> None:
    assert_error(host.run("bench", *words), STATUS_USAGE, problem, fix="./stack bench --help")
    assert host.calls == []


def test_bench_hands_its_words_on(host: FakeHost) -> None:
    has_test_packages(host)
    done = host.run("bench", "flow", "held", "--rounds", "7", "--quick", "--save", "docs")
    assert done.stdout == "benchmarks/compare.py flow held --quick --save docs --rounds 7\n", done.stderr
    assert host.run("bench", "--long").stdout == "benchmarks/compare.py --long\n"
    assert [call for call in host.changes if not call.startswith("python3 -c ")] == []


def test_bench_shows_a_kept_run_without_docker(host: FakeHost) -> None:
    has_test_packages(host)
    host.without("docker")
    done = host.run("bench", "--from", "build/a run.json", "--save", "docs")
    assert done.stdout == "benchmarks/compare.py --save docs --from build/a run.json\n", done.stderr
    done = host.run("bench", "--from", "a.json", "--and", "b c.json")
    assert done.stdout == "benchmarks/compare.py --from a.json --and b c.json\n", done.stderr


@pytest.mark.parametrize("words", [["bench", "--from", "x"], ["test", "unit"]])
def test_an_environment_that_is_a_link_is_never_emptied(host: FakeHost, words: list[str]) -> None:
    has_test_packages(host)
    shared = host.folder / "shared"
    (host.checkout / ".venv").rename(shared)
    (host.checkout / ".venv").symlink_to(shared)
    assert host.run(*words).returncode == 0  # as it is, it will do
    (shared / "lock-sum").write_text("of another lock")
    before = sorted(shared.rglob("*"))
    calls = len(host.calls_of("python3 -m venv"))
    assert_error(host.run(*words), STATUS_REFUSED, ".venv is a link", fix="rm .venv")
    assert (sorted(shared.rglob("*")), len(host.calls_of("python3 -m venv"))) == (before, calls)


def test_logs_of_some_services(host: FakeHost) -> None:
    assert host.run("logs", "nginx", "mlflow").returncode == 0
    assert host.calls_of("docker compose logs")[0].split()[-2:] == ["nginx", "mlflow"]


def test_metrics_are_those_of_the_server_the_fast_path_and_the_jobs(host: FakeHost) -> None:
    host.docker("compose config --services", f"printf '%s\\n' {' '.join([*SERVICES, 'backup'])}")
    for service in ("mlflow", "fastpath", "backup"):
        host.docker(f"compose exec -T {service} *", f"echo 'of_{service} 1'")
    done = host.run("metrics")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["of_mlflow 1", "of_fastpath 1", "of_backup 1"]


def test_metrics_that_cannot_be_had_point_to_the_status(host: FakeHost) -> None:
    host.docker("compose exec *", "echo service mlflow is not running >&2; exit 1")
    assert_error(
        host.run("metrics"), STATUS_FAILED, "the service mlflow gave no metrics", fix="./stack status"
    )


def healthy() -> list[str]:
    return [
        f"{name} exited 0 -" if name in {"prepare", "secrets"} else f"{name} running 0 healthy"
        for name in SERVICES
    ]


def test_status_of_a_stack_that_is_well(host: FakeHost) -> None:
    host.containers(*healthy())
    done = host.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "project mlflow-stack at http://127.0.0.1:8080" in done.stdout
    status = json.loads(host.run("status", "--json").stdout)
    assert status["ok"] is True
    assert [entry["service"] for entry in status["services"]] == SERVICES
    assert host.changes == []


@pytest.mark.parametrize(
    ("size", "free", "full"),
    [
        (500_000_000_000, 20_000_000_000, False),  # 4 %, and far from the end
        (40_000_000, 3_000_000, False),
        (500_000_000_000, 2_000_000_000, True),
        (40_000_000, 0, True),
        (50_000_000_000_000, 3_000_000_000, False),
    ],
)
def test_status_names_a_disk_that_is_nearly_full(host: FakeHost, size: int, free: int, full: bool) -> None:
    host.containers(*healthy())
    host.docker("compose exec -T postgres df *", f"echo 1B-blocks Avail; echo {size} {free}")
    done = host.run("status")
    assert done.returncode == (STATUS_FAILED if full else 0)
    said = f"error: the disk is nearly full: postgres ({free // 2**20} MB left)"
    assert (said in done.stderr) == full
    assert f"disk of postgres {free / 1e9:.1f} of {size / 1e9:.1f} GB free" in done.stdout
    status = json.loads(host.run("status", "--json").stdout)
    assert status["ok"] is not full
    assert status["room"] == [{"service": "postgres", "bytes": size, "free_bytes": free}]


def test_status_names_what_is_not_well_and_what_is_missing(host: FakeHost) -> None:
    states = [state for state in healthy() if not state.startswith("auth ")]
    host.containers(
        *[state.replace("mlflow running 0 healthy", "mlflow running 0 unhealthy") for state in states]
    )
    done = host.run("status")
    assert done.returncode == STATUS_FAILED
    assert "error: not there: auth\n" in done.stderr
    assert "error: not well: mlflow\n" in done.stderr
    assert "fix:   ./stack logs SERVICE" in done.stderr
    done = host.run("status", "--json")
    assert done.returncode == STATUS_FAILED
    assert json.loads(done.stdout)["ok"] is False


def test_the_certificate_is_shown_or_asked_for_anew(host: FakeHost) -> None:
    host.docker("compose exec -T acme *", "echo certificate for a.example.com")
    assert host.run("certificate", TLS_MODE="acme").stdout == "certificate for a.example.com\n"
    assert host.calls[-1] == "docker compose exec -T acme stackops acme status"
    assert host.run("certificate", "--renew", TLS_MODE="acme").returncode == 0
    assert host.calls[-1] == "docker compose exec -T acme stackops acme obtain --renew"
    host.docker("compose exec -T acme *", "echo 'error: no answer' >&2; exit 1")
    assert host.run("certificate", TLS_MODE="acme").returncode == STATUS_FAILED


@pytest.mark.parametrize("mode", ["off", "files", "self-signed"])
def test_a_certificate_that_no_acme_server_gives_is_not_looked_after(host: FakeHost, mode: str) -> None:
    done = host.run("certificate", "--renew", TLS_MODE=mode)
    assert_error(done, STATUS_REFUSED, f"TLS_MODE is {mode}", fix="docs/access.md")
    assert host.changes == []


def test_status_tells_of_the_certificate_where_a_service_looks_after_it(host: FakeHost) -> None:
    host.containers(*healthy(), "acme running 0 healthy")
    host.docker("compose exec -T acme stackops acme status", "echo certificate for a.example.com")
    host.docker("compose exec -T acme stackops acme status --json", 'echo \'{"problem": ""}\'')
    done = host.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  certificate for a.example.com\n" in done.stdout
    found = json.loads(host.run("status", "--json").stdout)
    assert (found["ok"], found["certificate"]) == (True, {"problem": ""})
    failing = "echo certificate for a.example.com; echo 'error: no answer' >&2; exit 1"
    host.docker("compose exec -T acme stackops acme status", failing)
    host.docker("compose exec -T acme stackops acme status --json", 'echo \'{"problem": "x"}\'; exit 1')
    done = host.run("status")
    assert done.returncode == STATUS_FAILED
    assert "  certificate for a.example.com\n" in done.stdout
    assert "error: no answer" in done.stderr
    done = host.run("status", "--json")
    assert done.returncode == STATUS_FAILED
    assert json.loads(done.stdout)["ok"] is False
