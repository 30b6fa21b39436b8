"""What `inventory_uses` has to tell people of a host, in their words. Pure: facts in, `Seen` out."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from provisioners.driver import ObservedUse
from provisioners.inventory_changes import LooseUse, UnitFact
from tenants import host_binding
from tenants.findings import STRAY_USE, WRONG_DEVICE, Seen
from tenants.models import GpuDevice, Host

FOREIGN_ON_HOLD: Final = "foreign-use-on-hold"
DUPLICATE_USE: Final = "duplicate-use"
UNEXPLAINED: Final = "unexplained-report"
UNPLACEABLE_USE: Final = "use-without-place"
OVERCOMMITTED: Final = "host-overcommitted"
KINDS: Final = frozenset(
    {FOREIGN_ON_HOLD, STRAY_USE, WRONG_DEVICE, DUPLICATE_USE, UNEXPLAINED, UNPLACEABLE_USE, OVERCOMMITTED}
)


def wrong_device(host: Host, unit: UUID, use: ObservedUse, device: GpuDevice | None) -> Seen:
    """A unit whose device we named runs on another one."""
    return Seen(
        WRONG_DEVICE,
        str(unit),
        f"Unit {unit} is reported on {use.device} of {host.name}, which is not where it was put.",
        host=host.pk,
        device=device.pk if device else None,
        blocks_placement=True,
        data={"unit": str(unit), "reported": use.device, "start": use.start},
    )


def unexplained(host: Host, product_id: str, one: GpuDevice | None, answer: host_binding.Unexplained) -> Seen:
    """What a host reports of its GPUs (or of `one`) cannot all be true."""
    return Seen(
        UNEXPLAINED,
        f"{host.provider_ref}/{one.provider_ref if one else product_id}",
        f"What {host.name} reports of its {product_id} fits no legal packing: {answer.reason}.",
        host=host.pk,
        device=one.pk if one else None,
        blocks_placement=True,
        data={"holds": list(answer.units)},
    )


def foreign_on_hold(host: Host, device: GpuDevice, loose: LooseUse) -> Seen:
    """Somebody uses slots that a tenant holds."""
    return Seen(
        FOREIGN_ON_HOLD,
        f"{host.provider_ref}/{device.provider_ref}/{loose.start}/{loose.note}",
        f"{loose.use.name} uses slots {loose.start} to {loose.start + loose.use.size - 1} of "
        f"{device.provider_ref} on {host.name}, where a tenant holds room.",
        host=host.pk,
        device=device.pk,
        data={"name": loose.use.name, "start": loose.start, "size": loose.use.size},
    )


def duplicate_use(host: Host, unit: UUID, use: ObservedUse) -> Seen:
    """A unit uses more than it holds."""
    return Seen(
        DUPLICATE_USE,
        f"{unit}/{host.provider_ref}",
        f"Unit {unit} is seen with more windows on {host.name} than it holds, or another profile.",
        host=host.pk,
        data={"unit": str(unit), "device": use.device, "start": use.start, "profile": use.profile},
    )


def stray_use(host: Host, unit: UUID, use: ObservedUse, fact: UnitFact) -> Seen:
    """A unit of ours runs where it holds nothing."""
    where = f"its room is held on {fact.holds_on}" if fact.holds_on else "it holds no room"
    return Seen(
        STRAY_USE,
        f"{unit}/{host.provider_ref}",
        f"{use.name} runs on {host.name}, but {where}." if fact.live
        else f"{use.name} runs on {host.name}, but its owner is gone or unknown.",
        host=host.pk,
        data={"unit": str(unit), "name": use.name, "live": fact.live},
    )  # fmt: skip


def overcommitted(host: Host, note: str, vcpu: int, memory_gib: int) -> Seen:
    """A use takes more of a host than our holds leave."""
    return Seen(
        OVERCOMMITTED,
        f"{host.provider_ref}/{note}",
        f"{note} takes {vcpu} vCPU and {memory_gib} GiB on {host.name}, more than our holds leave of it.",
        host=host.pk,
    )


def use_without_place(host: Host, loose: LooseUse) -> Seen:
    """A use whose place is not told has room nowhere, wherever the guesses of the others are put."""
    profile = loose.use.profile
    return Seen(
        UNPLACEABLE_USE,
        f"{host.provider_ref}/{loose.note}/{profile or 'whole'}",
        f"{loose.use.name} uses {profile or 'a whole GPU'} somewhere on {host.name}, "
        "and our holds leave no legal place for it.",
        host=host.pk,
        blocks_placement=True,
    )
