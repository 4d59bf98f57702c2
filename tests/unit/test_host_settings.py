"""Settings on the host: what .env and the environment may hold, and how a wrong line is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kit.backups import program
from kit.fake_host import (
    STATUS_FAILED,
    STATUS_NOT_ALLOWED,
    STATUS_REFUSED,
    FakeHost,
    assert_error,
)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("HTTP_PORT", "'HTTP_PORT' is not NAME=value"),
        ("just words", "'just words' is not NAME=value"),
        ("HTTP_PORT: 8081", "is not NAME=value"),
        ("  HTTP_PRT=8081  # typo", "there is no setting HTTP_PRT"),
        ("http_port=8081", "there is no setting http_port"),
        ("PATH=/nowhere", "there is no setting PATH"),
        ("HTTP_PORT=80a", "HTTP_PORT is '80a'"),
        ("HTTP_PORT=0", "a port is a number from 1 to 65535"),
        ("HTTP_PORT=65536", "a port is a number from 1 to 65535"),
        ("HTTP_PORT=08080", "a port is a number from 1 to 65535"),
        ("HTTP_PORT=123456789012345678901234567890", "a port is a number"),
        ("  HTTP_PORT=80a # comment", "HTTP_PORT is '80a'"),
        ("BIND_ADDRESS=localhost", "[::1]"),
        ("BIND_ADDRESS=127.0.0.256", "BIND_ADDRESS is '127.0.0.256'"),
        ("BIND_ADDRESS=127.0.1", "BIND_ADDRESS is '127.0.1'"),
        ("BIND_ADDRESS=::1", "in brackets, [::1]"),
        ("MLFLOW_MEMORY=2 gigabytes", "a size such as 512m or 2g"),
        ("POSTGRES_MEMORY=1.5g", "a size such as 512m or 2g"),
        ("MINIO_MEMORY=0", "a size such as 512m or 2g"),
        ("MLFLOW_WORKERS=two", "a whole number"),
        ("MLFLOW_THREADS=0", "a whole number from 1"),
        ("MLFLOW_GATEWAY=yes", "on or off"),
        ("AUTHORIZATION=on", "roles or rbac"),
        ("ARTIFACT_BYTES=on", "nginx or mlflow"),
        ("RBAC_DEFAULT_PERMISSION=write", "READ, USE, EDIT, MANAGE or NO_PERMISSIONS"),
        ("COMPOSE_PROJECT_NAME=My Stack", "small letters"),
        ("IMAGE_TAG=a/b", "letters, digits"),
        ("PUBLIC_URL=mlflow.example.com", "https://mlflow.example.com"),
        ("TLS_MODE=on", "off, self-signed, files or acme"),
        ("ACME_SERVER=http://acme.example.com/dir", "https address of an ACME directory"),
        ("ACME_SERVER=https://acme.example.com", "https address of an ACME directory"),
        ("ACME_EMAIL=me", "admin@example.com"),
        ("ACME_HTTP_PORT=http", "a port is a number"),
        ("PUBLIC_URL=https://mlflow.example.com/sub/path", "scheme, host"),
        ("PUBLIC_URL=https://x';touch y", "scheme, host"),
        ("DATABASE_URI=sqlite:///mlflow.db", "postgresql+psycopg2://USER@HOST/DATABASE"),
        ("DATABASE_URI=mysql://me@db/runs", "postgresql+psycopg2://USER@HOST/DATABASE"),
        ("DATABASE_URI=postgresql://db/runs", "postgresql+psycopg2://USER@HOST/DATABASE"),
        ("BUILD_CA_FILE=/no/such.pem", "no file that can be read"),
        ("COMPOSE_FILE=docker-compose.yml:compose/no-such.yml", "files that are there"),
        ('PIP_INDEX_URL="https://pypi.example.com', "quotes do not match"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number_and_nothing_is_changed(
    host: FakeHost, line: str, says: str
) -> None:
    host.settings(f"# mine\n\n{line}\n")
    done = host.run("up")
    assert_error(done, STATUS_REFUSED, ".env, line 3: ", says, "nothing was changed")
    assert host.calls == []
    assert not host.lock.exists()


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hunter2@db.example.com/runs",
        "sqlite://me:hunter2@x/y",
        '"postgresql://me:hun@ter2@db/runs"',
    ],
)
def test_a_password_in_the_database_uri_is_refused_and_not_repeated(host: FakeHost, uri: str) -> None:
    host.settings(f"DATABASE_URI={uri}\n")
    done = host.run("up")
    assert_error(
        done, STATUS_REFUSED, "line 1: DATABASE_URI holds a password", fix="config/secrets/database_password"
    )
    assert "hun" not in done.stderr
    assert host.calls == []


@pytest.mark.parametrize(
    "line",
    [
        "HTTP_PORT=9000",
        'HTTP_PORT="9000"',
        "HTTP_PORT='9000'",
        "HTTP_PORT=9000 # the port",
        'HTTP_PORT="9000"  # the "port"',
        "HTTP_PORT=9000   ",
        "HTTP_PORT=9000\r",
        "  HTTP_PORT=9000",
        "HTTP_PORT=8000\nHTTP_PORT=9000",
        "   \n\t\n\r\n  # comment = no setting\nHTTP_PORT=9000",
    ],
)
def test_lines_are_read_as_compose_reads_them(host: FakeHost, line: str) -> None:
    host.settings(line)  # without a newline at the end
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert "MLflow is ready:  http://127.0.0.1:9000\n" in done.stdout


GOOD_VALUES = {
    "BIND_ADDRESS": ["0.0.0.0", "192.168.178.20", "[fe80::1]"],
    "IMAGE_TAG": ["v1.2_Release-3"],
    "PUBLIC_URL": ["https://mlflow.example.com:8443/", "https://[2001:db8::1]:8443", "http://mlflow"],
    "MLFLOW_TMP_LIMIT": ["512M", "1073741824", "2gb"],
    "DATABASE_URI": [
        "postgresql://me@db.example.com:5433/runs?sslmode=verify-full&sslrootcert=/config/ca.pem",
        "postgres://me@db/runs",
        "postgresql+psycopg2://me%40server@db/runs # mine",
    ],
    "TRUSTED_PROXIES": ["10.0.0.0/8,192.168.1.1"],
    "COMPOSE_FILE": ["docker-compose.yml:.env.example"],
    "BUILD_CA_FILE": ["/dev/null"],
    "PIP_EXTRA_INDEX_URL": ["https://a.example.com/simple https://b.example.com/simple"],
    "PIP_INDEX_URL": ["'https://pypi.example.com/a # b'"],
}


@pytest.mark.parametrize("number", range(3))
def test_good_values_pass(host: FakeHost, number: int) -> None:
    host.settings("".join(f"{name}={values[number % len(values)]}\n" for name, values in GOOD_VALUES.items()))
    done = host.run("up")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PORT", "http", "a port is a number"),
        ("MLFLOW_GATEWAY", "1", "on or off"),
        ("POSTGRES_MEMORY", "much", "a size"),
        ("HTTP_PORT", "9000\n9001", "a port is a number"),
    ],
)
def test_a_wrong_value_in_the_environment_is_refused_and_says_where_it_stands(
    host: FakeHost, name: str, value: str, says: str
) -> None:
    host.settings(f"{name}=\n")
    done = host.run("up", **{name: value})
    assert_error(done, STATUS_REFUSED, f"the environment: {name} is '{value}'", says, fix=f"unset {name}")
    assert host.calls == []


def test_every_setting_may_be_empty_and_is_then_its_default(host: FakeHost) -> None:
    names = [
        line[1:].split("=")[0]
        for line in (host.checkout / ".env.example").read_text().splitlines()
        if line.startswith("#") and line[1:2].isupper() and "=" in line
    ]
    host.settings("".join(f"{name}=\n" for name in names))
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:8080\n" in done.stdout
    done = host.run("up", **dict.fromkeys(names, ""))
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:8080\n" in done.stdout


def test_the_environment_beats_the_file_and_an_empty_value_there_is_the_default(host: FakeHost) -> None:
    """As in Compose: a variable that is set, even to nothing, hides the line of the file."""
    host.settings("HTTP_PORT=9000\n")
    assert host.run("url").stdout == "http://127.0.0.1:9000\n"
    assert host.run("url", HTTP_PORT="9001").stdout == "http://127.0.0.1:9001\n"
    assert host.run("url", HTTP_PORT="").stdout == "http://127.0.0.1:8080\n"


def test_every_line_of_the_example_may_be_switched_on_as_it_stands(host: FakeHost) -> None:
    example = (host.checkout / ".env.example").read_text().splitlines()
    lines = [line[1:] for line in example if line[:1] == "#" and line[1:2].isupper() and "=" in line]
    assert len(lines) > 20
    host.settings("\n".join(lines) + "\n")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert host.calls_of("docker buildx build --quiet --tag mlflow-stack/base:trixie")


def test_another_settings_file_is_read_and_checked_in_place_of_env(host: FakeHost, tmp_path: Path) -> None:
    host.settings("HTTP_PORT=wrong\n")
    other = tmp_path / "with blank.env"
    other.write_text("HTTP_PORT=9002\n")
    done = host.run("up", COMPOSE_ENV_FILES=str(other))
    assert done.returncode == 0, done.stderr
    assert "http://127.0.0.1:9002\n" in done.stdout
    other.write_text("HTTP_PORT=wrong\n")
    assert_error(host.run("up", COMPOSE_ENV_FILES=str(other)), STATUS_REFUSED, f"{other}, line 1: ")


def test_of_several_settings_files_the_later_one_counts(host: FakeHost, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("HTTP_PORT=9003\nMLFLOW_GATEWAY=on")
    second.write_text("HTTP_PORT=9004")
    assert host.run("url", COMPOSE_ENV_FILES=f"{first},{second}").stdout == "http://127.0.0.1:9004\n"
    second.write_text("MLFLOW_GATEWAY=perhaps")
    done = host.run("up", COMPOSE_ENV_FILES=f"{first},{second}")
    assert_error(done, STATUS_REFUSED, "MLFLOW_GATEWAY is 'perhaps'")


def test_a_settings_file_that_is_not_there_is_refused(host: FakeHost, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch()
    for files in ("/no/such/file", f"{there},/no/such/file"):
        done = host.run("up", COMPOSE_ENV_FILES=files)
        assert_error(
            done,
            STATUS_REFUSED,
            "COMPOSE_ENV_FILES names /no/such/file, which is not there",
            fix="unset COMPOSE_ENV_FILES",
        )
    assert host.calls == []


def test_a_settings_file_that_may_not_be_read_is_refused(host: FakeHost, tmp_path: Path) -> None:
    host.settings("HTTP_PORT=9000\n")
    (host.checkout / ".env").chmod(0)
    stack = host.checkout / "stack"
    if os.geteuid() == 0:  # no mode of a file keeps root out, unless without these capabilities
        without = f"{shutil.which('setpriv')} --bounding-set=-dac_override,-dac_read_search"
        stack = program(tmp_path / "plain", "stack", f'exec {without} "{stack}" "$@"')
    assert_error(host.run("up", program=stack), STATUS_NOT_ALLOWED, "may not read .env", fix="sudo chown")


ACME = "TLS_MODE=acme\nCOMPOSE_FILE=docker-compose.yml:compose/acme.yml\n"


@pytest.fixture
def acme_host(host: FakeHost) -> FakeHost:
    (host.checkout / "compose").mkdir()
    (host.checkout / "compose/acme.yml").touch()
    return host


@pytest.mark.parametrize(
    ("settings", "says", "fix"),
    [
        ("TLS_MODE=acme\nPUBLIC_URL=https://a.example.com\n", "is not there", "compose/acme.yml in .env"),
        ("COMPOSE_FILE=docker-compose.yml:compose/acme.yml\n", "TLS_MODE is not acme", "TLS_MODE=acme"),
        (ACME, "it is ''", "PUBLIC_URL=https://mlflow.example.com"),
        *(
            (f"{ACME}PUBLIC_URL={url}\n", f"it is '{url}'", "PUBLIC_URL=https://mlflow.example.com")
            for url in (
                *("http://mlflow.example.com", "https://192.0.2.1", "https://[2001:db8::1]:8443"),
                *("https://localhost", "https://my.localhost:8080", "https://mlflow"),
            )
        ),
        (f"{ACME}PUBLIC_URL=https://a.example.com\nHTTP_PORT=80\n", "are both 80", "HTTP_PORT=443"),
    ],
)
def test_acme_without_what_belongs_to_it_is_refused(
    acme_host: FakeHost, settings: str, says: str, fix: str
) -> None:
    acme_host.settings(settings)
    assert_error(acme_host.run("up"), STATUS_REFUSED, says, "nothing was changed", fix=fix)
    assert acme_host.calls == []


@pytest.mark.parametrize("url", ["https://mlflow.example.com", "https://a-b.example.co.uk:8443/"])
def test_acme_with_what_belongs_to_it_asks_for_the_certificate_last(acme_host: FakeHost, url: str) -> None:
    acme_host.settings(f"{ACME}PUBLIC_URL={url}\nBIND_ADDRESS=0.0.0.0\nACME_HTTP_PORT=8081\n")
    done = acme_host.run("up")
    assert done.returncode == 0, done.stderr
    assert acme_host.calls[-1] == "docker compose exec -T acme stackops acme obtain"
    assert "warning" not in done.stderr


def test_the_port_that_the_acme_server_comes_to_must_be_free(acme_host: FakeHost) -> None:
    acme_host.docker("ps --filter publish=80 *", "echo 'shop/shop-web-1 127.0.0.1:80->80/tcp'")
    acme_host.settings(f"{ACME}PUBLIC_URL=https://a.example.com\n")
    done = acme_host.run("up")
    assert_error(done, STATUS_REFUSED, "port 80 on 127.0.0.1 is taken", fix="write ACME_HTTP_PORT=81")
    assert acme_host.changes == []


def test_up_fails_when_no_certificate_came_and_says_where_mlflow_is(acme_host: FakeHost) -> None:
    acme_host.settings(f"{ACME}PUBLIC_URL=https://a.example.com\nACME_HTTP_PORT=8081\n")
    acme_host.docker("compose exec -T acme *", "echo 'error: no answer at port 80' >&2; exit 1")
    done = acme_host.run("up")
    assert done.returncode == STATUS_FAILED
    assert "error: no answer at port 80" in done.stderr
    assert "forwards port 80 of https://a.example.com to port 8081" in done.stderr
    assert "MLflow is ready:  https://a.example.com" in done.stdout
