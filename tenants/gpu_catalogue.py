"""GPU products, their MIG profiles and legal placements, vGPU types, and the names of quota dimensions.

Pure data: everything is read once from `data/mig-profiles.json` and `data/vgpu-profiles.json`, where each
entry names its source; adding a product is adding an entry there. A GPU has `slices` placement positions;
a MIG device is a window [start, start + size) at a legal start; a whole GPU is the window [0, slices).
Says nothing about what is free or who may have it (`geometry.py`, `placement.py`, `quota.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

WHOLE: Final = ""
"""Profile name that stands for whole GPUs."""

MEDIA_KINDS: Final = frozenset({"media-extensions", "all-media"})
"""Kinds whose profiles (`+me`, `+me.all`) take the single media-extension unit of a GPU.

`-me` profiles (kind `no-media`) have fewer engines than the base profile and take nothing extra.
Source: rules[0] of mig-profiles.json; `max_instances` is 1 for exactly these among the suffixed profiles.
"""

UNSOLD_GEOMETRIES: Final = frozenset({None, "unverified"})
"""Geometries under which only whole GPUs are sold."""


class UnknownProduct(LookupError):
    """No GPU product of the catalogue has this id."""


class UnknownProfile(LookupError):
    """The product has no MIG profile of this name."""


class BadDimension(ValueError):
    """The text names no quota dimension; the message says which part is wrong."""


class SoldByWindow(StrEnum):
    """Whether windows of a product may be given out, beside whole GPUs."""

    ALWAYS = "always"
    AFTER_MATCHING_REPORT = "after-matching-report"
    """The starts are inferred: first a provider has to report a layout that they explain."""
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of window of one product. `name` is `WHOLE` for the whole GPU."""

    name: str
    kind: str
    """`whole`, `base`, `double-memory`, `media-extensions`, `all-media`, `no-media` or `graphics`."""
    size: int
    """Placement positions (memory slices) taken."""
    starts: tuple[int, ...]
    """The only legal starts; empty where they are not known, and then never sold."""
    media: bool
    """Takes the single media-extension unit of its GPU."""
    compute_slices: int | None
    memory_gib_planning: Decimal | None
    """Smallest memory seen in any driver, GiB; None where none was seen."""
    max_instances: int
    resource_name: str
    """Extended resource of the device plugin, mixed strategy."""


@dataclass(frozen=True, slots=True)
class Product:
    """One GPU model as sold; the id is the one name used everywhere."""

    id: str
    vendor: str
    architecture: str
    compute_capability: str | None
    names: tuple[str, ...]
    """As the vendor's tools print them."""
    pci_device_ids: tuple[str, ...]
    total_memory_gib: Decimal
    slices: int
    """Placement positions; 1 where the source knows none."""
    geometry: str | None
    sold_by_window: SoldByWindow
    profiles: tuple[Profile, ...]
    """MIG profiles in the order of the source; without the whole GPU."""
    whole: Profile
    verified: bool
    source: str

    @property
    def placeable(self) -> tuple[Profile, ...]:
        """MIG profiles with known legal starts, whether sold yet or not."""
        if self.sold_by_window is SoldByWindow.NEVER:
            return ()
        return tuple(profile for profile in self.profiles if profile.starts)


@dataclass(frozen=True, slots=True)
class VgpuType:
    """One vGPU type as vSphere names it. Time-sliced types are sold in full size only, to one holder."""

    name: str
    """Such as `nvidia_h100xm-3-40c`; only what the host itself offers may be used."""
    board: str
    product: str | None
    """Catalogue id whose geometry applies; None where the catalogue has none."""
    profile: str | None
    """MIG profile behind it; None for a time-sliced type."""
    framebuffer_gb: int
    max_per_gpu: int
    min_vsphere: str | None
    seen: bool
    """Exactly this string was seen on vSphere; otherwise it is made by the naming rule."""
    mmio_gib: int | None = None
    """`pciPassthru.64bitMMIOSizeGB` for one such GPU; None where no source names it."""

    @property
    def sellable(self) -> bool:
        """True for MIG-backed types and for the time-sliced type that fills the GPU."""
        return self.product is not None and (self.profile is not None or self.max_per_gpu == 1)


@dataclass(frozen=True, slots=True)
class GpuDimension:
    """`gpu.<product>.slices` (profile None) or `gpu.<product>.<profile>` (a count)."""

    product: str
    profile: str | None

    def __str__(self) -> str:
        """Return the name; the inverse of `parse_dimension`."""
        return f"gpu.{self.product}.{'slices' if self.profile is None else self.profile}"


