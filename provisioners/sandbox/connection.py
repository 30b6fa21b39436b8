"""What connecting a sandbox estate asks for, and the estates it can make by itself. Pure data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tenants.provider_kinds import Credential, ProviderKind, Setting

MADE: Final = Path(__file__).parent / "estates"
"""Estates that can be made on first use, as documents (`files`)."""


def judge(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (key, sentence) of an entry that the driver could not use, None where it could use all of them."""
    if config.get("url") and not _is_address(str(config["url"])):
        return "url", "Give the sandbox's address, beginning with http:// or https://."
    deadline_s = config.get("deadline_s")
    if deadline_s not in {None, ""} and not _is_deadline(str(deadline_s)):
        return "deadline_s", "Give seconds above 0."
    return None


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
    ),
    credentials=(
        Credential(
            "token", "Token", "The bearer token of the sandbox server.", own="TENANTRY_SANDBOX_TOKEN",
        ),
    ),
    rights=("Read the estate", "Start and undo steps", "Run acceptance checks"),
    more_keys=frozenset({"deadline_s", "history"}),  # `history` says how far the demo has played this estate's past
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
