"""The three sites of the demo as estate documents (`provisioners.sandbox.files`). Invented; pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from provisioners.sandbox.files import SCHEMA

SLOW: Final[Mapping[str, float]] = {
    "namespace.create": 4.0, "namespace.gateway": 9.0, "folder.create": 3.0, "network.create": 6.0,
    "vm.clone": 55.0, "vm.power": 14.0, "serving.replica": 8.0, "layout.apply": 12.0,
}  # fmt: skip
"""Seconds a step took in the simulated past: about what such steps take on real hardware."""
BOOT_S: Final = 21.0
LOAD_S: Final = 34.0
REPORT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Rack:
    """Hosts that are alike."""

    prefix: str
    hosts: int
    small: int
    """Hosts in the small demo."""
    binding: str
    kinds: tuple[str, ...]
    product: str
    gpus: int
    vcpu: int = 128
    memory_gib: int = 1024


@dataclass(frozen=True, slots=True)
class Site:
    """One simulated provider."""

    provider: str
    site: str
    racks: tuple[Rack, ...]
    foreign: tuple[tuple[str, str, int, str, int, int], ...]
    """(name, host, GPU, profile, vCPU, GiB) of uses that are nobody's of ours, from the first day on."""


NAMESPACE: Final = ("namespace",)
VM: Final = ("vm",)
SITES: Final = (
    Site(
        "berlin-k8s",
        "berlin",
        (
            Rack("bl-h", 6, 2, "device", NAMESPACE, "H100-80GB", 8),
            Rack("bl-a", 2, 1, "gpu", NAMESPACE, "A100-80GB", 8),
            Rack("bl-l", 2, 1, "host", NAMESPACE, "L40S-48GB", 4, 96, 768),
        ),
        (("nightly-training", "bl-a1", 7, "", 16, 128),),
    ),
    Site(
        "munich-vsphere",
        "munich",
        (
            Rack("mu-a", 4, 2, "host", VM, "A100-80GB", 8),
            Rack("mu-h", 3, 1, "host", VM, "H100-80GB", 4, 96, 768),
            Rack("mu-l", 2, 1, "host", VM, "L40S-48GB", 4, 96, 768),
        ),
        (("legacy-render-vm", "mu-l1", 3, "", 8, 64),),
    ),
    Site(
        "oslo-k8s",
        "oslo",
        (
            Rack("os-h", 4, 1, "device", NAMESPACE, "H100-80GB", 8),
            Rack("os-a", 2, 1, "gpu", NAMESPACE, "A100-80GB", 8),
            Rack("os-l", 2, 1, "host", NAMESPACE, "L40S-48GB", 8, 192, 1536),
        ),
        (),
    ),
)


def document(site: Site, *, small: bool) -> dict[str, Any]:
    """Return the estate of a site."""
    return {
        "schema": SCHEMA,
        "settings": {
            "gateways": "simulated", "names": True, "policy": "spread", "delays_s": dict(SLOW), "boot_s": BOOT_S,
            "load_s": LOAD_S, "report_delay_s": REPORT_S,
        },
        "hosts": [
            _host(rack, number, site)
            for rack in site.racks
            for number in range(1, (rack.small if small else rack.hosts) + 1)
        ],
        "foreign_uses": [
            {"name": name, "host": host, "windows": [[gpu, 0, profile]], "vcpu": vcpu, "memory_gib": memory}
            for name, host, gpu, profile, vcpu, memory in site.foreign
        ],
    }  # fmt: skip


def _host(rack: Rack, number: int, site: Site) -> dict[str, Any]:
    return {
        "host": f"{rack.prefix}{number}",
        "name": f"{rack.prefix}{number}.{site.site}.example",
        "binding": rack.binding,
        "boundary_kinds": list(rack.kinds),
        "vcpu": rack.vcpu,
        "memory_gib": rack.memory_gib,
        "gpus": [{"product": rack.product, "count": rack.gpus}],
    }