PLAIN_DIMENSIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "vcpu": "virtual CPUs",
        "memory_gib": "GiB of main memory",
        "storage_gib": "GiB of storage",
        "machines": "GPU machines",
        "boundaries": "boundaries",
        "endpoints": "endpoints",
        "spend_month": "money per calendar month",
        "tokens_month": "tokens of endpoints per calendar month",
        "token_spend_month": "money for tokens of endpoints per calendar month",
    }
)
"""Dimensions that are no GPU: name → what is counted."""


# --- lookups --------------------------------------------------------------------------------------


def products() -> tuple[Product, ...]:
    """Return every product, in the order of the source."""
    return tuple(_catalogue().values())


def product(product_id: str) -> Product:
    """Return one product. Raises `UnknownProduct`."""
    try:
        return _catalogue()[product_id]
    except KeyError:
        msg = f"no GPU product is called {product_id!r}; known: {', '.join(_catalogue())}"
        raise UnknownProduct(msg) from None


def profile(of: Product | str, name: str) -> Profile:
    """Return a MIG profile of a product, or its whole GPU for `WHOLE`.

    Raises `UnknownProduct`, `UnknownProfile`.
    """
    owner = product(of) if isinstance(of, str) else of
    if name == WHOLE:
        return owner.whole
    found = _profiles_by_name(owner.id).get(name)
    if found is None:
        known = ", ".join(p.name for p in owner.profiles) or "none, it is sold whole"
        msg = f"{owner.id} has no MIG profile {name!r}; it has: {known}"
        raise UnknownProfile(msg)
    return found


@cache
def slices_of() -> Mapping[tuple[str, str], int]:
    """Return (product id, profile name or `WHOLE`) → memory slices that one of it takes."""
    return MappingProxyType(
        {(item.id, part.name): part.size for item in products() for part in (item.whole, *item.profiles)}
    )


def find_by_provider_name(name: str) -> Product | None:
    """Return the product that a provider calls `name`, or None; never guesses between two.

    Takes a catalogue id, the vendor's product name (`NVIDIA H100 80GB HBM3`) or the label
    `nvidia.com/gpu.product` of GPU feature discovery, which has hyphens for spaces and may end in
    `-MIG-<profile>`, `-MIG-INVALID` or `-SHARED`.
    """
    return _by_provider_name().get(_normal_name(name))


def find_by_pci_id(device_id: str) -> Product | None:
    """Return the product with a PCI device id, written `0x233010DE` (device, then vendor), or None."""
    wanted = device_id.lower()
    return next((item for item in products() if wanted in (known.lower() for known in item.pci_device_ids)), None)


@cache
def vgpu_types() -> Mapping[str, VgpuType]:
    """Return vSphere name → vGPU type, for every type whose name is known."""
    found: dict[str, VgpuType] = {}
    for board in _read("vgpu-profiles.json")["products"]:
        for entry in (*board["mig_backed"], *board["time_sliced"]):
            if entry["name"] is None:
                continue
            found[entry["name"]] = VgpuType(
                name=entry["name"],
                board=board["product"],
                product=board["mig_product"],
                profile=entry.get("mig_profile"),
                framebuffer_gb=entry["framebuffer_gb"],
                max_per_gpu=entry["max_per_gpu"],
                min_vsphere=entry.get("min_vsphere"),
                seen=entry["vsphere_string_seen"],
                mmio_gib=board.get("mmio_gb_per_gpu"),
            )
    return MappingProxyType(found)


# --- dimensions -----------------------------------------------------------------------------------


def slices_dimension(product_id: str) -> str:
    """Return `gpu.<product>.slices`. Raises `UnknownProduct`."""
    return str(GpuDimension(product(product_id).id, None))


def profile_dimension(product_id: str, name: str) -> str:
    """Return `gpu.<product>.<profile>`. Raises `UnknownProduct`, `UnknownProfile`."""
    if name == WHOLE:
        msg = "whole GPUs are counted in slices only"
        raise UnknownProfile(msg)
    return str(GpuDimension(product(product_id).id, profile(product_id, name).name))


