"""A machine in a folder: a copy of ./stack, fake commands that record their calls, a fake /.

Nothing outside the folder is read or written but /proc: PATH holds the fakes and the few real
tools named here, and absolute paths in the copied shell files point into the folder.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL_FILES = ["stack", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("scripts/host/**/*.sh")))]
VERBS = sorted(path.stem for path in ROOT.glob("scripts/host/verbs/*.sh"))

STATUS_FAILED, STATUS_USAGE, STATUS_NOT_ALLOWED, STATUS_BUSY, STATUS_REFUSED = 1, 2, 3, 4, 5

REAL_TOOLS = [
    *("awk", "basename", "cat", "chmod", "cksum", "cp", "dirname", "env", "find", "grep", "head", "install"),
    *("ln", "ls", "mkdir", "mktemp", "mv", "ps", "readlink", "rm", "rmdir", "sed", "sh", "sleep", "sort"),
    *("tail", "tar", "touch", "tr"),
]
ABSOLUTE_PATH = re.compile(r"(?<![\w.$/}])/(?=(?:etc|usr|var|run|sbin|tmp|proc/net)\b)")
SERVICES = ["auth", "fastpath", "minio", "mlflow", "nginx", "postgres", "prepare", "secrets"]

READING = re.compile(
    r"docker (info|version|--version|ps|inspect|logs|image inspect|volume inspect|buildx version"
    r"|compose (version|ps|config|logs|exec -T [a-z]+ df|exec -T acme stackops acme status))\b"
    r"|apt-get indextargets|apt-cache|dpkg|df|id|pip3 config|go env|sleep|lsof|sudo -n true"
)


class FakeHost:
    """A Debian machine with a Docker that works, until a test says otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        self.root = folder / "root"
        self.commands = folder / "bin"
        self.record = folder / "record"
        self.temporary = folder / "temporary"
        for name in ("etc", "tmp", "var/log", "var/lib/docker", "proc/net", "usr/share/keyrings"):
            (self.root / name).mkdir(parents=True)
        for path in (self.commands, self.record, self.temporary):
            path.mkdir()
        self.write("etc/os-release", 'PRETTY_NAME="Debian"\nID=debian\n')
        self.write("proc/net/tcp", "")
        self.write("usr/share/keyrings/debian-archive-keyring.gpg", "")
        self._copy_checkout()
        for tool in REAL_TOOLS:
            (self.commands / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        self._answers: dict[str, dict[str, str]] = {}
        self._make_commands()

    def _copy_checkout(self) -> None:
        for name in SHELL_FILES:
            target = self.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(ABSOLUTE_PATH.sub(f"{self.root}/", (ROOT / name).read_text()))
        (self.checkout / "stack").chmod(0o755)
        shutil.copy(ROOT / ".env.example", self.checkout)
        (self.checkout / "docker-compose.yml").touch()

    def _make_commands(self) -> None:
        self.user("root")
        self.answer("df", "*", "echo header; echo '/dev/sda1 100000 1000 50000 10% /'")
        self.answer("dockerd", "*", "")
        self.answer("apt-cache", "*", "")
        self.answer("apt-get", "*", "")
        self.answer(
            "dpkg", "--compare-versions*", '[ "$(printf "%s\\n" "$2" "$4" | sort -V | head -n 1)" = "$4" ]'
        )
        for pattern, code in {
            "*": 'echo "fake docker: not expected: $*" >&2; exit 99',
            "info": "",
            "info --format {{.DockerRootDir}}": f"echo {self.root}/var/lib/docker",
            "info --format {{.MemTotal}}": "echo 8000000000",
            "version --format {{.Server.Version}}": "echo 28.2.2",
            "--version": "echo Docker version 28.2.2",
            "compose version*": "echo 2.26.1-4",
            "buildx version": "",
            "image inspect *": "",
            "volume inspect *": "",
            "ps --filter *": "",
            "pull *": "",
            "import *": "",
            "buildx build *": f"env >{self.record}/base.environment",
            "compose*build": f"env >{self.record}/build.environment",
            "compose up *": "",
            "compose down *": "",
            "compose logs *": "",
            "compose restart *": "",
            "compose exec *": "echo metric 1",
            "compose config --services": f"printf '%s\\n' {' '.join(SERVICES)}",
            "compose config": "echo services: {}",
            "compose stop *": "",
            "compose ps --all --quiet": "",
            "compose ps --quiet *": "",
            "compose run *": "",
            "compose run *secrets show admin_password": "echo correct-horse",
        }.items():
            self.answer("docker", pattern, code)

    def write(self, path: str, text: str) -> Path:
        """Write a file of the fake /."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def settings(self, text: str) -> None:
        """Write the checkout's .env."""
        (self.checkout / ".env").write_text(text)

    def answer(self, command: str, pattern: str, code: str) -> None:
        """Make a fake command run shell code when its arguments fit the pattern (* is anything).

        A later answer goes before an earlier one.
        """
        answers = self._answers.setdefault(command, {})
        answers.pop(pattern, None)
        answers[pattern] = code
        lines = ["#!/bin/sh", f'printf "%s\\n" "{command} $*" >>{self.record}/calls', 'case "$*" in']
        for known, answer in reversed(answers.items()):
            quoted = "*".join(shlex.quote(part) if part else "" for part in known.split("*"))
            lines.append(f"{quoted})\n{answer}\n;;")
        lines.append("esac")
        script = self.commands / command
        script.unlink(missing_ok=True)
        script.write_text("\n".join(lines) + "\n")
        script.chmod(0o755)

    def docker(self, pattern: str, code: str) -> None:
        """Make the fake docker answer otherwise."""
        self.answer("docker", pattern, code)

    def user(self, name: str) -> None:
        """Be this user: root, or somebody who is not."""
        self.answer("id", "-un", f"echo {name}")
        self.answer("id", "-u", f"echo {0 if name == 'root' else 1000}")

    def without(self, *commands: str) -> None:
        """Take commands off the machine, until `comes_back`."""
        for command in commands:
            (self.commands / command).rename(self.record / command)

    def comes_back(self, command: str) -> str:
        """Return shell code that puts a removed command back."""
        return f"mv {self.record}/{command} {self.commands}/{command}"

    def containers(self, *states: str) -> None:
        """Have containers: each of `states` is "SERVICE STATE EXIT HEALTH", named after its service."""
        names = [state.split()[0] for state in states]
        self.docker("compose ps --all --quiet", f"printf '%s\\n' {' '.join(names)}")
        for state in states:
            name, status, exit_status, health = state.split()
            self.docker(f"inspect --format *{name}", f"echo '{state}'")
            self.docker(
                f"inspect --format *RestartCount*{name}",
                f"echo '{name} {status} {health} {exit_status} 0 /p-{name}-1'",
            )
            self.docker(f"inspect --format *Health.Log*{name}", f"echo 'probe of {name} failed'")
            self.docker(f"logs *{name}", f"echo 'last line of {name}'")

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the whole environment of a command on this machine."""
        return {
            "PATH": str(self.commands),
            "HOME": str(self.root),
            "TMPDIR": str(self.temporary),
            "LC_ALL": "C.UTF-8",
            **extra,
        }

    def run(
        self, *words: str, program: Path | None = None, cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ./stack WORDS… without a terminal; `extra` is added to the environment."""
        return subprocess.run(
            [str(program or self.checkout / "stack"), *words],
            cwd=cwd or self.checkout,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run_at_terminal(self, *words: str, typed: str) -> subprocess.CompletedProcess[str]:
        """Run ./stack WORDS… with a terminal as its standard input, and type there."""
        ours, theirs = pty.openpty()
        try:
            os.write(ours, typed.encode())
            done = subprocess.run(
                [str(self.checkout / "stack"), *words],
                cwd=self.checkout,
                env=self.environment(),
                stdin=theirs,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            done.stderr = done.stderr.replace("[y/N] ", "[y/N]\n")  # the terminal echoes Enter, not to us
            return done
        finally:
            os.close(ours)
            os.close(theirs)

    def start(self, *words: str, **extra: str) -> subprocess.Popen[str]:
        """Start ./stack WORDS… in a process group of its own and do not wait for it."""
        return subprocess.Popen(
            # Ctrl-C counts, as at a terminal, also where these tests run in the background.
            ["/usr/bin/env", "--default-signal=INT,HUP,TERM", str(self.checkout / "stack"), *words],
            cwd=self.checkout,
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def calls(self) -> list[str]:
        """All calls of fake commands so far, as "COMMAND ARGUMENTS…"."""
        file = self.record / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def calls_of(self, start: str) -> list[str]:
        """The calls that begin so."""
        return [call for call in self.calls if call.startswith(start)]

    @property
    def changes(self) -> list[str]:
        """The calls that would change something on a real machine."""
        return [call for call in self.calls if not READING.match(call)]

    def environment_of(self, what: str) -> dict[str, str]:
        """The environment that a build ("build": the images, "base": the base image) was given."""
        lines = (self.record / f"{what}.environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def lock(self) -> Path:
        """The lock of the default project."""
        return self.root / "tmp" / "mlflow-stack.stack-lock"


def assert_error(
    done: subprocess.CompletedProcess[str], status: int, *words: str, fix: str | None = None
) -> None:
    """One error, with its fix, and this exit status; every one of `words` is in the message."""
    lines = done.stderr.splitlines()
    assert done.returncode == status, done.stderr
    assert len([line for line in lines if line.startswith("error: ")]) == 1, done.stderr
    fixes = [line.removeprefix("fix: ") for line in lines if line.startswith("fix: ")]
    assert len(fixes) == 1, done.stderr
    for word in words:
        assert word in done.stderr, f"{word!r} is not in: {done.stderr}"
    if fix is not None:
        assert fix in fixes[0], done.stderr


@contextmanager
def listening(address: str = "127.0.0.1") -> Iterator[int]:
    """Listen on a free port of `address`, and give the port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.socket(family)) as listener:
        listener.bind((address, 0))
        listener.listen()
        yield listener.getsockname()[1]
