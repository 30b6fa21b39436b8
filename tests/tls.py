"""Authorities and certificates for tests, made by the same library as in production, on P-256."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
_SIGNS = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
    key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
)  # fmt: skip


def pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@dataclass(frozen=True)
class Ca:
    """An authority with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[x509.Certificate, ...] = ()

    @classmethod
    def make(
        cls, name: str = "Example root", *, within: str = "", days: float = 3650, is_ca: bool = True,
        under: Ca | None = None, at: datetime | None = None,
    ) -> Self:  # fmt: skip
        """Make one, limited to a zone where `within` names one, signed by itself or by another."""
        key, at = ec.generate_private_key(ec.SECP256R1()), at or datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if under is None else under.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - DAY)
            .not_valid_after(at + days * DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_SIGNS, critical=True)
        )
        if under is not None:
            above = x509.AuthorityKeyIdentifier.from_issuer_public_key(under.key.public_key())
            builder = builder.add_extension(above, critical=False)
        if within:
            limits = x509.NameConstraints(permitted_subtrees=[x509.DNSName(within)], excluded_subtrees=None)
            builder = builder.add_extension(limits, critical=True)
        made = builder.sign(key if under is None else under.key, hashes.SHA256())
        return cls(made, key, () if under is None else (under.certificate, *under.above))

    @property
    def pem(self) -> str:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def bundle(self) -> str:
        """What an operator stores: certificate, those above it, key."""
        chain = "".join(one.public_bytes(Encoding.PEM).decode() for one in self.above)
        return self.pem + chain + pem_of(self.key)

    def server(self, *names: str, days: float = 90, at: datetime | None = None) -> str:
        """Return certificate and key of a server with these names."""
        key, at = ec.generate_private_key(ec.SECP256R1()), at or datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - DAY)
            .not_valid_after(at + days * DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(Encoding.PEM).decode() + pem_of(key)
