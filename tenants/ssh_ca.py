"""The authority of a tenant that signs short-lived SSH certificates for its machines.

An Ed25519 key pair per tenant, the private key sealed in its row and opened only to sign. A machine trusts the
authority that it was made with and takes one principal, its own: a certificate for one machine opens no other one.
A new authority (`operations.machine_access.rotate`) is for machines made from then on.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_private_key,
    load_ssh_public_key,
)

from tenants import vault
from tenants.errors import InvalidSpec
from tenants.models import SshAuthority, Tenant

LOGIN: Final = "tenant"
"""Who logs in to a machine; its images have no other account that may."""
LEAST_RSA_BITS: Final = 3072
MOST_RSA_BITS: Final = 16384
LONGEST_LINE: Final = 4000
EARLY: Final = timedelta(minutes=1)
"""A certificate is valid from so long ago: clocks of machines differ a little."""
PLACE: Final = {"table": "tenants_sshauthority", "column": "sealed"}
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey | RSAPublicKey

_LINE: Final = re.compile(
    r"(?P<kind>ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) (?P<body>[A-Za-z0-9+/]+={0,2})(?: [\x20-\x7e]*)?"
)
_WANTED: Final = f"an Ed25519, ECDSA or RSA key (RSA of {LEAST_RSA_BITS} bits at least)"


def principal_of(machine: UUID) -> str:
    """Return the one principal that a machine takes; derived from our row, never from a name."""
    return f"machine-{machine}"


def make(tenant: Tenant, *, now: datetime) -> SshAuthority:
    """Store a new authority of a tenant; one in use must have been retired before. Inside a transaction."""
    key, row = Ed25519PrivateKey.generate(), uuid4()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SshAuthority.objects.create(
        id=row, tenant=tenant, public_key=public, sealed=vault.seal(private, **PLACE, row=row), created_at=now
    )


def of(tenant: Tenant, *, now: datetime) -> SshAuthority:
    """Return the authority in use of a tenant, made when it is needed first.

    The caller holds the tenant's lock (`guards.lock_path`, or that of an operation that spends quota): of two at once
    both would make one.
    """
    return SshAuthority.objects.filter(tenant=tenant, retired_at__isnull=True).first() or make(tenant, now=now)


def read_key(text: str, *, field: str = "public_key") -> tuple[PublicKey, str]:
    """Return a public key with its fingerprint (`SHA256:…`). Raises `InvalidSpec` with the reason."""
    line = text.strip()
    found = _LINE.fullmatch(line) if len(line) <= LONGEST_LINE else None
    if "PRIVATE KEY" in text[:LONGEST_LINE]:
        msg = "This is a private key: keep it to yourself, make a new one, and send the file with .pub."
        raise InvalidSpec(msg, field=field, code="private-key")
    if found is None:
        msg = f"Give one line with {_WANTED}, as in the file with .pub."
        raise InvalidSpec(msg, field=field, code="not-a-key")
    try:
        key = load_ssh_public_key(f"{found['kind']} {found['body']}".encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        msg = "This is no public key: it is cut off or changed."
        raise InvalidSpec(msg, field=field, code="not-a-key") from error
    if isinstance(key, RSAPublicKey):
        if not LEAST_RSA_BITS <= key.key_size <= MOST_RSA_BITS:
            msg = f"An RSA key has {LEAST_RSA_BITS} to {MOST_RSA_BITS} bits; this one has {key.key_size}."
            raise InvalidSpec(msg, field=field, code="key-size")
    elif not isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):  # pragma: no cover - the pattern names them
        msg = f"Give {_WANTED}."
        raise InvalidSpec(msg, field=field, code="not-a-key")
    digest = hashlib.sha256(base64.b64decode(found["body"])).digest()
    return key, "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def sign(
    authority: SshAuthority,
    key: PublicKey,
    *,
    serial: int,
    key_id: str,
    principals: Sequence[str],
    now: datetime,
    until: datetime,
) -> str:
    """Return a user certificate as one line: no critical options, a terminal and nothing else. Raises `VaultError`."""
    private = load_ssh_private_key(vault.unseal(authority.sealed, **PLACE, row=authority.pk).encode(), password=None)
    assert isinstance(private, Ed25519PrivateKey)
    made = (
        SSHCertificateBuilder()
        .public_key(key)
        .type(SSHCertificateType.USER)
        .serial(serial)
        .key_id(key_id.encode())
        .valid_principals([name.encode() for name in principals])
        .valid_after(int((now - EARLY).timestamp()))
        .valid_before(int(until.timestamp()))
        .add_extension(b"permit-pty", b"")
        .sign(private)
    )
    return made.public_bytes().decode()
