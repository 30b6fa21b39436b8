"""Certificates, tokens and kubeconfigs of one lab cluster, made once and kept in its folder.

One CA signs the API server's certificate and every client certificate. The admin token is of group system:masters;
it lies in a file of mode 0600 and in the kubeconfig, never on a command line.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from controlplane.labs.certificates import Authority, pem, store

LOOPBACK: Final = "127.0.0.1"
SERVICE_ADDRESS: Final = "10.96.0.1"
"""First address of the service range: the service `kubernetes`."""
NODE_ADDRESS: Final = "10.88.0.1"
"""Of this machine on the bridge of the lab's real node."""
ADMIN: Final = "lab-admin"
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
        authority = Authority(self.folder)
        authority.make()
        if not self.certificate("apiserver").exists():
            addresses = (LOOPBACK, SERVICE_ADDRESS, NODE_ADDRESS)
            authority.sign_server("apiserver", "kube-apiserver", names=_NAMES, addresses=addresses)
        if not self.service_accounts.exists():
            rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            public = rsa_key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            store(self.service_accounts_public, public)
            store(self.service_accounts, pem(rsa_key))
        if not self.tokens.exists():
            store(self.tokens, f'{secrets.token_urlsafe(24)},{ADMIN},{ADMIN},"system:masters"\n'.encode())

    def client(self, name: str, *, user: str, groups: tuple[str, ...] = ()) -> None:
        """Make a client certificate, once, as `<name>.crt` and `<name>.key`."""
        if not self.certificate(name).exists():
            Authority(self.folder).sign_client(name, user, groups=groups)


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
    store(file, text.encode())
