"""Checks of the machine and the installation of Docker, on machines that lack one thing each."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.fake_host import STATUS_FAILED, STATUS_NOT_ALLOWED, STATUS_REFUSED, FakeHost, assert_error, listening

INDEX_TARGETS = "Debian|http://mirror.example.com/debian|http://mirror.example.com/debian/"
SILENT = "echo 'Cannot connect to the Docker daemon' >&2; exit 1"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def without_docker(host: FakeHost) -> None:
    """A machine on which apt can install Docker: its packages put the commands there."""
    host.without("docker", "dockerd")
    host.answer("apt-cache", "policy docker-compose", "echo '  Candidate: 2.26.1-4'")
    host.answer("apt-cache", "policy docker-buildx", "echo '  Candidate: 0.13.1+ds1-3'")
    host.answer(
        "apt-get", "install *docker.io*", f"{host.comes_back('docker')}; {host.comes_back('dockerd')}"
    )


def with_old_compose(host: FakeHost) -> None:
    """Compose 2.20 until a newer one lies in Docker's plugin folder."""
    plugins = host.root / "usr/local/lib/docker/cli-plugins"
    host.docker(
        "compose version*", f"if [ -x {plugins}/docker-compose ]; then echo 2.26.1-4; else echo v2.20.3; fi"
    )
    host.answer("apt-get", "indextargets *", f"echo '{INDEX_TARGETS}'")
    host.answer(
        "apt-get",
        "download *",
        f"cp $APT_CONFIG {host.record}/apt.conf; cp ${{APT_CONFIG%apt.conf}}sources.list {host.record}/"
        "; touch compose.deb",
    )
    host.answer(
        "dpkg-deb",
        "--extract *",
        "mkdir -p $3/usr/libexec/docker/cli-plugins; touch $3/usr/libexec/docker/cli-plugins/docker-compose",
    )


# The engine


@pytest.mark.parametrize("version", ["19.03.15", "18.06.1-ce", "nonsense"])
def test_an_engine_that_is_too_old_is_refused(host: FakeHost, version: str) -> None:
    host.docker("version --format {{.Server.Version}}", f"echo {version}")
    done = host.run("up")
    assert_error(
        done,
        STATUS_REFUSED,
        f"Docker Engine {version} is too old; 20.10 or newer",
        "nothing was changed",
        fix="upgrade",
    )
    assert host.changes == []


def test_an_engine_that_is_too_old_is_refused_before_plugins_are_installed_for_it(host: FakeHost) -> None:
    host.docker("version --format {{.Server.Version}}", "echo 19.03.15")
    host.docker("compose *", "exit 1")
    host.docker("buildx *", "exit 1")
    assert_error(host.run("up"), STATUS_REFUSED, "Docker Engine 19.03.15 is too old")
    assert host.changes == []


def test_the_oldest_engine_that_is_good_enough(host: FakeHost) -> None:
    host.docker("version --format {{.Server.Version}}", "echo 20.10.24+dfsg1")
    assert host.run("up").returncode == 0


def test_no_permission_on_the_socket_names_the_user_and_the_group(host: FakeHost) -> None:
    host.user("ann")
    host.docker(
        "info", "echo 'Got permission denied while trying to connect to the Docker socket' >&2; exit 1"
    )
    done = host.run("up")
    assert_error(
        done,
        STATUS_NOT_ALLOWED,
        "you (ann) may not use Docker's socket",
        fix="sudo usermod --append --groups docker ann",
    )
    assert "sudo ./stack up" in done.stderr
    assert host.changes == []
    assert not host.lock.exists()


def test_a_silent_daemon_is_for_root_to_start(host: FakeHost) -> None:
    host.user("ann")
    host.docker("info", SILENT)
    done = host.run("up")
    assert_error(
        done, STATUS_NOT_ALLOWED, "the Docker daemon does not answer", fix="sudo systemctl start docker"
    )
    assert host.changes == []


def test_a_silent_daemon_elsewhere_is_not_started_here(host: FakeHost) -> None:
    host.docker("info", SILENT)
    done = host.run("up", DOCKER_HOST="tcp://builder.example.com:2376")
    assert_error(done, STATUS_REFUSED, "tcp://builder.example.com:2376", fix="unset DOCKER_HOST")
    assert host.changes == []


