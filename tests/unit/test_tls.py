"""The certificate of the door: the operator's own is checked, the stack's own is kept while it is good."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from stackops import tls
from stackops.errors import OperationError


def make(folder: Path, *, begins: int = -1, ends: int = 10) -> rsa.RSAPrivateKey:
    """Put a certificate that is valid for these days from now, and its key, into a folder."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mlflow.example.com")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return key


def write(volume: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = volume / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def certificate(files: dict[str, str]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files[tls.CERTIFICATE].encode())


def test_the_operators_certificate_is_taken_as_it_is(tmp_path: Path) -> None:
    make(tmp_path / "tls")
    files = tls.files("files", tmp_path / "tls", tmp_path, "")
    assert files[tls.CERTIFICATE] == (tmp_path / "tls/cert.pem").read_text()
    assert files[tls.KEY] == (tmp_path / "tls/key.pem").read_text()


@pytest.mark.parametrize(
    ("days", "wrong"), [((-10, -1), "not now"), ((1, 10), "not now")], ids=["expired", "not yet valid"]
)
def test_a_certificate_that_is_not_valid_now_is_refused(
    tmp_path: Path, days: tuple[int, int], wrong: str
) -> None:
    make(tmp_path / "tls", begins=days[0], ends=days[1])
    with pytest.raises(OperationError, match=wrong):
        tls.files("files", tmp_path / "tls", tmp_path, "")


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "tls")
    key = (tmp_path / "tls/key.pem").read_text()
    make(tmp_path / "tls")
    (tmp_path / "tls/key.pem").write_text(key)
    with pytest.raises(OperationError, match="is not that of"):
        tls.files("files", tmp_path / "tls", tmp_path, "")


@pytest.mark.parametrize("file", ["cert.pem", "key.pem"])
@pytest.mark.parametrize("text", [None, "", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_missing_or_broken_file_is_refused(tmp_path: Path, file: str, text: str | None) -> None:
    make(tmp_path / "tls")
    path = tmp_path / "tls" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(OperationError, match=r"cannot be read|broken certificate or key"):
        tls.files("files", tmp_path / "tls", tmp_path, "")


def test_an_unknown_mode_is_refused_and_off_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="TLS_MODE is 'on'"):
        tls.files("on", tmp_path, tmp_path, "")
    assert tls.files("off", tmp_path, tmp_path, "") == {tls.CERTIFICATE: "", tls.KEY: ""}


def test_a_self_signed_certificate_has_the_stacks_names_and_is_kept(tmp_path: Path) -> None:
    files = tls.files("self-signed", tmp_path, tmp_path, "https://mlflow.example.com:8443")
    found = certificate(files)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mlflow.example.com", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert (
        serialization.load_pem_private_key(files[tls.KEY].encode(), None).public_key() == found.public_key()
    )
    write(tmp_path, files)
    assert tls.files("self-signed", tmp_path, tmp_path, "https://mlflow.example.com") == files
    assert tls.files("self-signed", tmp_path, tmp_path, "") == files  # it has more names than it needs
    assert tls.files("self-signed", tmp_path, tmp_path, "https://other.example.com") != files


def test_a_self_signed_certificate_that_ends_soon_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "VALID_DAYS", tls.RENEW_DAYS - 1)
    files = tls.files("self-signed", tmp_path, tmp_path, "")
    write(tmp_path, files)
    assert tls.files("self-signed", tmp_path, tmp_path, "") != files


def test_what_the_operator_had_is_not_mistaken_for_a_self_signed_one(tmp_path: Path) -> None:
    make(tmp_path / "tls")
    write(tmp_path, tls.files("files", tmp_path / "tls", tmp_path, ""))
    found = certificate(tls.files("self-signed", tmp_path, tmp_path, ""))
    assert found.subject.rfc4514_string() == "CN=mlflow-stack"
