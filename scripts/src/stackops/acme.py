"""The service `acme`: asks an ACME server for the door's certificate and has it renewed in time.

It has a volume of its own. certbot (certbot.py) keeps account and certificates in a folder that
only this service's uid can read. What it got is checked and put into `door.pem`, which nginx
reads too. Data flow one way: nobody else writes there but `secrets`, which makes the folders.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from stackops import certbot, state, tls
from stackops.errors import FailedError, OperationError

LETS_ENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"
UID = 10008
GID = 10004
"""The group is nginx's: it reads the door's key, and nothing else of this volume."""
CHECK_SECONDS = 12 * 3600
"""How often certbot looks whether the certificate is due: twice a day, as its documentation says."""
RETRY_SECONDS = 3600
"""After a failure. Let's Encrypt takes five failed validations of a name an hour."""
STATE = "state/certificate.json"
TURN = "state/turn.json"


@dataclass(frozen=True)
class AcmeSettings:
    """Whom to ask for which name."""

    name: str
    server: str = LETS_ENCRYPT
    email: str = ""
    folder: Path = Path("/acme")

    @property
    def door(self) -> Path:
        """The certificate, those that sign it, and its key, in one file: nginx sees all or nothing new."""
        return self.folder / "door.pem"

    @property
    def challenges(self) -> Path:
        """What nginx shows to everybody below /.well-known/acme-challenge/."""
        return self.folder / "challenges"

    @property
    def authorities(self) -> Path:
        """The copy of config/tls/ca.pem: whom to trust instead of the public authorities."""
        return self.folder / "ca.pem"

    @property
    def fix(self) -> str:
        """What mends most failures."""
        return (
            f"let port 80 of {self.name} reach ACME_HTTP_PORT of this machine and the machine reach"
            f" {urlsplit(self.server).hostname}, then ./stack certificate --renew"
        )

    @property
    def trust_fix(self) -> str:
        """What mends it when the server itself is not believed."""
        return (
            f"put the certificate of the authority that signs for {urlsplit(self.server).hostname} into"
            " config/tls/ca.pem, then ./stack up"
        )