@pytest.mark.parametrize("systemd", [True, False])
def test_root_starts_a_daemon_that_does_not_run(host: FakeHost, systemd: bool) -> None:
    started = host.record / "started"
    host.docker("info", f"[ -e {started} ]")
    host.answer("systemctl", "enable --quiet --now docker", f": >{started}")
    host.answer("setsid", "dockerd", f"echo dockerd says hello; : >{started}")
    if systemd:
        (host.root / "run/systemd/system").mkdir(parents=True)
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    if systemd:
        assert "systemctl enable --quiet --now docker" in host.changes
        assert "reboot" not in done.stderr
    else:
        assert "setsid dockerd" in host.changes
        assert (
            "warning: this machine has no systemd: the daemon will not come back after a reboot"
            in done.stderr
        )
        assert (host.root / "var/log/dockerd.log").read_text() == "dockerd says hello\n"


@pytest.mark.parametrize("systemd", [True, False])
@pytest.mark.parametrize("verb", ["up", "install-docker"])
def test_a_daemon_that_does_not_start_shows_its_log(host: FakeHost, verb: str, systemd: bool) -> None:
    host.docker("info", SILENT)
    host.answer("sleep", "1", "")
    host.answer("setsid", "dockerd", "echo iptables is missing")
    host.answer("systemctl", "*", "exit 1")
    host.answer("journalctl", "*", "echo iptables is missing")
    if systemd:
        (host.root / "run/systemd/system").mkdir(parents=True)
    done = host.run(verb)
    assert_error(
        done,
        STATUS_FAILED,
        "does not answer after 60 s",
        "\niptables is missing\n",
        fix="journalctl --unit docker" if systemd else "dockerd.log",
    )
    assert not host.calls_of("docker compose up")


# Docker, Compose and Buildx that are not there


@pytest.mark.parametrize("distribution", ["debian", "ubuntu", '"debian"'])
def test_root_on_a_bare_machine_gets_docker_from_the_distribution(host: FakeHost, distribution: str) -> None:
    host.write("etc/os-release", f"NAME=x\nVERSION_ID=1\nID={distribution}\nID_LIKE=other\n")
    without_docker(host)
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    (install,) = host.calls_of("apt-get install")
    assert install.endswith("docker.io iptables docker-compose docker-buildx")
    assert (
        "==> missing on this machine: Docker Engine, Docker Compose 2.24 or newer, Buildx; this installs it"
        in done.stderr
    )
    assert "MLflow is ready" in done.stdout


def test_a_bare_machine_whose_distribution_has_no_plugins_gets_those_of_trixie(host: FakeHost) -> None:
    with_old_compose(host)
    without_docker(host)
    host.answer("apt-cache", "policy docker-compose", "echo '  Candidate: 1.29.2-3'")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert host.calls_of("apt-get install")[0].endswith("docker.io iptables")
    assert host.calls_of("apt-get download")
    assert (host.root / "usr/local/lib/docker/cli-plugins/docker-compose").exists()


def test_dockers_command_is_installed_where_it_is_a_package_of_its_own(host: FakeHost) -> None:
    """Debian trixie: docker.io only recommends docker-cli, and recommendations are not taken."""
    without_docker(host)
    host.answer("apt-cache", "policy docker-cli", "echo '  Candidate: 26.1.5+dfsg1-9'")
    assert host.run("install-docker").returncode == 0
    assert host.calls_of("apt-get install")[0].endswith(
        "docker.io iptables docker-cli docker-compose docker-buildx"
    )


@pytest.mark.parametrize("typed", ["n\n", "\n", "\x04"])
def test_at_a_terminal_it_asks_before_it_installs(host: FakeHost, typed: str) -> None:
    without_docker(host)
    done = host.run_at_terminal("up", typed=typed)
    assert_error(
        done,
        STATUS_REFUSED,
        "Docker was not installed",
        "you said no; nothing was changed",
        fix="./stack install-docker --yes",
    )
    assert "Go on? [y/N]" in done.stderr
    assert host.changes == []


