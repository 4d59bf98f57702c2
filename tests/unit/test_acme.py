"""The door's certificate by an ACME server: who may have one, what certbot is told, what reaches the door."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit.backups import program, settings_in
from stackops import acme, acme_verbs, certbot, healthy, metrics, state, tls
from stackops.acme import AcmeSettings
from stackops.errors import FailedError, OperationError

NAME = "mlflow.example.com"
GOOD = {"TLS_MODE": "acme", "PUBLIC_URL": f"https://{NAME}"}


def pair(name: str = NAME, *, begins: int = -1, ends: int = 90) -> tuple[str, str]:
    """Return a certificate for a name that is valid for these days from now, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "An Authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    )


@pytest.fixture
def settings(tmp_path: Path) -> AcmeSettings:
    folder = tmp_path / "acme"
    folder.mkdir()
    made = AcmeSettings(NAME, "https://acme.example.com:14000/dir", folder=folder)
    acme.make_folders(made, tmp_path / "no-ca.pem", own=False)
    return made


@pytest.fixture
def server(settings: AcmeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    return Server(settings, tmp_path)


class Server:
    """A certbot that gives what it was told to give."""

    def __init__(self, settings: AcmeSettings, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.live = certbot.lineage(settings)
        self.gives(*pair())

    def gives(self, chain: str, key: str) -> None:
        for name, text in (("fullchain.pem", chain), ("privkey.pem", key)):
            (self.folder / name).write_text(text)
        copied = f"mkdir -p {self.live}; cp {self.folder}/*.pem {self.live}/"
        program(self.folder / "bin", "certbot", f'echo "$@" >>{self.calls}; env >{self.folder}/env; {copied}')

    def fails(self, words: str) -> None:
        program(self.folder / "bin", "certbot", f"echo \"$@\" >>{self.calls}; echo '{words}' >&2; exit 1")

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.mark.parametrize(
    "public_url",
    [
        *("", "http://mlflow.example.com", "https://localhost", "https://mlflow.localhost", "https://mlflow"),
        *("https://192.0.2.1", "https://[2001:db8::1]:443", "https://-a.example.com", "https://a..b.com"),
        "https://mlflow.example.com.1",
    ],
)
def test_no_name_that_a_server_could_vouch_for_is_refused(public_url: str, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="needs a PUBLIC_URL with https and a name"):
        acme.read_settings({**GOOD, "PUBLIC_URL": public_url})
    with pytest.raises(OperationError, match="needs a PUBLIC_URL with https and a name"):
        tls.files("acme", tmp_path, tmp_path, public_url)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"TLS_MODE": "files"}, "TLS_MODE is files"),
        ({"TLS_MODE": ""}, "TLS_MODE is off"),
        ({"ACME_SERVER": "http://acme.example.com/dir"}, "no https address"),
        ({"ACME_SERVER": "https://acme.example.com"}, "no https address"),
        ({"ACME_SERVER": "https://me:secret@acme.example.com/dir"}, "no https address"),
        ({"ACME_SERVER": "https://acme.example.com/dir --no-verify-ssl"}, "no https address"),
        ({"ACME_EMAIL": "me"}, "no address"),
        ({"ACME_EMAIL": "me@example.com,you@example.com"}, "no address"),
    ],
)
def test_a_wrong_setting_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(OperationError, match=says):
        acme.read_settings({**GOOD, **given})


def test_empty_settings_are_the_defaults() -> None:
    found = acme.read_settings({**GOOD, "ACME_SERVER": "", "ACME_EMAIL": ""})
    assert found == AcmeSettings(NAME, acme.LETS_ENCRYPT)
    assert acme.read_settings({**GOOD, "PUBLIC_URL": "https://MLflow.example.com:8443/"}).name == NAME


def test_the_first_certificate_is_asked_for_and_later_ones_are_renewals(settings: AcmeSettings) -> None:
    first = certbot.words(settings, renew=False)
    assert first[:2] == ["certbot", "certonly"]
    assert {"--agree-tos", "--webroot", "--register-unsafely-without-email", settings.server} <= set(first)
    with_email = AcmeSettings(NAME, settings.server, "me@example.com", settings.folder)
    assert "--email me@example.com" in " ".join(certbot.words(with_email, renew=False))
    conf = certbot.home(settings) / "renewal" / f"{NAME}.conf"
    conf.parent.mkdir(parents=True)
    conf.touch()
    later = certbot.words(settings, renew=False)
    assert later[:2] == ["certbot", "renew"]
    assert "--force-renewal" not in later
    assert [*later, "--force-renewal"] == certbot.words(settings, renew=True)


