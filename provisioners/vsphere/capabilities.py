"""What a vCenter can do for us, found by asking it. `assess` is pure; `read` asks.

A gap comes with the one line that mends it; a right that is missing is keyed `right:<words>` in `missing`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from provisioners.driver import Binding, BoundaryKind, Capabilities
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.settings import Settings

OLDEST: Final = (8, 0)
"""MIG-backed vGPU beside `vgpuMode` and Assignable Hardware."""
RIGHT: Final = "right:"
_OWN: Final = ("isolate", "power", "evacuate", "acceptance")
"""What the driver does by itself wherever the rights are there."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was asked of one vCenter."""

    about: Mapping[str, str]
    has_switch: bool = True


def assess(facts: Facts, settings: Settings) -> Capabilities:
    """Return what the vCenter can do and what mends what it cannot."""
    features: dict[str, bool] = dict.fromkeys(_OWN, True)
    features |= {"layout-change": False, "logs": False, "cluster": False}
    missing: dict[str, str] = {}
    if version_of(facts.about["api_version"]) < OLDEST:
        missing["version"] = f"vCenter {facts.about['version']} is older than 8.0, the oldest that is supported."
    if not facts.has_switch:
        missing["networks"] = (
            "The datacenter has no distributed switch, and each tenant's network is a port group of one."
        )
    elif not settings.vlans:
        missing["networks"] = (
            "No range of VLANs is given, so tenants get no network of their own. Name one in its settings."
        )
    features["networks"] = "networks" not in missing
    return Capabilities(
        kind="vsphere",
        version=f"{facts.about['full_name']} (API {facts.about['api_version']})",
        boundary_kinds=frozenset({BoundaryKind.VM}),
        bindings=frozenset({Binding.HOST}),
        features=features,
        missing=missing,
        simulated=settings.is_lab or "simulated" in facts.about["full_name"],
    )


def version_of(text: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as `8.0.3.0`; (0, 0) where it cannot be read."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def read(ground: Ground) -> Capabilities:
    """Ask a vCenter. Raises `DriverError`."""
    facts = Facts(about=ground.client.about(), has_switch=ground.estate().switch is not None)
    return assess(facts, ground.settings)