@pytest.mark.parametrize(("words", "typed"), [(["up"], "y\n"), (["up", "--yes"], "")])
def test_at_a_terminal_yes_installs(host: FakeHost, words: list[str], typed: str) -> None:
    without_docker(host)
    done = host.run_at_terminal(*words, typed=typed)
    assert done.returncode == 0, done.stderr
    assert host.calls_of("apt-get install")


@pytest.mark.parametrize("verb", ["up", "install-docker"])
def test_who_is_not_root_gets_the_sudo_command(host: FakeHost, verb: str) -> None:
    host.user("ann")
    host.without("docker", "dockerd")
    done = host.run(verb)
    assert_error(
        done,
        STATUS_NOT_ALLOWED,
        "missing on this machine: Docker Engine",
        "only root can install it; nothing was changed",
        fix="sudo ./stack install-docker",
    )
    assert host.changes == []


@pytest.mark.parametrize("os_release", ["ID=fedora\n", "ID=arch\nID_LIKE=debian\n", None])
@pytest.mark.parametrize("user", ["root", "ann"])
def test_no_docker_on_another_distribution_is_refused(
    host: FakeHost, os_release: str | None, user: str
) -> None:
    host.user(user)
    if os_release is None:
        (host.root / "etc/os-release").unlink()
    else:
        host.write("etc/os-release", os_release)
    host.without("docker", "dockerd", "apt-get")
    done = host.run("up")
    assert_error(
        done,
        STATUS_REFUSED,
        "missing on this machine: Docker Engine",
        "Debian and Ubuntu only; nothing was changed",
        fix="install Docker Engine",
    )
    assert host.changes == []


def test_an_old_compose_on_debian_gets_the_plugins_of_trixie(host: FakeHost) -> None:
    with_old_compose(host)
    host.answer("apt-cache", "policy docker-compose", "echo '  Candidate: 1.29.2-3'")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert (
        "missing on this machine: Docker Compose 2.24 or newer (here: 2.20.3); this installs" in done.stderr
    )
    assert (host.root / "usr/local/lib/docker/cli-plugins/docker-compose").stat().st_mode & 0o777 == 0o755
    assert not host.calls_of("apt-get install")  # the engine is there already
    assert "http://mirror.example.com/debian trixie main" in (host.record / "sources.list").read_text()
    assert (
        'Dir::Etc::SourceParts "' in (host.record / "apt.conf").read_text()
    )  # not the machine's own sources
    assert list(host.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "version"),
    [("docker-compose-v2", "2.24.6+ds1-0ubuntu1"), ("docker-compose", "2.26.1-4")],
)
def test_a_distribution_with_a_new_enough_compose_gives_the_plugins(
    host: FakeHost, package: str, version: str
) -> None:
    with_old_compose(host)
    host.answer("apt-cache", f"policy {package}", f"echo '  Candidate: {version}'")
    host.answer("apt-cache", "policy docker-buildx", "echo '  Candidate: 0.13.1'")
    plugins = host.root / "usr/local/lib/docker/cli-plugins"
    host.answer(
        "apt-get",
        "install *",
        f"mkdir -p {plugins}; touch {plugins}/docker-compose; chmod +x {plugins}/docker-compose",
    )
    assert host.run("up").returncode == 0
    (install,) = host.calls_of("apt-get install")
    assert install.endswith(f" {package} docker-buildx")
    assert not host.calls_of("apt-get download")


def test_an_old_compose_for_who_is_not_root_gives_the_sudo_command(host: FakeHost) -> None:
    host.user("ann")
    with_old_compose(host)
    done = host.run("up")
    assert_error(
        done,
        STATUS_NOT_ALLOWED,
        "Docker Compose 2.24 or newer (here: 2.20.3)",
        "nothing was changed",
        fix="sudo ./stack install-docker",
    )
    assert "Docker Engine" not in done.stderr
    assert host.changes == []


def test_an_old_compose_on_another_distribution_is_no_case_for_install_docker(host: FakeHost) -> None:
    host.user("ann")
    host.write("etc/os-release", "ID=fedora\n")
    host.docker("compose version*", "exit 1")
    host.docker("buildx version", "exit 1")
    done = host.run("up")
    assert_error(
        done,
        STATUS_REFUSED,
        "missing on this machine: Docker Compose 2.24 or newer (here: none), Buildx",
        fix="Compose and Buildx plugins",
    )
    assert "./stack install-docker" not in done.stderr