def test_another_server_or_name_begins_anew(settings: AcmeSettings) -> None:
    (certbot.home(settings) / "renewal").mkdir(parents=True)
    (certbot.home(settings) / "renewal" / f"{NAME}.conf").touch()
    other_server = AcmeSettings(NAME, "https://acme.example.com:14000/other", folder=settings.folder)
    other_name = AcmeSettings("other.example.com", settings.server, folder=settings.folder)
    for other in (other_server, other_name):
        assert certbot.words(other, renew=False)[1] == "certonly"
    odd = AcmeSettings(NAME, "https://x/../../../y", folder=settings.folder)
    assert certbot.home(odd).parent == certbot.home(settings).parent


def test_what_certbot_got_reaches_the_door_in_one_file(settings: AcmeSettings, server: Server) -> None:
    result = acme.obtain(settings)
    assert result.ok
    text = settings.door.read_text()
    assert text == (server.folder / "fullchain.pem").read_text() + (server.folder / "privkey.pem").read_text()
    assert settings.door.stat().st_mode & 0o777 == 0o440
    assert certbot.home(settings).stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in settings.folder.iterdir()) == [
        *("certbot", "challenges", "door.pem", "state"),
    ]
    found = acme.status(settings)
    assert (found["name"], found["issuer"], found["problem"]) == (NAME, "An Authority", "")
    assert acme.line(found).startswith(f"certificate for {NAME} by An Authority until 20")
    assert "PRIVATE" not in (settings.folder / acme.STATE).read_text()


def test_the_same_certificate_is_not_written_again(settings: AcmeSettings, server: Server) -> None:
    acme.obtain(settings)
    before = settings.door.stat()
    acme.obtain(settings)
    assert settings.door.stat() == before


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: pair("other.example.com"), "not for mlflow.example.com"),
        (lambda: pair(begins=-20, ends=-10), "not now"),
        (lambda: (pair()[0], pair()[1]), "the key is not that of the certificate"),
        (lambda: ("garbage", "garbage"), "broken certificate"),
    ],
    ids=["another name", "ended", "another key", "garbage"],
)
def test_what_is_no_good_never_reaches_the_door(
    settings: AcmeSettings, server: Server, given: Callable[[], tuple[str, str]], says: str
) -> None:
    acme.obtain(settings)
    before = settings.door.read_text()
    server.gives(*given())
    with pytest.raises(OperationError, match=says):
        acme.obtain(settings, renew=True)
    assert settings.door.read_text() == before
    assert says in acme.status(settings)["problem"]


def test_a_failure_keeps_the_old_certificate_and_shows_until_it_works_again(
    settings: AcmeSettings, server: Server, tmp_path: Path
) -> None:
    acme.obtain(settings)
    before, first = settings.door.read_text(), acme.last(settings)
    server.fails("Timeout during connect (likely firewall problem)")
    with pytest.raises(FailedError, match="firewall") as raised:
        acme.obtain(settings, renew=True)
    assert f"port 80 of {NAME}" in raised.value.fix
    assert settings.door.read_text() == before
    found = acme.status(settings)
    assert "firewall" in found["problem"]
    assert found["name"] == NAME
    assert acme.last(settings).last_success == first.last_success
    assert "stack_certificate_ok 0.0" in shown_metrics(settings, tmp_path)
    server.gives(*pair())
    acme.obtain(settings)
    assert acme.status(settings)["problem"] == ""
    text = shown_metrics(settings, tmp_path)
    assert "stack_certificate_ok 1.0" in text
    assert f"stack_certificate_end_timestamp_seconds {acme.at_the_door(settings)['ends']}" in text