def read_settings(environment: Mapping[str, str], folder: Path = Path("/acme")) -> AcmeSettings:
    """Return the settings of an environment. Raise OperationError for a value that is none."""
    mode = environment.get("TLS_MODE", "") or "off"
    if mode != "acme":
        raise OperationError(
            f"compose/acme.yml is among the overlays, and TLS_MODE is {mode}",
            "write TLS_MODE=acme into .env, or take compose/acme.yml out of COMPOSE_FILE",
        )
    name = tls.public_name(environment.get("PUBLIC_URL", ""))
    server = environment.get("ACME_SERVER", "") or LETS_ENCRYPT
    if not re.fullmatch(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[^\s?#]*", server):
        raise OperationError(
            f"ACME_SERVER is '{server}', which is no https address of an ACME directory",
            f"correct ACME_SERVER in .env; Let's Encrypt's is {LETS_ENCRYPT}",
        )
    email = environment.get("ACME_EMAIL", "")
    if email and not re.fullmatch(r"[^\s@,]+@[^\s@,]+", email):
        raise OperationError(f"ACME_EMAIL is '{email}', which is no address", "correct ACME_EMAIL in .env")
    return AcmeSettings(name, server, email, folder)


def make_folders(settings: AcmeSettings, authorities: Path, *, own: bool = True) -> None:
    """Make the folders of the volume, and follow the operator's config/tls/ca.pem (as root).

    Raise OperationError if the volume is not there, or that file holds no certificate.
    """
    if not settings.folder.is_dir():
        raise OperationError(
            "TLS_MODE=acme, and the service that gets certificates is not there",
            "write COMPOSE_FILE=docker-compose.yml:compose/acme.yml into .env",
        )
    text = _authorities(authorities)
    for folder, mode in (
        (settings.folder, 0o711),
        (settings.challenges, 0o755),
        (settings.folder / "state", 0o755),
    ):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        if own:
            os.chown(folder, UID, GID)
    if text:
        _put(settings.authorities, text, 0o444)
    else:
        settings.authorities.unlink(missing_ok=True)


def _authorities(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        text = path.read_text(encoding="ascii")
        x509.load_pem_x509_certificates(text.encode())
    except (OSError, ValueError) as error:
        raise OperationError(
            f"config/tls/ca.pem holds no certificate: {error}",
            "put the certificates of your own authority into it (PEM), or take it away",
        ) from error
    return text


def obtain(settings: AcmeSettings, *, renew: bool = False) -> state.JobResult:
    """Have a good certificate at the door: the first one, or the next one where it is due.

    `renew`: due or not. One attempt at a time; who waited for another one's takes its result.
    What was there stays if it fails. Raise FailedError then; the result is kept for `status`.
    """
    asked = time.time()
    with state.only_one(settings.folder, "certificate", wait=True):
        before = last(settings)
        if before and before.started + before.seconds >= asked and not renew:
            if not before.ok:
                raise FailedError(before.message, before.facts.get("fix", settings.fix))
            return before
        result = state.JobResult("certificate", time.time(), 0, ok=False, message="it was stopped")
        result.last_success = before.last_success if before else None
        try:
            certbot.run(settings, renew=renew)
            publish(settings)
            result.ok, result.message, result.last_success = True, "", time.time()
        except (OperationError, OSError) as error:
            result.message = str(error)
            result.facts["fix"] = getattr(error, "fix", settings.fix)
            raise
        finally:
            result.seconds = time.time() - result.started
            result.facts |= at_the_door(settings)
            state.write_json(settings.folder / STATE, asdict(result))
        return result


def publish(settings: AcmeSettings) -> bool:
    """Put the newest certificate of certbot at the door, and return whether it is another one.

    Raise OperationError if it is not one for our name that is valid now.
    """
    folder = certbot.lineage(settings)
    chain, key = ((folder / file).read_text(encoding="ascii") for file in ("fullchain.pem", "privkey.pem"))
    certificate = tls.check_pair(chain, key, where=settings.server, fix=settings.fix)
    if settings.name not in _names(certificate):
        raise FailedError(
            f"{settings.server} gave a certificate that is not for {settings.name}", settings.fix
        )
    text = chain + key
    if settings.door.exists() and settings.door.read_text(encoding="ascii") == text:
        return False
    _put(settings.door, text, 0o440)
    return True


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _put(path: Path, text: str, mode: int) -> None:
    """Write a file in one step: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400), "w", encoding="ascii"
        ) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def at_the_door(settings: AcmeSettings) -> dict[str, Any]:
    """Return name, issuer and end (seconds since 1970) of the certificate at the door; {} without one."""
    if not settings.door.exists():
        return {}
    certificate = x509.load_pem_x509_certificates(settings.door.read_bytes())[0]
    issuer = certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return {
        "name": ", ".join(_names(certificate)),
        "issuer": issuer[0].value if issuer else certificate.issuer.rfc4514_string(),
        "ends": certificate.not_valid_after_utc.timestamp(),
    }


def last(settings: AcmeSettings) -> state.JobResult | None:
    """Return how the last attempt ended."""
    found = state.read_json(settings.folder / STATE)
    return state.JobResult(**found) if found else None


def status(settings: AcmeSettings) -> dict[str, Any]:
    """Return the certificate at the door, in `problem` what is wrong ("" if nothing is), and its `fix`."""
    result, door = last(settings), at_the_door(settings)
    problem, fix = "", settings.fix
    if result and not result.ok:
        problem, fix = result.message, result.facts.get("fix", fix)
    elif not door:
        problem = "it was not asked for yet"
    elif door["ends"] <= time.time():
        problem = "it has ended"
    return {
        "server": settings.server,
        **door,
        "tried": result.started if result else None,
        "problem": problem,
        "fix": fix if problem else "",
    }


def line(found: Mapping[str, Any]) -> str:
    """Return `at_the_door` (or `status`) for a person."""
    if "ends" in found:
        end = datetime.fromtimestamp(found["ends"], UTC)
        return f"certificate for {found['name']} by {found['issuer']} until {end:%Y-%m-%d %H:%M} (UTC)"
    return "certificate: the stack's own, which no client trusts"


def run(settings: AcmeSettings) -> None:
    """Keep the certificate good until SIGTERM or SIGINT."""
    stop = threading.Event()

    def end(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    while not stop.is_set():
        _note_turn(settings, 2 * certbot.TIMEOUT_SECONDS)  # another one's attempt, and this one
        seconds = CHECK_SECONDS
        try:
            obtain(settings)
            print(line(at_the_door(settings)), flush=True)
        except (OperationError, OSError) as error:
            seconds = RETRY_SECONDS
            print(f"error: {error}\nfix: {getattr(error, 'fix', settings.fix)}", flush=True)
        _note_turn(settings, seconds)
        stop.wait(seconds)


def _note_turn(settings: AcmeSettings, seconds: float) -> None:
    """Note when this loop must have turned again (healthy.py)."""
    state.write_json(settings.folder / TURN, {"next": time.time() + seconds})
