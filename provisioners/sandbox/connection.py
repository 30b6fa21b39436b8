"""What connecting a sandbox estate asks for, and the estates it can make by itself. Pure data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from provisioners import tls_settings
from tenants import endpoint_tls
from tenants.endpoint_tls import FILES, NONE, OWN_CA
from tenants.provider_kinds import Credential, ProviderKind, Setting

MADE: Final = Path(__file__).parent / "estates"
"""Estates that can be made on first use, as documents (`files`)."""


def judge(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (key, sentence) of an entry that the driver could not use, None where it could use all of them."""
    if config.get("url") and not _is_address(str(config["url"])):
        return "url", "Give the sandbox's address, beginning with http:// or https://."
    if (found := tls_settings.unusable(config)) is not None:
        return found
    deadline_s = config.get("deadline_s")
    if deadline_s not in {None, ""} and not _is_deadline(str(deadline_s)):
        return "deadline_s", "Give seconds above 0."
    return None


def _refuse_zone(text: str) -> str:
    return "" if endpoint_tls.ZONE.fullmatch(text) else "Give a DNS name such as models.localhost."


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False


def _is_deadline(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


CONNECTION: Final = ProviderKind(
    slug="sandbox",
    title="Sandbox estate",
    sentence="Simulated hosts and GPUs, for trying things out. No real hardware is touched.",
    icon="flask-conical",
    simulated=True,
    settings=(
        Setting(
            "url", "Address of the sandbox", "Base URL of the sandbox server.",
            example="http://127.0.0.1:8430", required=True, suggests="TENANTRY_SANDBOX_URL",
        ),
        Setting(
            "estate", "Estate", "Name of the estate on that server.", example="second-site", required=True,
        ),
        Setting(
            "make", "If there is no such estate", "A new one is made with these simulated hosts when it is tested.",
            choices=(
                ("kubernetes", "Make a cluster: 3 nodes, 16 GPUs"),
                ("vsphere", "Make a vCenter: 3 hosts, 12 GPUs"),
                ("", "Make none: it must be there"),
            ),
        ),
        Setting(
            "zone", "Zone", "The DNS zone of endpoint addresses with certificates: endpoint.tenant.zone, at ports of "
            "this machine. Below “localhost” many programs find them without DNS.", example="models.localhost",
            refuses=_refuse_zone, is_advanced=True,
        ),
        replace(
            tls_settings.setting(NONE, OWN_CA, FILES, more="Only an estate with real gateways listens with TLS."),
            is_advanced=True,
        ),
        Setting(
            "endpoint_ca_pem", "Certificate authority of endpoints", "Who signed certificates that are given as files, "
            "where callers do not trust him already.", is_long=True, refuses=tls_settings.refuse_pem, is_advanced=True,
        ),
        replace(tls_settings.records("show", "none"), is_advanced=True),
    ),
    credentials=(
        Credential(
            "token", "Token", "The bearer token of the sandbox server.", own="TENANTRY_SANDBOX_TOKEN",
        ),
        *tls_settings.CREDENTIALS,
    ),
    rights=("Read the estate", "Start and undo steps", "Run acceptance checks"),
    more_keys=frozenset({"deadline_s", "history"}),  # `history` says how far the demo has played this estate's past
    lacks=tls_settings.lacks,
    judges=judge,
)  # fmt: skip


def document(name: str) -> dict[str, Any] | None:
    """Return the document of an estate that can be made, None for a name that is none of ours."""
    if name not in {
        value for value, _label in next(s for s in CONNECTION.settings if s.key == "make").choices if value
    }:
        return None
    found: dict[str, Any] = json.loads((MADE / f"{name}.json").read_text(encoding="utf-8"))
    return found
