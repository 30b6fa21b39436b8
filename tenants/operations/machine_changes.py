"""A machine that is there and is made anew: of its image or another, on the capacity that it holds.

The one way to another image, and the one way back for a machine that its provider lost: what was on the disk is gone
in both.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from tenants import access, desired, machine_images
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.feasibility import locked_path
from tenants.models import Allocation, Machine, Provider
from tenants.operations.allocations import expect_version
from tenants.policies import ROUTES
from tenants.specs import AllocationSpec
from tenants.transactions import operation


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