def test_a_server_that_is_not_believed_is_a_matter_of_trust_not_of_ports(
    settings: AcmeSettings, server: Server
) -> None:
    server.fails("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    with pytest.raises(FailedError, match="CERTIFICATE_VERIFY_FAILED") as raised:
        acme.obtain(settings)
    assert raised.value.fix.startswith("put the certificate of the authority that signs for acme.example.com")
    assert acme.status(settings)["fix"] == raised.value.fix


FAILED_CHALLENGE = """certbot certonly failed with status 1: Requesting a certificate for mlflow.example.com

Certbot failed to authenticate some domains (authenticator: webroot). The Certificate Authority reported:
  Domain: mlflow.example.com
  Type:   connection
  Detail: 192.0.2.1: Fetching http://mlflow.example.com/.well-known/acme-challenge/x: Timeout during connect

Hint: The Certificate Authority failed to download the temporary challenge files created by Certbot.

Some challenges have failed.
"""
FAILED_RENEWAL = """certbot renew failed with status 1: Processing /acme/certbot/x/renewal/a.example.com.conf
Renewing an existing certificate for mlflow.example.com
- - - - - - - - - - - - - - -
Saving debug log to /tmp/certbot/letsencrypt.log
Failed to renew certificate mlflow.example.com with error: Could not be reached
All renewals failed. The following certificates could not be renewed:
  /acme/certbot/x/live/mlflow.example.com/fullchain.pem (failure)
1 renew failure(s), 0 parse failure(s)
Ask for help or search for solutions at https://community.letsencrypt.org.
"""


def test_of_what_certbot_said_the_reason_stays() -> None:
    assert certbot.reason(FAILED_CHALLENGE) == (
        "192.0.2.1: Fetching http://mlflow.example.com/.well-known/acme-challenge/x: Timeout during connect"
    )
    assert certbot.reason(FAILED_RENEWAL) == (
        "Failed to renew certificate mlflow.example.com with error: Could not be reached"
    )
    assert certbot.reason("certbot renew failed with status 1: \n") == "certbot renew failed with status 1"
    assert certbot.reason("certbot renew took longer than 600 s") == "certbot renew took longer than 600 s"


def shown_metrics(settings: AcmeSettings, folder: Path) -> str:
    collector = metrics.StateCollector(settings_in(folder, acme=settings.folder))
    samples = (sample for family in collector.collect() for sample in family.samples)
    return "\n".join(f"{sample.name} {sample.value}" for sample in samples)


def test_without_an_acme_volume_there_is_no_metric_of_it(settings: AcmeSettings, tmp_path: Path) -> None:
    assert "certificate" not in shown_metrics(settings, tmp_path)


def test_status_before_the_first_certificate_and_after_its_end(settings: AcmeSettings) -> None:
    found = acme.status(settings)
    assert found["problem"] == "it was not asked for yet"
    assert "no client trusts" in acme.line(found)
    settings.door.write_text("".join(pair(begins=-20, ends=-10)))
    assert acme.status(settings)["problem"] == "it has ended"


def test_who_waited_for_anothers_attempt_takes_its_result(
    settings: AcmeSettings, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """./stack up must not ask a server a second time that refused the service a moment ago."""

    @contextmanager
    def after_another(*_place: object, **_how: object) -> Iterator[None]:
        other = state.JobResult("certificate", time.time(), 0, ok=False, message="refused")
        state.write_json(settings.folder / acme.STATE, vars(other))
        yield

    with monkeypatch.context() as patched:
        patched.setattr(state, "only_one", after_another)
        with pytest.raises(FailedError, match="refused"):
            acme.obtain(settings)
    assert server.asked == []
    acme.obtain(settings)
    assert len(server.asked) == 1


def test_a_private_authority_is_trusted_by_certbot_until_it_is_taken_away(
    settings: AcmeSettings, server: Server, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text(pair()[0])
    acme.make_folders(settings, authority, own=False)
    acme.obtain(settings)
    assert f"REQUESTS_CA_BUNDLE={settings.authorities}\n" in (tmp_path / "env").read_text()
    assert settings.authorities.read_text() == authority.read_text()
    authority.unlink()
    acme.make_folders(settings, authority, own=False)
    acme.obtain(settings)
    assert "REQUESTS_CA_BUNDLE" not in (tmp_path / "env").read_text()


def test_an_authority_that_is_none_is_refused_and_changes_nothing(
    settings: AcmeSettings, tmp_path: Path
) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("my authority")
    with pytest.raises(OperationError, match=r"config/tls/ca\.pem holds no certificate"):
        acme.make_folders(settings, authority, own=False)
    assert not settings.authorities.exists()


def test_without_its_volume_the_mode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OperationError, match="the service that gets certificates is not there") as raised:
        acme_verbs.prepare(tmp_path / "acme", tmp_path)
    assert "compose/acme.yml" in raised.value.fix
    monkeypatch.setenv("TLS_MODE", "off")
    acme_verbs.prepare(tmp_path / "acme", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_up_only_warns_while_the_present_certificate_holds(
    settings: AcmeSettings, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    acme.obtain(settings)
    server.fails("the server is down")
    acme_verbs.obtain(settings, renew=False)
    said = capsys.readouterr()
    assert "warning: the certificate was not renewed" in said.err
    assert "the server is down" in said.err
    assert said.out.startswith(f"certificate for {NAME}")
    with pytest.raises(FailedError, match="the server is down"):
        acme_verbs.obtain(settings, renew=True)
    settings.door.unlink()
    with pytest.raises(FailedError, match="the server is down"):
        acme_verbs.obtain(settings, renew=False)


def test_the_service_is_healthy_while_its_loop_turns(settings: AcmeSettings) -> None:
    assert healthy.problems_of_loop(settings.folder) != []
    state.write_json(settings.folder / acme.TURN, {"next": time.time() - 10})
    assert healthy.problems_of_loop(settings.folder) == []
    state.write_json(settings.folder / acme.TURN, {"next": time.time() - 500})
    assert "has not turned" in healthy.problems_of_loop(settings.folder)[0]
