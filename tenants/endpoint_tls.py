"""Certificates of endpoints' addresses: what an operator gave, whether it fits, what an authority of his signs. Pure.

A tenant's gateways get one certificate, for `*.<tenant>.<zone>`. The names are always ours, worked out from rows; what
a gateway asks for brings a public key and nothing else. Invariant: no gateway is given a certificate or a key that is
good for a name outside of its tenant, so a given certificate belongs to exactly one tenant.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, SECP521R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey as EcPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SETTING: Final = "certificates"
"""Setting of a provider: where the certificates of its endpoints' addresses come from."""
NONE: Final = "none"
CERT_MANAGER: Final = "cert-manager"
OWN_CA: Final = "own-ca"
FILES: Final = "files"
FROM_HOME: Final = (OWN_CA, FILES)
"""Sources of which gateways get their certificate from the control plane."""
AUTHORITY: Final = "endpoint-authority"
"""Secret of a provider: certificate and key of the authority that signs."""
GIVEN: Final = "endpoint-certificates"
"""Secret of a provider: certificates with their chains and keys, at most one pair for each tenant."""
FACTS: Final = "endpoint_tls"
"""Where a provider's row remembers (`observed`) what may be shown of the two: secret → facts."""
LIFE: Final = timedelta(days=30)
EARLY: Final = timedelta(minutes=5)
"""A certificate is valid from so long ago: clocks of callers differ a little."""
LEAST_LIFE: Final = timedelta(hours=1)
"""An authority that ends sooner signs nothing any more."""
LONGEST_COMMON_NAME: Final = 64
_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
ZONE: Final = re.compile(rf"\.?{_LABEL}(\.{_LABEL})*\.?")
"""How a zone is written."""
_KEY_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.+?-----END \1PRIVATE KEY-----", re.DOTALL)
_PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey
_PublicKey = EcPublicKey | RSAPublicKey
_CURVES: Final = (SECP256R1, SECP384R1, SECP521R1)
LEAST_RSA_BITS: Final = 2048


class Unfit(ValueError):
    """What was given cannot be used; the text says why in a sentence, and quotes no secret."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs: a certificate, those above it up to a root, and the key."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """From the one above it to the root; empty for a root."""
    key: _PrivateKey

    @property
    def root_pem(self) -> str:
        """Return the certificate that callers trust."""
        return pem(self.chain[-1:] or (self.certificate,))

    def __repr__(self) -> str:
        """Show whose it is, and no key."""
        return f"Authority({self.certificate.subject.rfc4514_string()})"


@dataclass(frozen=True, slots=True)
class Given:
    """A certificate that was given, with its chain and key."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: _PrivateKey

    @property
    def names(self) -> tuple[str, ...]:
        """Return the DNS names that it is good for, in lower case."""
        return names_of(self.certificate)

    def __repr__(self) -> str:
        """Show its names, and no key."""
        return f"Given({', '.join(self.names)})"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate for one gateway."""

    chain_pem: str
    key_pem: str
    """Empty where the gateway has the key itself."""
    names: tuple[str, ...]
    serial: int
    not_before: datetime
    not_after: datetime

    def __repr__(self) -> str:
        """Show names and end, and no key."""
        return f"Issued({', '.join(self.names)} until {self.not_after:%Y-%m-%d})"


# --- names ----------------------------------------------------------------------------------------


def source_of(config: Mapping[str, Any]) -> str:
    """Return where a provider's certificates come from."""
    return str(config.get(SETTING) or NONE)


def zone_of(config: Mapping[str, Any]) -> str:
    """Return a provider's zone as DNS compares it, `""` without one."""
    return str(config.get("zone") or "").strip(".").lower()


def wildcard(tenant: str, zone: str) -> str:
    """Return the name that covers every endpoint of a tenant."""
    return f"*.{tenant}.{zone}"


def covers(names: Sequence[str], host: str) -> bool:
    """Whether one of a certificate's names is good for a host; a wildcard stands for one label (RFC 9525, 6.3)."""
    return any(name == host or (name.startswith("*.") and name[1:] == f".{host.partition('.')[2]}") for name in names)


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names of a certificate, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(name.lower() for name in found.get_values_for_type(x509.DNSName))


def tenant_of(given: Given, zone: str) -> str:
    """Return the one tenant whose names a given certificate is good for. Raises `Unfit` with the names that are not."""
    labels: dict[str, str] = {}
    strange = []
    for name in given.names:
        before = name.removesuffix(f".{zone}") if name.endswith(f".{zone}") else ""
        first, dot, tenant = before.partition(".")
        if not dot or not first or not tenant or "." in tenant or "*" in tenant:
            strange.append(name)
        else:
            labels[tenant] = name
    if not given.names:
        raise Unfit("The certificate has no DNS names (subjectAltName).")
    if strange:
        msg = (
            f"A certificate may be good only for names of one tenant, {wildcard('<tenant>', zone)}: "
            f"{', '.join(strange[:5])} is another name."
        )
        raise Unfit(msg)
    if len(labels) > 1:
        msg = (
            f"A certificate may be good for one tenant only, as its key is given to that tenant's gateways; this one "
            f"is good for {', '.join(sorted(labels.values())[:5])}. Give one for each tenant, one after the other."
        )
        raise Unfit(msg)
    return next(iter(labels))


