"""Certificates, tokens and kubeconfigs of one lab cluster, made once and kept in its folder.

One CA signs the API server's certificate and every client certificate. The admin token is of group system:masters;
it lies in a file of mode 0600 and in the kubeconfig, never on a command line.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK: Final = "127.0.0.1"
SERVICE_ADDRESS: Final = "10.96.0.1"
"""First address of the service range: the service `kubernetes`."""
NODE_ADDRESS: Final = "10.88.0.1"
"""Of this machine on the bridge of the lab's real node."""
ADMIN: Final = "lab-admin"
_DAYS: Final = 3650
_NAMES: Final = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The folder `pki` of one cluster."""

    folder: Path

    @property
    def ca(self) -> Path:
        """Certificate of the CA."""
        return self.folder / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Its key."""
        return self.folder / "ca.key"

    @property
    def tokens(self) -> Path:
        """Static token file of the API server."""
        return self.folder / "tokens.csv"

    @property
    def service_accounts(self) -> Path:
        """Key that signs service account tokens; its public half is in `service_accounts_public`."""
        return self.folder / "sa.key"

    @property
    def service_accounts_public(self) -> Path:
        """Public key that proves service account tokens."""
        return self.folder / "sa.pub"

    def certificate(self, name: str) -> Path:
        """Return the file of a certificate made by `make` or `client`."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Return the file of its key."""
        return self.folder / f"{name}.key"

    def admin_token(self) -> str:
        """Return the token of the lab's administrator."""
        return self.tokens.read_text().split(",", 1)[0]

    def make(self) -> None:
        """Make whatever is missing; keep what is there, so that a restarted cluster knows its old tokens."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.ca.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = _name("lab-ca")
            _store(self.ca_key, _pem(key))
            made = _builder(name, name, key.public_key()).add_extension(
                x509.BasicConstraints(ca=True, path_length=None), critical=True
            )
            _store(self.ca, made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        if not self.certificate("apiserver").exists():
            self._signed("apiserver", "kube-apiserver", groups=(), server=True)
        if not self.service_accounts.exists():
            rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            public = rsa_key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            _store(self.service_accounts_public, public)
            _store(self.service_accounts, _pem(rsa_key))
        if not self.tokens.exists():
            _store(self.tokens, f'{secrets.token_urlsafe(24)},{ADMIN},{ADMIN},"system:masters"\n'.encode())

    def client(self, name: str, *, user: str, groups: tuple[str, ...] = ()) -> None:
        """Make a client certificate, once, as `<name>.crt` and `<name>.key`."""
        if not self.certificate(name).exists():
            self._signed(name, user, groups=groups, server=False)

    def _signed(self, file: str, user: str, *, groups: tuple[str, ...], server: bool) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        ca_key = serialization.load_pem_private_key(self.ca_key.read_bytes(), password=None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        issuer = x509.load_pem_x509_certificate(self.ca.read_bytes()).subject
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        made = _builder(_name(user, groups), issuer, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if server:
            texts = (LOOPBACK, SERVICE_ADDRESS, NODE_ADDRESS)
            addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in texts]
            made = made.add_extension(
                x509.SubjectAlternativeName([*(x509.DNSName(name) for name in _NAMES), *addresses]), critical=False
            )
        _store(self.key(file), _pem(key))
        _store(self.certificate(file), made.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def kubeconfig(*, url: str, ca: Path, user: dict[str, Any]) -> str:
    """Return a kubeconfig (JSON, which is YAML too) of one cluster and one `user` entry."""
    cluster = {"server": url, "certificate-authority": str(ca)}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": user}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        },
        indent=2,
    )


def store_private(file: Path, text: str) -> None:
    """Write `text` so that only this user reads it; whole or not at all."""
    _store(file, text.encode())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(minutes=5))
    return made.not_valid_after(now + dt.timedelta(days=_DAYS))


def _name(common: str, organisations: tuple[str, ...] = ()) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organisations]
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _store(file: Path, content: bytes) -> None:
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    fresh.replace(file)
