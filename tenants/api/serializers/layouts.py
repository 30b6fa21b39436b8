"""Shapes of layout changes: what each GPU of a host is to be carved into, and who is concerned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from tenants.api.serializers.base import In, Moment, Out, line
from tenants.errors import InvalidSpec
from tenants.layout_plans import Gpu, Wish
from tenants.states import HostState

MOST_GPUS = 64
MOST_PARTS = 16
Profile = Annotated[str, StringConstraints(pattern=r"^[0-9a-z][0-9a-z.+-]{0,39}$")]


class PartOut(Out):
    """One part of a GPU."""

    start: int
    size: int
    profile: str


class GpuLayoutOut(Out):
    """What one GPU is carved into, before and after."""

    device: str
    index: int
    product: str
    before: list[PartOut] | None
    """null where the provider did not tell."""
    after: list[PartOut]
    differs: bool
    """Whether it has to be emptied; the others go on."""

    @classmethod
    def of(cls, gpu: Gpu) -> GpuLayoutOut:
        """Return one GPU of a change."""
        return cls(
            device=str(gpu.id),
            index=gpu.index,
            product=gpu.product,
            before=None if gpu.before is None else _windows(gpu.before),
            after=_windows(gpu.after),
            differs=gpu.differs,
        )


def _windows(windows: Any) -> list[PartOut]:
    return [PartOut(start=start, size=size, profile=profile) for start, size, profile in windows]


class LayoutOut(Out):
    """The layouts that a plan makes."""

    gpus: list[GpuLayoutOut]
    evict: bool

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> LayoutOut | None:
        """Return what a plan stores, None for a plan of another kind."""
        if not stored:
            return None
        wish = Wish.from_json(stored)
        return cls(gpus=[GpuLayoutOut.of(gpu) for gpu in wish.gpus], evict=wish.evict)


class LayoutPreviewOut(Out):
    """What a layout change would do at this moment."""

    host: str
    name: str
    state: HostState
    gpus: list[GpuLayoutOut]
    touched: list[dict[str, Any]]
    tenants: list[str]
    foreign: list[str]
    """Uses that are not ours: they are waited for and never evicted."""
    move: int
    no_room: int
    wait: int
    evict: bool

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> LayoutPreviewOut:
        """Return what `layouts.preview_layout` found."""
        gpus = [GpuLayoutOut.of(Gpu.from_json(one)) for one in found["gpus"]]
        return cls(**{**found, "gpus": gpus})


class GpuLayoutIn(In):
    """What one GPU is to be carved into."""

    device: line(1, 64)  # type: ignore[valid-type]
    profiles: list[Profile] = Field(max_length=MOST_PARTS)


class LayoutWish(In):
    """What the GPUs of a host are to be carved into."""

    layouts: list[GpuLayoutIn] = Field(min_length=1, max_length=MOST_GPUS)
    evict: bool = False

    def by_gpu(self) -> dict[str, list[str]]:
        """Return GPU → profiles. Raises `InvalidSpec` for a GPU that is named twice."""
        found = {one.device: list(one.profiles) for one in self.layouts}
        if len(found) < len(self.layouts):
            raise InvalidSpec("A GPU is named twice.", field="layouts", code="layout-impossible")
        return found


class LayoutPreviewIn(LayoutWish):
    """What would be asked for."""


class LayoutIn(LayoutWish):
    """What the GPUs of a host are to be carved into, why, and when."""

    reason: line(3, 500)  # type: ignore[valid-type]
    starts_at: Moment | None = Field(None, description="End of the notice; now if left out.")
