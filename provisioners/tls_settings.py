"""Settings and secrets about certificates and DNS records of endpoints, which kinds of providers share. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from cryptography import x509

from tenants import endpoint_tls
from tenants.endpoint_tls import AUTHORITY, CERT_MANAGER, FILES, GIVEN, NONE, OWN_CA, SETTING, Unfit
from tenants.provider_kinds import Credential, Setting

LABELS: Final[Mapping[str, str]] = {
    NONE: "None: gateways take them from nobody",
    OWN_CA: "An authority of ours signs them",
    FILES: "They are given as files",
    CERT_MANAGER: "cert-manager makes them",
}
NEEDS_ZONE: Final = "Certificates are for names, so they need a zone."


def setting(*sources: str, more: str = "") -> Setting:
    """Return the setting, with these choices."""
    sentence = "Where the certificates at endpoints’ addresses come from, one for *.tenant.zone. " + more
    return Setting(
        SETTING, "Certificates of endpoints", sentence.strip(),
        choices=tuple((source, LABELS[source]) for source in sources),
    )  # fmt: skip


def records(*choices: str) -> Setting:
    """Return the setting of DNS records, with these choices."""
    labels = {
        "show": "People set them",
        "external-dns": "ExternalDNS sets them",
        "none": "Nobody here: names are resolved elsewhere",
    }
    return Setting(
        "dns_records", "DNS records of endpoints", "People set the record that an endpoint’s page shows, or whoever "
        "resolves the names of the zone does it by himself and no record is asked for.",
        choices=tuple((choice, labels[choice]) for choice in choices),
    )  # fmt: skip


CREDENTIALS: Final = (
    Credential(
        AUTHORITY, "Certificate authority of endpoints", "With certificates of our own authority: its certificate, "
        "those above it up to the root, and its key, as PEM. One limited to the zone (name constraints) is best.",
        optional=True, is_long=True, judges=lambda *given: judge(AUTHORITY, *given),
    ),
    Credential(
        GIVEN, "Certificates of endpoints", "With certificates as files: certificate, chain and key as PEM, one set "
        "for each tenant (*.tenant.zone), one after the other.",
        optional=True, is_long=True, judges=lambda *given: judge(GIVEN, *given),
    ),
)  # fmt: skip


def refuse_pem(text: str) -> str:
    """Return why a text holds no certificates to trust, `""` where it does."""
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        found = []
    return "" if found else "Paste the certificate itself, whole, from BEGIN CERTIFICATE to END CERTIFICATE."


def unusable(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (key, sentence) of a setting about certificates that cannot be used beside the others, None if all can."""
    if endpoint_tls.source_of(config) != NONE and not endpoint_tls.zone_of(config):
        return "zone", NEEDS_ZONE
    return None


def lacks(config: Mapping[str, Any], secrets: Collection[str]) -> tuple[str, str] | None:
    """Return (field, sentence) of a secret that the chosen source needs and has not."""
    source = endpoint_tls.source_of(config)
    if source == OWN_CA and AUTHORITY not in secrets:
        return f"secret.{AUTHORITY}", "Give the authority that signs: its certificate and its key."
    if source == FILES and GIVEN not in secrets:
        return f"secret.{GIVEN}", "Give the certificates with their keys."
    return None


def judge(name: str, secret: str, config: Mapping[str, Any], now: datetime) -> str:
    """Return why a secret does not fit a configuration, `""` where it does or there is no zone yet."""
    zone = endpoint_tls.zone_of(config)
    try:
        if name == AUTHORITY:
            authority = endpoint_tls.read_authority(secret, now=now)
            if zone:
                endpoint_tls.judge_authority(authority, zone)
        else:
            given = endpoint_tls.read_given(secret)
            if zone:
                endpoint_tls.judge_given(given, zone, now=now)
    except Unfit as error:
        return str(error)
    return ""
