"""certbot, which talks to the ACME server: its words, its folders, its reasons.

A folder per server: another ACME_SERVER begins anew, with an account and a certificate of its own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stackops import command
from stackops.errors import FailedError

if TYPE_CHECKING:
    from stackops.acme import AcmeSettings

TIMEOUT_SECONDS = 600
NOISE = re.compile(
    r"[-\s]*$|\s*Hint: |(Saving debug log to|Ask for help or search for|Some challenges have failed"
    r"|Requesting a certificate for|Renewing an existing certificate|Processing |An unexpected error occurred"
    r"|All renewals failed|The following certificates could|1 renew failure|\s*/\S+ \(failure\))"
)
"""Lines of certbot that help nobody outside its container; the hint is about its own options."""
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""What OpenSSL calls a server that nobody whom we trust vouches for."""


def home(settings: AcmeSettings) -> Path:
    """Return the folder of the account, the certificates and the settings that belong to a server."""
    address = settings.server.removeprefix("https://")
    return settings.folder / "certbot" / re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-.")


def lineage(settings: AcmeSettings) -> Path:
    """Return the folder with the newest certificate (fullchain.pem) and its key (privkey.pem)."""
    return home(settings) / "live" / settings.name


def words(settings: AcmeSettings, *, renew: bool) -> list[str]:
    """Return the command line that gets the first certificate, or has it renewed if that is due.

    Due is what certbot says: when the server wants it (ARI, RFC 9773), else with a third of the
    lifetime left. `renew`: due or not. A certificate that is not due costs the server one question.
    """
    folders = {"config": home(settings), "work": home(settings) / "work", "logs": "/tmp/certbot"}
    common = [
        "--non-interactive",
        *(word for name, path in folders.items() for word in (f"--{name}-dir", str(path))),
        *("--cert-name", settings.name),
    ]
    if (home(settings) / "renewal" / f"{settings.name}.conf").exists():
        forced = ["--force-renewal"] if renew else []
        return ["certbot", "renew", *common, "--no-random-sleep-on-renew", *forced]
    who = ["--email", settings.email] if settings.email else ["--register-unsafely-without-email"]
    return [
        *("certbot", "certonly", *common, "--domain", settings.name),
        *("--server", settings.server, *who, "--no-eff-email", "--agree-tos"),
        *("--webroot", "--webroot-path", str(settings.challenges)),
    ]


def run(settings: AcmeSettings, *, renew: bool) -> None:
    """Run certbot. Raise FailedError with its reasons if it did not end well."""
    for folder in (home(settings).parent, home(settings)):  # mkdir's own parents would be open
        folder.mkdir(mode=0o700, exist_ok=True)
    environment = dict(os.environ)
    if settings.authorities.exists():
        environment["REQUESTS_CA_BUNDLE"] = str(settings.authorities)
    try:
        command.run(
            words(settings, renew=renew),
            fix=settings.fix,
            timeout_seconds=TIMEOUT_SECONDS,
            environment=environment,
        )
    except FailedError as error:
        fix = settings.trust_fix if UNTRUSTED in str(error) else error.fix
        raise FailedError(reason(str(error)), fix) from error


def reason(said: str) -> str:
    """Return what a failed certbot said: what the server found, or all that helps outside its container."""
    words_of_status, _, text = said.partition(": ")
    kept = [line.strip() for line in text.splitlines() if not NOISE.match(line)]
    found = [line.removeprefix("Detail: ") for line in kept if line.startswith("Detail: ")]
    return "; ".join(found or kept) or words_of_status