@pytest.mark.parametrize("version", ["2.24.0", "v2.24.6-desktop.1", "2.26.1-4", "5.0.0", "v3.1"])
def test_compose_versions_that_are_good_enough(host: FakeHost, version: str) -> None:
    host.docker("compose version*", f"echo {version}")
    assert host.run("up").returncode == 0


def test_an_installation_after_which_compose_still_is_old_says_so(host: FakeHost) -> None:
    with_old_compose(host)
    host.docker("compose version*", "echo 2.20.3")  # the user's own plugin goes before
    done = host.run("up")
    assert_error(
        done, STATUS_FAILED, "still missing: Docker Compose 2.24 or newer (here: 2.20.3)", fix="cli-plugins"
    )
    assert not host.calls_of("docker compose up")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("update *", "apt could not read its package lists"),
        ("install *", "apt could not install: docker.io"),
        ("download *", "could not be had from http"),
    ],
)
def test_an_apt_that_fails_is_named_with_its_own_words(host: FakeHost, pattern: str, says: str) -> None:
    with_old_compose(host)
    without_docker(host)
    host.answer("apt-cache", "policy docker-compose", "echo '  Candidate: 1.29.2-3'")
    host.answer("apt-get", pattern, "echo E: no network >&2; exit 100")
    done = host.run("up")
    assert_error(done, STATUS_FAILED, says, "E: no network\n")
    assert not host.lock.exists()
    assert not host.calls_of("docker compose up")


def test_install_docker_changes_nothing_where_all_is_there(host: FakeHost) -> None:
    for user in ("root", "ann"):
        host.user(user)
        done = host.run("install-docker")
        assert done.returncode == 0, done.stderr
        assert "there already" in done.stdout
        assert "28.2.2" in done.stdout
    assert host.changes == []


def test_commands_in_sbin_are_found_by_a_user_whose_path_lacks_it(host: FakeHost) -> None:
    """`su` without a dash on Debian: root, and no /usr/sbin in PATH."""
    (host.root / "usr/sbin").mkdir(parents=True)
    (host.commands / "dockerd").rename(host.root / "usr/sbin/dockerd")
    host.docker("info", f"[ -e {host.record}/started ]")
    host.answer("setsid", "dockerd", f": >{host.record}/started")
    assert host.run("up").returncode == 0
    assert not host.calls_of("apt-get install")


# Disk, memory, port


@pytest.mark.parametrize(("built", "needed", "free"), [(True, 1000, 999), (False, 8000, 7999)])
def test_a_nearly_full_disk_is_refused(host: FakeHost, built: bool, needed: int, free: int) -> None:
    if not built:
        host.docker("image inspect mlflow-stack/nginx:latest", "exit 1")
    host.answer("df", "*", f"echo header; echo '/dev/sda1 100000 1 {free} 99% /'")
    done = host.run("up")
    assert_error(
        done,
        STATUS_REFUSED,
        f"the disk has {free} MB free",
        f"{needed} MB are needed",
        "nothing was changed",
        fix="docker builder prune",
    )
    assert host.changes == []
    host.answer("df", "*", f"echo header; echo '/dev/sda1 100000 1 {needed} 99% /'")
    assert host.run("up").returncode == 0


def test_the_disk_of_a_remote_engine_is_not_looked_for_here(host: FakeHost) -> None:
    host.docker("info --format {{.DockerRootDir}}", "echo /not/on/this/machine")
    host.answer("df", "*", "exit 1")
    assert host.run("up").returncode == 0


def test_little_memory_is_a_warning(host: FakeHost) -> None:
    host.docker("info --format {{.MemTotal}}", "echo 2147483648")
    done = host.run("up")
    assert done.returncode == 0
    assert "warning: Docker has 2048 MB of memory" in done.stderr


def really_listen(host: FakeHost) -> None:
    """Let the fake machine have the real machine's listeners."""
    for name in ("tcp", "tcp6"):
        path = host.root / "proc/net" / name
        path.unlink(missing_ok=True)
        path.symlink_to(f"/proc/net/{name}")