# --- reading what was given -----------------------------------------------------------------------


def read_authority(text: str, *, now: datetime) -> Authority:
    """Return an authority from a text with its certificate, those above it, and its key. Raises `Unfit`."""
    certificates, keys = _blocks(text)
    if len(keys) != 1:
        raise Unfit(f"Give one private key, of the authority; there are {len(keys)}.")
    found = next((one for one in certificates if _same_key(one, keys[0])), None)
    if found is None:
        raise Unfit("The key does not fit the certificate.")
    chain = _chain(found, certificates)
    _check_authority(found, now)
    for each in chain:
        _check_authority(each, now)
    top = (found, *chain)[-1]
    if top.issuer != top.subject:
        msg = "Add the certificates above it up to the root: callers trust the root, and it is not in here."
        raise Unfit(msg)
    return Authority(found, chain, keys[0])


def read_given(text: str) -> tuple[Given, ...]:
    """Return the pairs of a text, each a certificate, its chain and its key in any order. Raises `Unfit`.

    One that has ended is read as well: it must not take the others with it.
    """
    certificates, keys = _blocks(text)
    if not keys:
        raise Unfit("There is no private key in it: add it below the certificate.")
    found = []
    for key in keys:
        certificate = next((one for one in certificates if _same_key(one, key)), None)
        if certificate is None:
            raise Unfit("A key does not fit any of the certificates.")
        if _is_authority(certificate):
            msg = f"{_named(certificate)} is an authority's, not a server's: for one that signs choose own-ca."
            raise Unfit(msg)
        found.append(Given(certificate, _chain(certificate, certificates), key))
    used = {one for each in found for one in (each.certificate, *each.chain)}
    left = next((one for one in certificates if one not in used), None)
    if left is not None:
        raise Unfit(f"The certificate of {_named(left)} belongs to no key that was given.")
    return tuple(found)


def judge_authority(authority: Authority, zone: str) -> None:
    """Raise `Unfit` where an authority may not sign names of a zone (its name constraints, RFC 5280, 4.2.1.10)."""
    for one in (authority.certificate, *authority.chain):
        try:
            limits = one.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            continue
        permitted = [_plain(name) for name in limits.permitted_subtrees or () if isinstance(name, x509.DNSName)]
        excluded = [_plain(name) for name in limits.excluded_subtrees or () if isinstance(name, x509.DNSName)]
        if permitted and not any(_is_within(zone, name) for name in permitted):
            raise Unfit(f"{_named(one)} may sign for {', '.join(permitted[:5])} only, and not for the zone {zone}.")
        if bad := [name for name in excluded if _is_within(zone, name) or _is_within(name, zone)]:
            raise Unfit(f"{_named(one)} may not sign for {', '.join(bad[:5])}, which the zone {zone} touches.")


def judge_given(given: Sequence[Given], zone: str, *, now: datetime) -> None:
    """Raise `Unfit` unless each certificate is for one tenant of a zone and has not ended, and each tenant has one."""
    for each in given:
        if each.certificate.not_valid_after_utc <= now:
            raise Unfit(f"{_named(each.certificate)} ended on {each.certificate.not_valid_after_utc:%Y-%m-%d}.")
    tenants = [tenant_of(each, zone) for each in given]
    if twice := sorted({tenant for tenant in tenants if tenants.count(tenant) > 1}):
        raise Unfit(f"There are several certificates for {', '.join(twice[:5])}: give one for each tenant.")


def _plain(name: x509.DNSName) -> str:
    return name.value.lower().strip(".")


def _is_within(name: str, zone: str) -> bool:
    return name == zone or name.endswith(f".{zone}") or not zone


