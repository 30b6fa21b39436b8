"""Figures of GPU models as NVIDIA's tools print them: memory, engines, profiles and where they may start.

Read from the product's own catalogue (`tenants/data/mig-profiles.json`, which names its sources); the few figures
that it has no use for stand here with theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

DRIVER_VERSION: Final = "595.58.03"
CUDA_VERSION: Final = "13.2"
WHOLE_SMS: Final[Mapping[str, int]] = MappingProxyType({"H100-80GB": 132, "A100-80GB": 108, "L40S-48GB": 142})
"""Streaming multiprocessors of the whole GPU (vendor's data sheets)."""
_WHOLE_MIB: Final[Mapping[str, int]] = MappingProxyType({"L40S-48GB": 46_068})
"""Total memory as nvidia-smi prints it, where the catalogue has no figure."""
_MACHINES: Final[Mapping[str, str]] = MappingProxyType(
    {"H100-80GB": "HGX-H100", "A100-80GB": "HGX-A100", "L40S-48GB": "PowerEdge-R760xa"}
)


@dataclass(frozen=True, slots=True)
class MigProfile:
    """One MIG profile of one model; counts are of one instance."""

    name: str
    size: int
    """Memory slices."""
    starts: tuple[int, ...]
    compute_slices: int
    memory_mib: int
    multiprocessors: int
    copy_engines: int
    decoders: int
    jpeg_engines: int
    ofa_engines: int
    gi_profile_id: int
    resource_name: str

    @property
    def engines(self) -> dict[str, int]:
        """Return DRA's capacity names → counts, without memory (no MIG profile of these has an encoder)."""
        return {
            "multiprocessors": self.multiprocessors,
            "copyEngines": self.copy_engines,
            "decoders": self.decoders,
            "encoders": 0,
            "jpegEngines": self.jpeg_engines,
            "ofaEngines": self.ofa_engines,
        }


@dataclass(frozen=True, slots=True)
class Model:
    """One GPU model."""

    id: str
    name: str
    """As NVML prints it."""
    architecture: str
    """As the catalogue writes it: hopper, ampere, ada."""
    compute_capability: str
    memory_mib: int
    multiprocessors: int
    slices: int
    machine: str
    profiles: Mapping[str, MigProfile]

    @property
    def label(self) -> str:
        """`nvidia.com/gpu.product`: the name with hyphens for blanks."""
        return self.name.replace(" ", "-")

    @property
    def family(self) -> str:
        """`nvidia.com/gpu.family`, as GFD names it."""
        return {"ada": "ada-lovelace"}.get(self.architecture, self.architecture)


@cache
def model(product_id: str) -> Model:
    """Return one model by catalogue id. Raises `KeyError` with the known ids."""
    entries = {entry["id"]: entry for entry in _catalogue()["products"]}
    if product_id not in WHOLE_SMS:
        raise KeyError(f"the lab has no figures of {product_id}; it has {', '.join(WHOLE_SMS)}")
    entry = entries[product_id]
    profiles = {found.name: found for found in map(_profile, entry.get("profiles", ()))}
    return Model(
        id=product_id,
        name=entry["product_names"][0],
        architecture=entry["architecture"],
        compute_capability=entry["compute_capability"],
        memory_mib=entry.get("nvml_total_mib_approx") or _WHOLE_MIB[product_id],
        multiprocessors=WHOLE_SMS[product_id],
        slices=entry.get("memory_slices") or 1,
        machine=_MACHINES[product_id],
        profiles=MappingProxyType(profiles),
    )


def _profile(entry: Mapping[str, Any]) -> MigProfile:
    media = entry["media"]
    return MigProfile(
        name=entry["name"],
        size=entry["placements"]["size"],
        starts=tuple(entry["placements"]["starts"]),
        compute_slices=entry["compute_slices"],
        memory_mib=int(max(entry["memory_gib_reported"]) * 1024),
        multiprocessors=entry["sm_count"],
        copy_engines=entry["copy_engines"],
        decoders=media["nvdec"] or 0,
        jpeg_engines=media["nvjpg"] or 0,
        ofa_engines=media["ofa"] or 0,
        gi_profile_id=entry["gi_profile_id"],
        resource_name=entry["resource_name"],
    )


@cache
def _catalogue() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((files("tenants") / "data" / "mig-profiles.json").read_text())
    return read