@pytest.mark.parametrize(
    ("listener", "bind_address"),
    [
        ("127.0.0.1", ""),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "[::]"),
    ],
)
def test_a_port_that_is_taken_is_refused_with_another_one(
    host: FakeHost, listener: str, bind_address: str
) -> None:
    really_listen(host)
    with listening(listener) as port:
        done = host.run("up", HTTP_PORT=str(port), BIND_ADDRESS=bind_address)
    assert_error(
        done, STATUS_REFUSED, f"port {port} on {bind_address or '127.0.0.1'} is taken", "nothing was changed"
    )
    other = 8080 if port == 65535 else port + 1
    assert (
        f"fix:   write HTTP_PORT={other} (or another that is free) into .env, then run ./stack up"
        in done.stderr
    )
    assert host.changes == []


def test_the_port_of_another_address_is_free_here(host: FakeHost) -> None:
    really_listen(host)
    with listening("127.0.0.2") as port:
        done = host.run("up", HTTP_PORT=str(port))
    assert done.returncode == 0, done.stderr


def test_a_port_that_nobody_listens_on_is_free(host: FakeHost) -> None:
    really_listen(host)
    with listening() as port:
        pass
    done = host.run("up", HTTP_PORT=str(port))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "ports", ["127.0.0.1:8080->80/tcp", "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp", "80/tcp, :::8080->80/tcp"]
)
def test_a_port_of_another_container_names_it(host: FakeHost, ports: str) -> None:
    host.docker("ps --filter publish=8080 *", f"echo 'shop/shop-web-1 {ports}'")
    done = host.run("up")
    assert_error(done, STATUS_REFUSED, "port 8080 on 127.0.0.1 is taken by the container shop-web-1")


def test_another_container_on_another_address_is_in_nobodys_way(host: FakeHost) -> None:
    host.docker("ps --filter publish=8080 *", "echo 'shop/shop-web-1 127.0.0.2:8080->80/tcp'")
    assert host.run("up").returncode == 0
    assert_error(host.run("up", BIND_ADDRESS="0.0.0.0"), STATUS_REFUSED, "shop-web-1")


def test_the_port_of_the_stack_itself_is_no_obstacle_to_a_second_up(host: FakeHost) -> None:
    really_listen(host)
    with listening() as port:
        other = f"shop/web 127.0.0.2:{port}->80/tcp"
        own = f"mlflow-stack/mlflow-stack-nginx-1 127.0.0.1:{port}->8080/tcp"
        host.docker(f"ps --filter publish={port} *", f"printf '%s\\n' '{other}' '{own}'")
        assert host.run("up", HTTP_PORT=str(port)).returncode == 0
        done = host.run("up", HTTP_PORT=str(port), COMPOSE_PROJECT_NAME="mlflow")
        assert_error(done, STATUS_REFUSED, "is taken by the container mlflow-stack-nginx-1")


def test_where_there_is_no_proc_lsof_is_asked(host: FakeHost) -> None:
    (host.root / "proc/net/tcp").unlink()
    host.answer("lsof", "-nP -iTCP:8080 -sTCP:LISTEN", "echo somebody")
    host.answer("lsof", "-nP -iTCP:8081 -sTCP:LISTEN", "exit 1")
    assert_error(host.run("up"), STATUS_REFUSED, "port 8080 on 127.0.0.1 is taken")
    assert host.run("up", HTTP_PORT="8081").returncode == 0


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ("", False),
        ("BIND_ADDRESS=[::1]", False),
        ("BIND_ADDRESS=127.0.0.2", False),
        ("BIND_ADDRESS=0.0.0.0", True),
        ("BIND_ADDRESS=[::]", True),
        ("BIND_ADDRESS=192.168.1.5", True),
        ("BIND_ADDRESS=0.0.0.0\nPUBLIC_URL=http://mlflow.example.com", True),
        ("BIND_ADDRESS=0.0.0.0\nPUBLIC_URL=https://mlflow.example.com", False),
    ],
)
def test_a_door_that_is_open_over_plain_http_is_a_warning(
    host: FakeHost, settings: str, warned: bool
) -> None:
    host.settings(settings)
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    assert ("warning: BIND_ADDRESS opens the stack to a network over plain HTTP" in done.stderr) is warned