def _blocks(text: str) -> tuple[list[x509.Certificate], list[_PrivateKey]]:
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise Unfit("There is no certificate in it: paste it from BEGIN CERTIFICATE to END CERTIFICATE.")
    try:
        certificates = x509.load_pem_x509_certificates(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Unfit("A certificate in it cannot be read: it is cut off or changed.") from error
    keys = []
    for found in _KEY_BLOCK.finditer(text):
        if "ENCRYPTED" in found[0]:
            raise Unfit("The private key is locked with a password: give it without (it is stored sealed).")
        try:
            key = load_pem_private_key(found[0].encode(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise Unfit("The private key cannot be read: it is cut off or changed.") from error
        keys.append(_fit_key(key))
    return certificates, keys


def _fit_key(key: object) -> _PrivateKey:
    if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES):
        return key
    if isinstance(key, RSAPrivateKey) and key.key_size >= LEAST_RSA_BITS:
        return key
    raise Unfit(f"The private key is of a kind that callers do not take: give ECDSA, or RSA of {LEAST_RSA_BITS} bits.")


def _same_key(certificate: x509.Certificate, key: _PrivateKey) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm):
        return False


def _chain(leaf: x509.Certificate, known: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return those above a certificate, as far as they are known; who really signed is checked, not names alone."""
    found = [leaf]
    while found[-1].issuer != found[-1].subject:
        above = next((one for one in known if one not in found and _signed_by(found[-1], one)), None)
        if above is None:
            break
        found.append(above)
    return tuple(found[1:])


def _signed_by(one: x509.Certificate, other: x509.Certificate) -> bool:
    try:
        one.verify_directly_issued_by(other)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _check_authority(certificate: x509.Certificate, now: datetime) -> None:
    if not _is_authority(certificate):
        raise Unfit(f"{_named(certificate)} is no authority: it may not sign certificates (CA:TRUE is missing).")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.key_cert_sign:
        raise Unfit(f"{_named(certificate)} may not sign certificates (key usage keyCertSign is missing).")
    if certificate.not_valid_after_utc <= now:
        raise Unfit(f"{_named(certificate)} ended on {certificate.not_valid_after_utc:%Y-%m-%d}.")
    if certificate.not_valid_before_utc > now + EARLY:
        raise Unfit(f"{_named(certificate)} begins on {certificate.not_valid_before_utc:%Y-%m-%d} only.")


def _named(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:80] or ", ".join(names_of(certificate))[:80] or "one without a name"


# --- what may be shown ----------------------------------------------------------------------------


def pem(certificates: Sequence[x509.Certificate]) -> str:
    """Return certificates as text."""
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, in hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def facts_of_authority(authority: Authority) -> dict[str, Any]:
    """Return what may be shown of an authority: plain JSON without the key."""
    ends = min(one.not_valid_after_utc for one in (authority.certificate, *authority.chain))
    return {
        "subject": _named(authority.certificate),
        "fingerprint": fingerprint(authority.certificate),
        "ca_pem": authority.root_pem,
        "not_after": ends.isoformat(),
    }


def facts_of_given(given: Sequence[Given]) -> dict[str, Any]:
    """Return what may be shown of given certificates."""
    return {
        "given": [
            {
                "names": list(each.names),
                "fingerprint": fingerprint(each.certificate),
                "not_after": each.certificate.not_valid_after_utc.isoformat(),
            }
            for each in given
        ]
    }


def version_of(source: str, names: Sequence[str], made_from: str) -> str:
    """Return what stands for a certificate that is wanted; another one means that the gateway asks again."""
    return hashlib.sha256("\n".join((source, *names, made_from)).encode()).hexdigest()


# --- making ---------------------------------------------------------------------------------------


def public_key_of(request_pem: str) -> _PublicKey:
    """Return the public key that a request (PKCS #10) brings and proves; nothing else of it is read. Raises `Unfit`."""
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        is_proven, key = request.is_signature_valid, request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Unfit("The request cannot be read.") from error
    if not is_proven:
        raise Unfit("The request is not signed with its own key.")
    if not isinstance(key, EcPublicKey) or not isinstance(key.curve, (SECP256R1, SECP384R1)):
        raise Unfit("The request's key must be ECDSA on P-256 or P-384.")
    return key


def sign(authority: Authority, key: _PublicKey, *, names: Sequence[str], now: datetime) -> Issued:
    """Return a server's certificate for exactly these names, `LIFE` long or to the authority's end. Raises `Unfit`."""
    chain = (authority.certificate, *authority.chain)
    ends = min(now + LIFE, *(one.not_valid_after_utc for one in chain))
    if ends - now < LEAST_LIFE:
        raise Unfit(f"The certificate authority ends on {ends:%Y-%m-%d %H:%M} UTC: an operator gives a new one.")
    begins = max(now - EARLY, *(one.not_valid_before_utc for one in chain))
    common = [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if len(names[0]) <= LONGEST_COMMON_NAME else []
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(common))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=not common)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_SIGNS_HANDSHAKES, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_identifier(authority.certificate), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    # The root itself is not sent: who trusts it has it.
    shown = (made, *(one for one in chain if one.issuer != one.subject))
    return Issued(pem(shown), "", tuple(names), made.serial_number, made.not_valid_before_utc, made.not_valid_after_utc)


def hand_out(given: Sequence[Given], *, tenant: str, zone: str, now: datetime) -> Issued:
    """Return the certificate of a tenant with its key. Raises `Unfit` where none was given, or it has ended."""
    found = next((each for each in given if tenant_of(each, zone) == tenant), None)
    if found is None:
        raise Unfit(f"None of the given certificates is for {wildcard(tenant, zone)}.")
    if found.certificate.not_valid_after_utc <= now:
        raise Unfit(f"The given certificate ended on {found.certificate.not_valid_after_utc:%Y-%m-%d}.")
    key = found.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    shown = (found.certificate, *(one for one in found.chain if one.issuer != one.subject))
    return Issued(
        pem(shown),
        key,
        found.names,
        found.certificate.serial_number,
        found.certificate.not_valid_before_utc,
        found.certificate.not_valid_after_utc,
    )


def _identifier(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
    except x509.ExtensionNotFound:
        key: Any = authority.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)


_SIGNS_HANDSHAKES: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def moment(text: object) -> datetime | None:
    """Return a moment as facts have it, None for what is none."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError:
        return None
