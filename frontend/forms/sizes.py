"""Sizes that machines and namespaces come in: a window of a GPU or whole GPUs, with the rest in proportion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from tenants import gpu_catalogue
from tenants.gpu_catalogue import SoldByWindow
from tenants.specs import GpuAsk, UnitAsk


@dataclass(frozen=True, slots=True)
class Size:
    """One size on the list."""

    product: str
    profile: str
    slices: int
    of_slices: int
    memory_gib: Decimal | None

    @property
    def key(self) -> str:
        """Return the value of its radio button."""
        return f"{self.product}/{self.profile}" if self.profile else self.product

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole GPU."""
        return not self.profile

    @property
    def name(self) -> str:
        """Return it for people."""
        return f"{self.product} {self.profile}" if self.profile else self.product

    def unit(self, count: int = 1) -> UnitAsk:
        """Return what to order for `count` whole GPUs, or for the window; 4 vCPU and 32 GiB per eighth, at least."""
        eighths = max(1, round(self.slices * 8 / max(1, self.of_slices)))
        share = min(4 * eighths, 16) if self.profile else 16 * count
        return UnitAsk(GpuAsk(self.product, self.profile, count if not self.profile else 1), share, share * 8)


def of(products: Iterable[str], *, whole_only: bool = False) -> list[Size]:
    """Return the sizes of products, small first within each."""
    return [size for name in products for size in _sizes(name, whole_only=whole_only)]


def _sizes(name: str, *, whole_only: bool) -> Iterator[Size]:
    product = gpu_catalogue.product(name)
    if product.sold_by_window is SoldByWindow.ALWAYS and not whole_only:
        parts = [part for part in product.placeable if part.kind == "base" and part.size < product.slices]
        for part in sorted(parts, key=lambda one: (one.size, one.compute_slices or 0)):
            yield Size(name, part.name, part.size, product.slices, part.memory_gib_planning)
    yield Size(name, "", product.slices, product.slices, product.total_memory_gib)


def find(sizes: Iterable[Size], key: str) -> Size | None:
    """Return the size of a key, the first one for an unknown key, None where there is none."""
    known = list(sizes)
    return next((size for size in known if size.key == key), known[0] if known else None)