def parse_dimension(text: str) -> GpuDimension | str:
    """Return what a dimension name means: a `GpuDimension`, or the plain name itself.

    A GPU dimension is split at its first two dots only, because profile names hold dots and `+`.
    Raises `BadDimension`, which says which part is wrong.
    """
    if text in PLAIN_DIMENSIONS:
        return text
    head, *rest = text.split(".", 2)
    if head != "gpu":
        msg = f"{text!r} is no dimension; use gpu.<product>.slices, gpu.<product>.<profile>, or one of "
        raise BadDimension(msg + ", ".join(PLAIN_DIMENSIONS))
    if len(rest) != 2 or not all(rest):
        msg = f"{text!r} is incomplete; use gpu.<product>.slices or gpu.<product>.<profile>"
        raise BadDimension(msg)
    product_id, part = rest
    try:
        if part != "slices":
            profile(product_id, part)
        return GpuDimension(product(product_id).id, None if part == "slices" else part)
    except LookupError as error:
        msg = f"{text!r}: {error.args[0]}"
        raise BadDimension(msg) from error


TOKEN_DIMENSIONS: Final = frozenset({"tokens_month", "token_spend_month"})
"""Kept by gateways, request by request, and limited only where somebody set a limit."""


@lru_cache(maxsize=4096)
def is_optional(dimension: str) -> bool:
    """Tell whether a tenant without a limit here is unlimited here rather than at zero.

    Counts per profile are optional, their slices are limited in any case; and tokens. Raises `BadDimension`.
    """
    parsed = parse_dimension(dimension)
    return parsed in TOKEN_DIMENSIONS or (isinstance(parsed, GpuDimension) and parsed.profile is not None)


# --- reading --------------------------------------------------------------------------------------


def _read(name: str) -> dict[str, Any]:
    text = files("tenants").joinpath("data", name).read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text, parse_float=Decimal)
    return document


@cache
def _catalogue() -> Mapping[str, Product]:
    return MappingProxyType({entry["id"]: _product(entry) for entry in _read("mig-profiles.json")["products"]})


def _product(entry: dict[str, Any]) -> Product:
    slices = entry["memory_slices"] or 1
    memory = Decimal(entry["total_memory_gib"])
    profiles = tuple(_profile(part) for part in entry["profiles"])
    return Product(
        id=entry["id"],
        vendor=entry["vendor"],
        architecture=entry["architecture"],
        compute_capability=entry["compute_capability"],
        names=tuple(entry["product_names"]),
        pci_device_ids=tuple(entry["pci_device_ids"]),
        total_memory_gib=memory,
        slices=slices,
        geometry=entry["geometry"],
        sold_by_window=_sold_by_window(entry, profiles),
        profiles=profiles,
        whole=Profile(
            name=WHOLE,
            kind="whole",
            size=slices,
            starts=(0,),
            media=False,  # the window alone already keeps everybody else off every engine
            compute_slices=entry["compute_slices"],
            memory_gib_planning=memory,
            max_instances=1,
            resource_name=entry.get("resource_name") or f"{entry['vendor']}.com/gpu",
        ),
        verified=entry["verified"],
        source=entry["source"],
    )


def _profile(entry: dict[str, Any]) -> Profile:
    memory = entry["memory_gib_planning"]
    return Profile(
        name=entry["name"],
        kind=entry["kind"],
        size=entry["placements"]["size"] or entry["memory_slices"],
        starts=tuple(entry["placements"]["starts"] or ()),
        media=entry["kind"] in MEDIA_KINDS,
        compute_slices=entry["compute_slices"],
        memory_gib_planning=None if memory is None else Decimal(memory),
        max_instances=entry["max_instances"],
        resource_name=entry["resource_name"],
    )


def _sold_by_window(entry: dict[str, Any], profiles: tuple[Profile, ...]) -> SoldByWindow:
    if entry["geometry"] in UNSOLD_GEOMETRIES or not any(part.starts for part in profiles):
        return SoldByWindow.NEVER
    return SoldByWindow.ALWAYS if entry["placements_verified"] else SoldByWindow.AFTER_MATCHING_REPORT


@cache
def _profiles_by_name(product_id: str) -> Mapping[str, Profile]:
    return {part.name: part for part in product(product_id).profiles}


@cache
def _by_provider_name() -> Mapping[str, Product]:
    return {_normal_name(name): item for item in products() for name in (item.id, *item.names)}


def _normal_name(name: str) -> str:
    hyphenated = re.sub(r"\s+", "-", name.strip()).casefold()
    return re.sub(r"(-mig-\S+|-shared)$", "", hyphenated)
