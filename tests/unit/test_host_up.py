"""./stack up after its checks: base image, build, start, and what it says when one of them fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.fake_host import STATUS_FAILED, STATUS_NOT_ALLOWED, STATUS_REFUSED, FakeHost, assert_error


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_up_says_where_mlflow_is_and_how_to_log_in(host: FakeHost) -> None:
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    for line in (
        "MLflow is ready:  http://127.0.0.1:8080",
        "User:             admin",
        "Password:         ./stack password",
        'For a shell:      eval "$(./stack env)"',
    ):
        assert line in done.stdout.splitlines()
    assert "correct-horse" not in done.stdout + done.stderr
    assert host.changes[-2:] == [
        "docker compose --progress=plain build",
        "docker compose up --detach --wait --remove-orphans --no-build",
    ]
    assert host.run("up").returncode == 0  # safe to run twice


def test_no_build_starts_the_images_that_are_there(host: FakeHost) -> None:
    done = host.run("up", "--no-build")
    assert done.returncode == 0, done.stderr
    assert host.changes == ["docker compose up --detach --wait --remove-orphans --no-build"]


def test_no_build_without_images_is_refused(host: FakeHost) -> None:
    host.docker("image inspect mlflow-stack/nginx:mine", "exit 1")
    done = host.run("up", "--no-build", IMAGE_TAG="mine")
    assert_error(done, STATUS_REFUSED, "images with the tag mine are not here", fix="./stack up")
    assert host.changes == []


# Failures


def test_a_build_that_fails_shows_its_last_lines_and_the_fix(host: FakeHost) -> None:
    host.docker(
        "compose*build",
        'i=1; while [ $i -le 50 ]; do echo "#$i step"; i=$((i + 1)); done;'
        ' echo "no route to host" >&2; exit 17',
    )
    done = host.run("up")
    assert_error(
        done,
        STATUS_FAILED,
        "#50 step\nno route to host\nerror: an image could not be built",
        "nothing that runs was touched",
        fix="then run ./stack up",
    )
    assert "#30 step\n" not in done.stderr
    assert not host.calls_of("docker compose up")


def test_a_build_that_was_killed_is_a_failure_and_the_second_up_works(host: FakeHost) -> None:
    host.docker("compose*build", "echo half done; kill -9 $$")
    done = host.run("up")
    assert_error(done, STATUS_FAILED, "half done", "an image could not be built")
    assert not host.calls_of("docker compose up")
    host.docker("compose*build", "")
    done = host.run("up")
    assert done.returncode == 0, done.stderr


def test_an_unhealthy_service_is_named_with_its_last_lines_and_the_next_command(host: FakeHost) -> None:
    host.docker("compose up *", "echo 'container p-mlflow-1 is unhealthy' >&2; exit 1")
    host.containers(
        "secrets exited 0 -", "postgres running 0 healthy", "mlflow running 0 unhealthy", "nginx created 0 -"
    )
    host.docker("logs --tail 20 mlflow", "echo 'line one'; echo 'cannot reach minio' >&2")
    done = host.run("up")
    assert_error(
        done,
        STATUS_FAILED,
        "service mlflow is running (health: unhealthy, exit status 0); its last lines:",
        "       cannot reach minio\n",
        "       probe of mlflow failed\n",
        fix="./stack logs mlflow; mend what it says, then run ./stack up again",
    )
    assert "MLflow is ready" not in done.stdout
    assert host.changes[-1].startswith("docker compose up")  # what runs keeps running


def test_every_service_that_failed_is_named(host: FakeHost) -> None:
    host.docker("compose up *", "exit 1")
    host.containers("postgres exited 1 unhealthy", "minio restarting 3 starting", "auth running 0 healthy")
    done = host.run("up")
    assert done.returncode == STATUS_FAILED
    assert "error: service postgres is exited (health: unhealthy, exit status 1)" in done.stderr
    assert "error: service minio is restarting (health: starting, exit status 3)" in done.stderr
    assert "service auth" not in done.stderr


def test_a_refusal_of_a_container_is_shown_with_its_fix(host: FakeHost) -> None:
    host.docker("compose up *", "exit 1")
    host.containers("prepare exited 78 -", "nginx created 0 -")
    host.docker(
        "logs --tail 20 prepare",
        "echo 'ready once'; printf 'REFUSED: the older schema abc\\nfix: run ./stack upgrade\\n' >&2",
    )
    done = host.run("up")
    assert_error(
        done,
        STATUS_FAILED,
        "error: prepare refused to start: the older schema abc\nfix: run ./stack upgrade",
    )


def test_a_start_that_fails_without_a_failed_service_still_has_a_fix(host: FakeHost) -> None:
    host.docker(
        "compose up *", "echo 'Bind for 127.0.0.1:8080 failed: port is already allocated' >&2; exit 1"
    )
    host.containers("nginx created 0 -")
    done = host.run("up")
    assert_error(
        done, STATUS_FAILED, "port is already allocated", "the stack did not start", fix="./stack up again"
    )


# The base image


def no_images(host: FakeHost) -> None:
    host.docker("image inspect *", "exit 1")


def no_registry(host: FakeHost) -> None:
    no_images(host)
    host.docker("pull *", "echo 'dial tcp: i/o timeout' >&2; exit 1")
    host.answer(
        "apt-get",
        "indextargets *",
        "printf '%s\\n' 'Docker|https://download.docker.com|https://download.docker.com/linux/debian/'"
        " 'Debian|http://mirror.example.com/debian-security|http://mirror.example.com/debian-security/'"
        " 'Debian|http://mirror.example.com/debian|http://mirror.example.com/debian/'",
    )
    host.answer(
        "debootstrap",
        "*",
        'for root in "$@"; do case $root in */root) break ;; esac; done; '
        "mkdir -p $root/etc/dpkg/dpkg.cfg.d $root/etc/apt/apt.conf.d; echo trixie >$root/etc/debian_version",
    )


def root_image_of(host: FakeHost) -> str:
    (build,) = host.calls_of("docker buildx build")
    return build.split("--build-arg ROOT_IMAGE=")[1].split()[0]


def test_the_root_image_is_pulled_where_a_registry_answers(host: FakeHost) -> None:
    no_images(host)
    assert host.run("up").returncode == 0
    assert "docker pull --quiet debian:trixie-slim" in host.changes
    assert root_image_of(host) == "debian:trixie-slim"
    assert not host.calls_of("apt-get")[1:]


def test_a_root_image_that_is_there_is_not_pulled_again(host: FakeHost) -> None:
    """After the first build a start needs no network."""
    assert host.run("up").returncode == 0
    assert not host.calls_of("docker pull")
    assert root_image_of(host) == "debian:trixie-slim"


def test_without_a_registry_debootstrap_makes_it_from_the_machines_own_mirror(host: FakeHost) -> None:
    no_registry(host)
    host.docker("import *", f"tar -tf $4 >{host.record}/imported")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    (call,) = host.calls_of("debootstrap")
    assert call.endswith(f"trixie {call.split()[-2]} http://mirror.example.com/debian")
    assert "with debootstrap from http://mirror.example.com/debian" in done.stderr
    (imported,) = host.calls_of("docker import")
    assert imported.endswith(" mlflow-stack/root:trixie")
    files = (host.record / "imported").read_text().splitlines()
    assert "./etc/debian_version" in files
    assert "./etc/apt/apt.conf.d/90slim" in files
    assert root_image_of(host) == "mlflow-stack/root:trixie"
    assert list(host.temporary.iterdir()) == []


def test_a_mirror_of_ones_own_choice_wins(host: FakeHost) -> None:
    no_registry(host)
    host.settings("DEBIAN_MIRROR=http://mine.example.com/debian\n")
    assert host.run("up").returncode == 0
    assert host.calls_of("debootstrap")[0].endswith(" http://mine.example.com/debian")


def test_a_mirror_list_of_a_cloud_image_is_no_mirror_for_debootstrap(host: FakeHost) -> None:
    no_registry(host)
    host.answer(
        "apt-get",
        "indextargets *",
        "echo 'Debian|mirror+file:/etc/apt/mirrors/debian.list|mirror+file:/etc/apt/mirrors/debian.list/'",
    )
    assert host.run("up").returncode == 0
    assert host.calls_of("debootstrap")[0].endswith(" http://deb.debian.org/debian")
    assert not host.environment_of("build").get("APT_MIRROR")


@pytest.mark.parametrize("lacks", ["debootstrap", "keyring"])
def test_debootstrap_and_its_keys_are_installed_where_they_are_missing(host: FakeHost, lacks: str) -> None:
    no_registry(host)
    if lacks == "debootstrap":
        host.without("debootstrap")
        host.answer("apt-get", "install *", host.comes_back("debootstrap"))
    else:
        (host.root / "usr/share/keyrings/debian-archive-keyring.gpg").unlink()
    assert host.run("up").returncode == 0
    assert host.calls_of("apt-get install")[0].endswith("debootstrap debian-archive-keyring")


def test_without_a_registry_who_is_not_root_gets_the_sudo_command(host: FakeHost) -> None:
    no_registry(host)
    host.user("ann")
    done = host.run("up")
    assert_error(
        done,
        STATUS_NOT_ALLOWED,
        "only root can make the base image",
        "nothing was built",
        fix="sudo ./stack up",
    )
    assert not host.calls_of("debootstrap")


def test_without_a_registry_and_without_apt_the_image_is_to_be_loaded(host: FakeHost) -> None:
    no_registry(host)
    host.without("apt-get")
    done = host.run("up")
    assert_error(done, STATUS_REFUSED, "no registry answers and this machine has no apt", fix="docker load")


def test_a_debootstrap_that_fails_shows_its_words_and_leaves_nothing(host: FakeHost) -> None:
    no_registry(host)
    host.answer("debootstrap", "*", "echo 'E: Failed getting release file'; exit 1")
    done = host.run("up")
    assert_error(
        done,
        STATUS_FAILED,
        "E: Failed getting release file",
        "could not make Debian trixie from http://mirror.example.com/debian",
        fix="DEBIAN_MIRROR=",
    )
    assert list(host.temporary.iterdir()) == []
    assert not host.calls_of("docker import")


@pytest.mark.parametrize("culprit", ["tar", "import"])
def test_a_root_image_that_could_not_be_packed_is_not_used(host: FakeHost, culprit: str) -> None:
    no_registry(host)
    if culprit == "tar":
        (host.commands / "tar").unlink()
        host.answer("tar", "*", "echo 'tar: No space left on device' >&2; exit 2")
    else:
        host.docker("import *", "echo 'no space left on device' >&2; exit 1")
    done = host.run("up")
    assert_error(done, STATUS_FAILED, "o space left on device", "Docker did not take what debootstrap made")
    assert not host.calls_of("docker buildx build")
    assert bool(host.calls_of("docker import")) is (culprit == "import")
    assert list(host.temporary.iterdir()) == []


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_base_image_of_ones_own_choice_is_not_built(host: FakeHost, where: str) -> None:
    no_images(host)
    setting = {"BASE_IMAGE": "registry.example.com/base:1"}
    if where == "file":
        host.settings("BASE_IMAGE=registry.example.com/base:1\n")
        setting = {}
    assert host.run("up", **setting).returncode == 0
    assert host.calls_of("docker compose --progress=plain build")
    assert not host.calls_of("docker buildx build")
    assert not host.calls_of("docker pull")


def test_a_base_image_that_cannot_be_built_says_so(host: FakeHost) -> None:
    host.docker("buildx build *", "echo 'E: Unable to locate package' >&2; exit 1")
    done = host.run("up")
    assert_error(done, STATUS_FAILED, "E: Unable to locate package", "the base image could not be built")
    assert not host.calls_of("docker compose --progress=plain build")


# What a build is given

HOST_FINDS = {
    "PIP_INDEX_URL": "https://pypi.example.com/simple",
    "PIP_EXTRA_INDEX_URL": "https://extra.example.com/simple",
    "PIP_TRUSTED_HOST": "pypi.example.com",
    "GOPROXY": "https://go.example.com",
    "GOSUMDB": "off",
    "GONOSUMDB": "example.com/*",
    "APT_MIRROR": "http://mirror.example.com/debian",
    "BUILD_HTTP_PROXY": "http://proxy.example.com:3128",
    "BUILD_HTTPS_PROXY": "http://proxy.example.com:3129",
    "BUILD_NO_PROXY": "localhost,.example.com",
}
PROXIES = {
    "HTTP_PROXY": HOST_FINDS["BUILD_HTTP_PROXY"],
    "HTTPS_PROXY": HOST_FINDS["BUILD_HTTPS_PROXY"],
    "NO_PROXY": HOST_FINDS["BUILD_NO_PROXY"],
}


def configure(host: FakeHost) -> str:
    """Give the machine settings of its own; return the path of its CA bundle."""
    for option in ("index-url", "extra-index-url", "trusted-host"):
        value = HOST_FINDS["PIP_" + option.upper().replace("-", "_")]
        host.answer("pip3", f"config get global.{option}", f"echo {value}")
    for name in ("GOPROXY", "GOSUMDB", "GONOSUMDB"):
        host.answer("go", f"env {name}", f"echo '{HOST_FINDS[name]}'")
    mirror = HOST_FINDS["APT_MIRROR"]
    host.answer("apt-get", "indextargets *", f"echo 'Debian|{mirror}|{mirror}/'")
    return str(host.write("etc/ssl/certs/ca-certificates.crt", "the host's CA\n"))


@pytest.mark.parametrize("upper", [True, False])
def test_a_build_trusts_what_the_host_trusts_and_fetches_where_it_fetches(
    host: FakeHost, upper: bool
) -> None:
    bundle = configure(host)
    proxies = PROXIES if upper else {name.lower(): value for name, value in PROXIES.items()}
    assert host.run("up", **proxies).returncode == 0
    given = host.environment_of("build")
    assert {name: given.get(name) for name in HOST_FINDS} == HOST_FINDS
    assert given["BUILD_CA_FILE"] == bundle
    (base,) = host.calls_of("docker buildx build")
    assert f"--secret id=host_ca,src={bundle}" in base
    assert f"--build-arg APT_MIRROR={HOST_FINDS['APT_MIRROR']} " in base
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        assert f"--build-arg {name}={HOST_FINDS[f'BUILD_{name}']} " in base


@pytest.mark.parametrize("where", ["file", "environment"])
def test_what_the_user_set_wins_over_what_the_host_has(host: FakeHost, where: str) -> None:
    configure(host)
    chosen = {name: f"mine-{number}" for number, name in enumerate(HOST_FINDS)}
    chosen["BUILD_CA_FILE"] = str(host.write("etc/mine.pem", "my CA\n"))
    if where == "file":
        host.settings("".join(f"{name}={value}\n" for name, value in chosen.items()))
        done = host.run("up", **PROXIES)
    else:
        done = host.run("up", **PROXIES, **chosen)
    assert done.returncode == 0, done.stderr
    given = host.environment_of("build")
    # From a file Compose takes them by itself; what ./stack exports would hide the file.
    expected = dict.fromkeys(chosen) if where == "file" else chosen
    assert {name: given.get(name) for name in chosen} == expected
    (base,) = host.calls_of("docker buildx build")
    assert f"--secret id=host_ca,src={chosen['BUILD_CA_FILE']}" in base
    assert f"--build-arg APT_MIRROR={chosen['APT_MIRROR']} " in base
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        assert f"--build-arg {name}={chosen[f'BUILD_{name}']} " in base


def test_a_host_without_settings_of_its_own_gives_none(host: FakeHost) -> None:
    host.answer("pip3", "*", "echo 'ERROR: No such key' >&2; exit 1")
    host.answer("go", "*", "exit 2")
    mirror = "http://deb.debian.org/debian"
    host.answer("apt-get", "indextargets *", f"echo 'Debian|{mirror}|{mirror}/'")
    done = host.run("up")
    assert done.returncode == 0, done.stderr
    given = host.environment_of("build")
    assert not [name for name in (*HOST_FINDS, "BUILD_CA_FILE") if given.get(name)]
    (base,) = host.calls_of("docker buildx build")
    assert "--secret id=host_ca,src=/dev/null" in base
