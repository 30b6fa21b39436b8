"""A machine that is there is made anew, or gets another size, on the capacity that it holds.

Making it anew is the one way to another image, and the one way back for a machine that its provider lost: what was on
the disk is gone in both. Another size is for a machine that is surely off, on the host where it is: its GPUs stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from django.db.models import F

from tenants import access, desired, ledger, machine_images, unit_sizes
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.feasibility import locked_path
from tenants.models import Allocation, Boundary, Host, Intent, Machine, Provider, QuotaCharge, Unit
from tenants.operations import quotas
from tenants.operations.allocations import expect_version
from tenants.operations.machines import MAX_DISK_GIB
from tenants.policies import ROUTES
from tenants.quota import Span
from tenants.specs import MOST_MEMORY_GIB, MOST_VCPU, AllocationSpec
from tenants.states import ConditionType, Reason, condition_of
from tenants.transactions import operation
from tenants.unit_sizes import Size

SIZED_BY_CLASS: Final = "vm-service"
"""Feature of a provider whose machines have the size of a class, which cannot be changed under one."""


@operation
def rebuild(*, machine: Machine, image: str = "", actor: Actor, now: datetime, version: int | None = None) -> Machine:
    """Make a machine anew on the capacity that it holds, of its own image or another: its disk begins empty.

    Raises `InvalidSpec`, `Conflict` (`deleting`, `tenant-suspended`).
    """
    locked_path(machine.tenant)
    allocation = Allocation.objects.select_for_update(no_key=True).get(pk=machine.allocation_id)
    row = Machine.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").get(pk=machine.pk)
    access.check(actor, row.tenant, ROUTES["machines.rebuild"])
    expect_version(row, version)
    if row.deletion_requested_at is not None:
        msg = f"{row.name} is being deleted."
        raise Conflict(msg, code="deleting")
    machine_images.check(image or row.image, at=Provider.objects.filter(boundaries__machines=row).first())
    if image and image != row.image:
        row.image = image
        spec = AllocationSpec.from_json(allocation.spec)  # what waits for room waits where that image is
        allocation.spec = replace(spec, where=replace(spec.where, image=image)).as_json()
        allocation.save(update_fields=["spec"])
    row.build += 1
    row.save(update_fields=["image", "build"])
    desired.changed(row, "machine.rebuilt", actor=actor, at=now, image=row.image, build=row.build)
    return row


@operation
def resize(
    *,
    machine: Machine,
    vcpu: int | None = None,
    memory_gib: int | None = None,
    disk_gib: int | None = None,
    actor: Actor,
    now: datetime,
    version: int | None = None,
) -> Machine:
    """Give a machine that is off another size on the host where it is; None leaves as it is. Its GPUs stay.

    What it used so far goes on to count by the size that it had. Its isolation is widened before it can be switched
    on, and narrowed after it was made smaller. Asking for what is so already changes nothing.
    Raises `InvalidSpec`, `QuotaExceeded`, `Conflict` (`deleting`, `term-over`, `not-placed`, `not-off`, `host-full`,
    `not-supported`, `tenant-suspended`).
    """
    tenant = machine.tenant
    # Locks: path, allocation, unit, host, isolation, machine; who releases a unit takes it before its host, too.
    locked_path(tenant)
    allocation = Allocation.objects.select_for_update(no_key=True).get(pk=machine.allocation_id)
    unit = Unit.objects.select_for_update(no_key=True).filter(allocation=allocation, released_at=None).first()
    access.check(actor, tenant, ROUTES["machines.resize"])
    if unit is None or unit.host_id is None or allocation.boundary_id is None:
        _refuse_leaving(allocation, machine.name)
        msg = f"{machine.name} has no place yet: it can get another size once it was built."
        raise Conflict(msg, code="not-placed")
    ledger.lock_host(unit.host_id)
    boundary = Boundary.objects.select_for_update(no_key=True).get(pk=allocation.boundary_id)
    row = Machine.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").get(pk=machine.pk)
    expect_version(row, version)
    _refuse_leaving(allocation, row.name)
    present = Size(unit.vcpu, unit.memory_gib, row.disk_gib)
    wanted = Size(
        present.vcpu if vcpu is None else vcpu,
        present.memory_gib if memory_gib is None else memory_gib,
        present.disk_gib if disk_gib is None else disk_gib,
    )
    _check_size(row, unit, wanted)
    if allocation.expires_at is not None and allocation.expires_at <= now:
        msg = f"The term of {row.name} is over: renew it first."
        raise Conflict(msg, code="term-over")
    if wanted == present:
        return row
    if boundary.provider.capabilities.get("features", {}).get(SIZED_BY_CLASS):
        msg = "Its provider gives machines the size of a class, which stays. Make a new machine of the wanted size."
        raise Conflict(msg, code="not-supported")
    _refuse_unless_off(row)
    _charge(allocation, unit, wanted, actor=actor, now=now)
    _take(row, unit, wanted, disk_before_gib=present.disk_gib, now=now)
    desired.respecified(boundary, at=now)
    row.disk_gib = wanted.disk_gib
    row.resizes += 1
    row.save(update_fields=["disk_gib", "resizes"])
    desired.changed(
        row, "machine.resized", actor=actor, at=now,
        vcpu=wanted.vcpu, memory_gib=wanted.memory_gib, disk_gib=wanted.disk_gib,
        before={"vcpu": present.vcpu, "memory_gib": present.memory_gib, "disk_gib": present.disk_gib},
    )  # fmt: skip
    return row


def _refuse_leaving(allocation: Allocation, name: str) -> None:
    if allocation.deletion_requested_at is not None or allocation.released_at is not None:
        msg = f"{name} is being deleted."
        raise Conflict(msg, code="deleting")


def _check_size(row: Machine, unit: Unit, wanted: Size) -> None:
    for field, amount, most, words in (
        ("vcpu", wanted.vcpu, MOST_VCPU, "vCPUs"),
        ("memory_gib", wanted.memory_gib, MOST_MEMORY_GIB, "GiB of memory"),
    ):
        if not 1 <= amount <= most:
            msg = f"A machine has 1 to {most} {words}."
            raise InvalidSpec(msg, field=field, code="out-of-range")
    if wanted.disk_gib > MAX_DISK_GIB:
        msg = f"A disk has at most {MAX_DISK_GIB} GiB."
        raise InvalidSpec(msg, field="disk_gib", code="out-of-range")
    least = _least_disk(row, unit)
    if wanted.disk_gib < least:
        msg = f"A disk can only grow: this one has {least} GiB."
        raise InvalidSpec(msg, field="disk_gib", code="out-of-range")


def _least_disk(row: Machine, unit: Unit) -> int:
    """Return the disk that it has for certain; what was asked for and never came about can be taken back."""
    if row.fitted == row.resizes:
        return row.disk_gib
    former = unit_sizes.former([unit.allocation_id]).get(unit.pk, [])
    return former[row.fitted].size.disk_gib if row.fitted < len(former) else row.disk_gib


def _refuse_unless_off(row: Machine) -> None:
    """Refuse a machine of which it is not certain that it is off and stays so."""
    if row.power != "off":
        msg = f"{row.name} has to be off to get another size: switch it off first."
        raise Conflict(msg, code="not-off")
    ready = condition_of(row.conditions, ConditionType.READY)
    is_off = ready is not None and (ready["status"], ready["reason"]) == ("False", Reason.BY_OWNER)
    # A size that its provider would not give must not stand in the way of another one.
    is_unfitted = row.fitted != row.resizes and row.observed.get("power") == "off"
    is_at_rest = (
        row.observed_generation == row.generation
        and not Intent.objects.filter(object_kind="machine", object_id=row.pk, settled_at=None).exists()
    )
    if not is_at_rest or not (is_off or is_unfitted) or row.observed.get("power") != "off":
        msg = f"{row.name} is not known to be off yet: wait until it is, then ask again."
        raise Conflict(msg, code="not-off")


def _charge(allocation: Allocation, unit: Unit, wanted: Size, *, actor: Actor, now: datetime) -> None:
    """Check what it grows by against the limits, and count it by its new size. Raises `QuotaExceeded`."""
    more = {"vcpu": wanted.vcpu - unit.vcpu, "memory_gib": wanted.memory_gib - unit.memory_gib}
    end = allocation.expires_at or now + timedelta(seconds=allocation.duration_s)
    growth = {dimension: amount for dimension, amount in more.items() if amount > 0}
    quotas.check_demand(allocation.tenant, growth, during=Span(now, end), now=now, actor=actor)
    spec = AllocationSpec.from_json(allocation.spec)
    units = (replace(spec.units[0], vcpu=wanted.vcpu, memory_gib=wanted.memory_gib), *spec.units[1:])
    allocation.spec = replace(spec, units=units).as_json()
    allocation.demand = _counted(allocation.demand, more)
    allocation.save(update_fields=["spec", "demand"])
    for dimension, amount in more.items():
        charges = QuotaCharge.objects.filter(allocation=allocation, dimension=dimension)
        charges.update(amount=F("amount") + amount)


def _counted(demand: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {dimension: amount + more.get(dimension, 0) for dimension, amount in demand.items()}


def _take(row: Machine, unit: Unit, wanted: Size, *, disk_before_gib: int, now: datetime) -> None:
    """Take what it grows by from its host, or give back. Raises `Conflict` (`host-full`)."""
    room = Host.objects.values_list("free_vcpu", "free_memory_gib").get(units=unit)
    answer = ledger.resize(
        unit, vcpu=wanted.vcpu, memory_gib=wanted.memory_gib, disk_before_gib=disk_before_gib, now=now
    )
    if answer == "full":
        most_vcpu, most_memory = unit.vcpu + room[0], unit.memory_gib + room[1]
        msg = (
            f"The host of {row.name} has no room for this: it can have at most {most_vcpu} vCPUs and {most_memory} GiB "
            "of memory there. Ask for less, or make a new machine."
        )
        raise Conflict(msg, code="host-full", most_vcpu=most_vcpu, most_memory_gib=most_memory)
    if answer == "closed":
        msg = f"The host of {row.name} takes nothing more now. It can be made smaller, or try again later."
        raise Conflict(msg, code="host-full")
    if answer != "done":  # it was placed under the lock that it still has
        msg = f"a placed unit was not resized: {answer}"
        raise AssertionError(msg)
