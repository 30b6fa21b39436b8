"""vGPU types: what the strings that a host offers mean, and which of them gives a profile or a whole GPU. Pure.

What is known stands in the catalogue (`tenants/data/vgpu-profiles.json`, which names its sources); a string that is
not there is read by NVIDIA's naming rule, and only together with the product of the GPU that carries it. Strings are
compared without regard to case; what goes into a VM is always the host's own spelling of what the host offers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tenants import gpu_catalogue
from tenants.gpu_catalogue import WHOLE, VgpuType

_RULE: Final = re.compile(
    r"(?:grid|nvidia)_(?P<board>[a-z0-9_]+)-(?:(?P<slices>[1-9])-)?(?P<gb>[1-9][0-9]{0,2})(?P<kind>[abcq])(?P<media>me)?"
)


@dataclass(frozen=True, slots=True)
class GpuType:
    """What one vGPU type takes of a GPU."""

    name: str
    """In lower case."""
    product: str
    """Catalogue id of the GPU that carries it, `""` where neither the catalogue nor the host tells."""
    profile: str
    """MIG profile; `WHOLE` for one that fills the GPU or takes turns on it."""
    size: int
    """Memory slices taken; 0 where the product is not known. One that takes turns keeps all other kinds off the GPU."""
    is_mig: bool
    fills: bool
    """Whether nobody else can be on its GPU."""


def read(name: str, *, product: str = "") -> GpuType | None:
    """Return what a type means on a GPU of `product` (`""`: not known), None for a string that nothing explains."""
    plain = name.strip().lower()
    known = gpu_catalogue.vgpu_types().get(plain)
    if known is not None:
        if known.product is None or product not in {"", known.product}:
            return None
        return _of(plain, known.product, known.profile, fills=known.max_per_gpu == 1 and known.profile is None)
    match = _RULE.fullmatch(plain)
    if match is None:
        return None
    if not match["slices"]:
        return _of(plain, product, None, fills=_is_all(int(match["gb"]), product))
    profile = f"{match['slices']}g.{match['gb']}gb{'+me' if match['media'] else ''}"
    return _of(plain, product, profile, fills=False) if profile in _profiles(product) else None


def _of(name: str, product: str, profile: str | None, *, fills: bool) -> GpuType:
    size = 0
    if product:
        size = gpu_catalogue.profile(product, profile or WHOLE).size
        fills = fills or (size == gpu_catalogue.product(product).slices and profile is not None)
    return GpuType(name, product, profile or WHOLE, size, is_mig=profile is not None, fills=fills)


def _profiles(product: str) -> frozenset[str]:
    try:
        return frozenset(part.name for part in gpu_catalogue.product(product).profiles)
    except gpu_catalogue.UnknownProduct:
        return frozenset()


def _is_all(gb: int, product: str) -> bool:
    """Whether a time-sliced type of so much memory is the one that fills a GPU; names carry the label, not the size."""
    try:
        return bool(product) and 2 * gb > gpu_catalogue.product(product).total_memory_gib
    except gpu_catalogue.UnknownProduct:
        return False


def offered_for(product: str, profile: str, offered: Iterable[str], *, mig_only: bool = False) -> str | None:
    """Return the type that gives a MIG profile (`WHOLE`: the whole GPU) of a product in the host's spelling, or None.

    A whole GPU is the time-sliced type that fills it. Where the GPU stands in MIG mode and only people can change that
    (`mig_only`), or where the host offers no such type, it is the MIG profile of all slices.
    """
    spelled = {name.strip().lower(): name for name in offered}
    found = [(one, spelled[name]) for name in sorted(spelled) if (one := read(name, product=product)) is not None]
    if profile != WHOLE:
        return next((name for one, name in found if one.profile == profile), None)
    wholes = [(one.is_mig, name) for one, name in found if one.fills and not (mig_only and not one.is_mig)]
    return min(wholes)[1] if wholes else None


def products_of(offered: Iterable[str]) -> frozenset[str]:
    """Return the products that surely carry types; a board of another model has only borrowed its profiles."""
    known = gpu_catalogue.vgpu_types()
    types = (known.get(name.strip().lower()) for name in offered)
    return frozenset(one.product for one in types if one is not None and one.product is not None and _is_model(one))


def _is_model(one: VgpuType) -> bool:
    """Whether a board is the product whose profiles it has: an H800 has those of an H100 and is none."""
    return one.product is not None and one.board.split()[0] == one.product.split("-")[0]


def mmio_gib(product: str, count: int = 1) -> int:
    """Return `pciPassthru.64bitMMIOSizeGB` for a VM with `count` GPUs of a product.

    As the source names it, else by its rule: memory up to the next power of two, doubled; doubled again from two on.
    Raises `UnknownProduct`.
    """
    known = (one.mmio_gib for one in gpu_catalogue.vgpu_types().values() if one.product == product)
    each = next((size for size in known if size is not None), None)
    if each is None:
        memory = int(gpu_catalogue.product(product).total_memory_gib)
        each = 2 * (1 << (memory - 1).bit_length())
    return each * (1 << (max(1, count) - 1).bit_length())
