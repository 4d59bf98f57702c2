"""The certificate of the door: the operator's own, or one that the stack signs itself.

That of an ACME server comes later (acme.py); until then the stack's own stands in for it.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stackops.errors import OperationError

MODES = ("off", "self-signed", "files", "acme")
CERTIFICATE, KEY = "nginx/cert.pem", "nginx/key.pem"
"""Where nginx finds them, below the volume of secrets."""
NAME = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
"""A name of at least two parts whose last is no number: no address, and not `localhost`."""
VALID_DAYS = 825
RENEW_DAYS = 60
"""A self-signed certificate is made anew when it ends so soon."""


def files(mode: str, folder: Path, volume: Path, public_url: str, bind_address: str = "") -> dict[str, str]:
    """Return the text of each file that nginx reads, by its path below the volume.

    `folder` is config/tls, with the operator's cert.pem and key.pem. Raise OperationError if they
    are missing, broken, expired or do not belong together, or if no ACME server could vouch for
    `public_url`.
    """
    if mode not in MODES:
        raise OperationError(
            f"TLS_MODE is '{mode}': not one of {', '.join(MODES)}", "correct TLS_MODE in .env"
        )
    if mode == "off":
        return {CERTIFICATE: "", KEY: ""}
    if mode == "files":
        return _own(folder)
    if mode == "acme":
        public_name(public_url)
    kept = {name: path.read_text() for name in (CERTIFICATE, KEY) if (path := volume / name).exists()}
    names = _names(public_url, bind_address)
    if len(kept) == 2 and _is_good(kept[CERTIFICATE], names):
        return kept
    return _self_signed(names)


def _own(folder: Path) -> dict[str, str]:
    found = {}
    for name, file in ((CERTIFICATE, "cert.pem"), (KEY, "key.pem")):
        try:
            found[name] = (folder / file).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise OperationError(
                f"config/tls/{file} cannot be read: {error}; nothing was changed",
                "put cert.pem (with the chain below it) and key.pem into config/tls",
            ) from error
    fix = "put a certificate that is valid now, and its key, into config/tls, then ./stack up"
    check_pair(found[CERTIFICATE], found[KEY], where="config/tls", fix=fix)
    return found


def check_pair(certificate_text: str, key_text: str, *, where: str, fix: str) -> x509.Certificate:
    """Return a certificate (the first, where others sign it) that is valid now and has this key.

    Raise OperationError with `fix` if it is broken, expired, or the key is of another one.
    """
    try:
        certificate = x509.load_pem_x509_certificates(certificate_text.encode())[0]
        key = serialization.load_pem_private_key(key_text.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise OperationError(f"{where} has a broken certificate or key: {error}", fix) from error
    if key.public_key() != certificate.public_key():
        raise OperationError(f"{where}: the key is not that of the certificate", fix)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= datetime.now(UTC) <= ends:
        raise OperationError(
            f"{where}: the certificate is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} (UTC),"
            " not now",
            fix,
        )
    return certificate


def public_name(public_url: str) -> str:
    """Return the name that an ACME server is asked to vouch for, the host of PUBLIC_URL.

    Raise OperationError if there is none: http, an address, or this machine's own name.
    """
    parts = urlsplit(public_url)
    host = parts.hostname or ""
    if parts.scheme != "https" or not NAME.fullmatch(host) or host.endswith(".localhost"):
        raise OperationError(
            f"TLS_MODE=acme needs a PUBLIC_URL with https and a name; it is '{public_url}'",
            "write the name that clients use in .env: PUBLIC_URL=https://mlflow.example.com",
        )
    return host


def _names(public_url: str, bind_address: str) -> list[x509.GeneralName]:
    """Return the names of a self-signed certificate: that of PUBLIC_URL and those of this machine."""
    own = (urlsplit(public_url).hostname or "", "localhost", "127.0.0.1", "::1", bind_address.strip("[]"))
    return [_name(host) for host in dict.fromkeys(own) if host not in {"", "0.0.0.0", "::"}]


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _is_good(text: str, names: list[x509.GeneralName]) -> bool:
    """Return whether a certificate that was made here has all names, and lasts."""
    try:
        certificate = x509.load_pem_x509_certificate(text.encode())
        known = set(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (ValueError, x509.ExtensionNotFound):
        return False
    ends = certificate.not_valid_after_utc
    return known >= set(names) and ends > datetime.now(UTC) + timedelta(days=RENEW_DAYS)


def _self_signed(names: list[x509.GeneralName]) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mlflow-stack")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return {
        CERTIFICATE: certificate.public_bytes(serialization.Encoding.PEM).decode(),
        KEY: key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    }
