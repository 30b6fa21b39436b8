"""The certificate that the control plane gives: asked for, kept beside the gateway's identity, renewed in good time.

The key is made here for each request and goes nowhere. Chain and key lie in one file (0600), replaced whole, so a kill
leaves the old or the new pair, and a start without the control plane shows the last one. What does not fit together, or
is not good for the names that the signed configuration wants, is never shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from provisioners.gateway.protocol import CertificateAnswer, CertificateReport, CertificateWanted
from provisioners.gateway.state import StateFolder
from provisioners.gateway.tls import Certificate, fingerprint_in, server_context

log = logging.getLogger("tenantry.gateway")

FILE: Final = "certificate.pem"
PLACEHOLDER: Final = "placeholder.pem"
RENEWED_AT: Final = 2 / 3
"""Part of a certificate's life after which another one is asked for."""
SPREAD: Final = 0.05
"""Part of its life by which gateways ask at different times."""
PLACEHOLDER_LIFE: Final = timedelta(days=3650)
NO_FILES: Final = "whoever makes it has not made it yet"
_MARK: Final = "# tenantry "


class NotUsable(Exception):
    """A certificate that must not be shown; the text says why."""


@dataclass(frozen=True, slots=True)
class Held:
    """The certificate that is shown."""

    version: str
    is_own_key: bool
    """Whether its key was made here: then it is renewed by time, else only when another one is wanted."""
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    renew_at: datetime


class HomeCertificate:
    """What callers are shown where the control plane says so. Used by the event loop only."""

    def __init__(self, state: StateFolder, given: Certificate | None) -> None:
        """Show what was kept, else the files of `given`, else one that nobody trusts until there is a better one."""
        self._state: Final = state
        self._given: Final = given
        self.context: Final = given.context if given is not None else server_context()
        self.wanted: CertificateWanted | None = None
        self.held: Held | None = None
        """What is shown of the control plane's."""
        self.trouble = ""
        self.changed: Final = asyncio.Event()
        """Set when another certificate is wanted."""
        self._fingerprint = ""
        """Of what was loaded here, where that is shown and not the files of `given`."""
        self._key: ec.EllipticCurvePrivateKey | None = None
        try:
            self._show((state.path / FILE).read_bytes())
        except FileNotFoundError:
            pass
        except (OSError, NotUsable) as error:
            log.error("the certificate on disk cannot be used, another one is asked for: %s", error)  # noqa: TRY400
        self._show_placeholder()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate that is shown, in hexadecimal digits."""
        given = self._given
        return given.fingerprint if given is not None and given.is_shown and given.is_there else self._fingerprint

    def want(self, wanted: CertificateWanted | None) -> None:
        """Take from a configuration which certificate is wanted; None: the one that was given as files."""
        if wanted == self.wanted:
            return
        self.wanted = wanted
        self.trouble = ""
        if wanted is None:
            self._release()
        self.changed.set()

    def due_in_s(self, now: datetime) -> float | None:
        """Return in how many seconds a certificate is to be asked for, None while nothing is to be done."""
        if self.wanted is None:
            return None
        if self.held is None or self.held.version != self.wanted.version:
            return 0.0
        if not self.held.is_own_key:
            return None
        return max(0.0, (self.held.renew_at - now).total_seconds())

    def request_pem(self) -> str:
        """Make a key and return a request for it. Names are left out: they are not asked for."""
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self._key, hashes.SHA256())
        return made.public_bytes(Encoding.PEM).decode()

    def answered(self, answer: CertificateAnswer) -> None:
        """Show what the control plane answered and keep it. Raises `NotUsable`, `OSError`."""
        own = answer.key_pem == ""
        if own and self._key is None:
            raise NotUsable("it comes without a key")
        key = answer.key_pem.encode() if self._key is None or not own else _key_pem(self._key)
        mark = json.dumps({"version": answer.version, "own": own})
        content = f"{_MARK}{mark}\n".encode() + answer.chain_pem.encode() + key
        self._try(content)
        self._state.keep(FILE, content)
        self._show(content)
        self._key, self.trouble = None, ""
        assert self.held is not None
        log.info("callers are shown a certificate for %s until %s", ", ".join(self.held.names), self.held.not_after)

    def report(self) -> CertificateReport | None:
        """Return what the control plane is told; None where it wants none."""
        if self.wanted is None:
            waits = self._given is not None and not self._given.is_there
            return CertificateReport(trouble=NO_FILES) if waits else None
        held = self.held
        return CertificateReport(
            version="" if held is None else held.version,
            not_after=None if held is None else held.not_after,
            trouble=self.trouble[:300],
        )

    # --- showing ------------------------------------------------------------------------------------

    def _try(self, content: bytes) -> None:
        """Raise `NotUsable` for what does not fit together or is good for other names than those wanted."""
        found = read(content)
        if self.wanted is not None and not _within(self.wanted, found):
            raise NotUsable("it is for other names")
        trial = self._state.path / f"{FILE}.trial"
        self._state.keep(trial.name, content)
        try:
            server_context().load_cert_chain(trial)
        except ssl.SSLError as error:
            raise NotUsable("certificate and key do not fit together") from error
        finally:
            trial.unlink(missing_ok=True)

    def _show(self, content: bytes) -> None:
        found = read(content)
        try:
            # Tried apart first: a pair that does not fit would leave the context in use without any key.
            server_context().load_cert_chain(self._state.path / FILE)
            self.context.load_cert_chain(self._state.path / FILE)
        except ssl.SSLError as error:
            raise NotUsable("certificate and key do not fit together") from error
        self.held, self._fingerprint = found, fingerprint_in(content)
        if self._given is not None:
            self._given.is_shown = False

    def _show_placeholder(self) -> None:
        """Listen all the same: who asks how we are does not look at the certificate, and nobody else believes it."""
        if self.held is not None or (self._given is not None and self._given.is_there):
            return
        path = self._state.path / PLACEHOLDER
        if not path.exists():
            self._state.keep(PLACEHOLDER, _placeholder())
        self.context.load_cert_chain(path)
        self._fingerprint = fingerprint_in(path.read_bytes())

    def _release(self) -> None:
        if self._given is None or self.held is None:
            return  # it is shown on until we are started otherwise
        self._given.show()
        self.held = None
        (self._state.path / FILE).unlink(missing_ok=True)


def read(content: bytes) -> Held:
    """Return what a kept pair says of itself. Raises `NotUsable`."""
    first, _, _ = content.partition(b"\n")
    try:
        told = json.loads(first.decode().removeprefix(_MARK))
        version, own = str(told["version"]), bool(told["own"])
        certificate = x509.load_pem_x509_certificates(content)[0]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, KeyError, TypeError, IndexError, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise NotUsable("it cannot be read") from error
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    spread = random.uniform(0, SPREAD)  # noqa: S311 - spreads load
    return Held(
        version, own, tuple(names.get_values_for_type(x509.DNSName)), begins, ends,
        begins + (ends - begins) * (RENEWED_AT - spread),
    )  # fmt: skip


def _within(wanted: CertificateWanted, found: Held) -> bool:
    """Whether all names of a certificate are what is wanted, or single endpoints of it."""
    zones = {name.removeprefix("*.") for name in wanted.names}
    return bool(found.names) and all(name.partition(".")[2] in zones for name in found.names)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _placeholder() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "no certificate yet")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + PLACEHOLDER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM) + _key_pem(key)
