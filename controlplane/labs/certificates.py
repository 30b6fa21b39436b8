"""A lab's own certificate authority, and the files that only its user may read.

The key of the authority never leaves the lab's folder; what it signs is good for this one lab.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAYS: Final = 3650


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of one lab: `ca.crt` and `ca.key` in a folder, and what it signed beside them."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """Certificate of the CA."""
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        """Its key."""
        return self.folder / "ca.key"

    def make(self) -> None:
        """Make folder and CA, once."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.certificate.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("lab-ca")
            store(self.key, pem(key))
            made = _builder(name, name, key.public_key()).add_extension(
                x509.BasicConstraints(ca=True, path_length=None), critical=True
            )
            store(self.certificate, made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def sign_server(self, file: str, user: str, *, names: tuple[str, ...], addresses: tuple[str, ...]) -> None:
        """Make `<file>.crt` and `<file>.key` of a server with these DNS names and addresses."""
        found = [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
        ]
        self._sign(file, user, (), ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName(found))

    def sign_client(self, file: str, user: str, *, groups: tuple[str, ...]) -> None:
        """Make `<file>.crt` and `<file>.key` of a client; `groups` are organisations in its subject."""
        self._sign(file, user, groups, ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def _sign(
        self,
        file: str,
        user: str,
        groups: tuple[str, ...],
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        ca_key = serialization.load_pem_private_key(self.key.read_bytes(), password=None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes()).subject
        made = _builder(_name(user, groups), issuer, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if names is not None:
            made = made.add_extension(names, critical=False)
        store(self.folder / f"{file}.key", pem(key))
        signed = made.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        store(self.folder / f"{file}.crt", signed)


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Return a private key as a PEM text without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def store(file: Path, content: bytes) -> None:
    """Write `content` so that only this user reads it; whole or not at all."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.replace(file)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(minutes=5))
    return made.not_valid_after(now + dt.timedelta(days=_DAYS))


def _name(common: str, organisations: tuple[str, ...] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organisations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])
