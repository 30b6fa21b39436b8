"""Machines of a Supervisor for tests, and what vm-operator would tell of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from provisioners.driver import Binding, BoundaryKind, BoundarySpec, Kind, MachineSpec, Ref, UnitSpec

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGsn0q1X6zQ8o2a4mSx0U3d1iV8m4w6n2bJr7aQyV9Hk someone@example"
TYPES = ("nvidia_h100xm-1-10c", "nvidia_h100xm-3-40c", "nvidia_h100xm-80c")
IMAGE = "vmi-0a0044d7c690bcbea"


def unit(**changes: Any) -> UnitSpec:
    base = UnitSpec(
        uid=uuid4(), index=0, host="esx-1.example", product="H100-80GB", profile="1g.10gb", gpu_count=0,
        binding=Binding.HOST, devices=(), starts=(), vcpu=8, memory_gib=64, role="machine",
    )  # fmt: skip
    return replace(base, **changes)


def machine(boundary: Ref | None = None, **changes: Any) -> MachineSpec:
    tenant = boundary.tenant_uid if boundary is not None else UUID(int=7)
    base = MachineSpec(
        ref=Ref(Kind.MACHINE, uuid4(), tenant),
        boundary=boundary or Ref(Kind.BOUNDARY, uuid4(), tenant),
        generation=1,
        unit=unit(),
        image=IMAGE,
        disk_gib=200,
        ssh_keys=(KEY,),
        ssh_ca=KEY,
        ssh_principals=("tenant-1", "machine-1"),
        ssh_revoked_url="https://tenantry.example/ssh/revoked",
    )
    return replace(base, **changes)


def vm_boundary(**changes: Any) -> BoundarySpec:
    base = BoundarySpec(
        ref=Ref(Kind.BOUNDARY, uuid4(), uuid4()), kind=BoundaryKind.VM, tier="shared", generation=1, gateway=None,
        vcpu=32, memory_gib=256, storage_gib=500, gpu_resources={"H100-80GB.1g.10gb": 2}, access=(),
    )  # fmt: skip
    return replace(base, **changes)


def condition(kind: str, status: str, reason: str = "Played", message: str = "") -> dict[str, str]:
    return {
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip


def status(power: str, address: str = "", **more: Any) -> dict[str, Any]:
    """What vm-operator tells of a machine that it made."""
    found: dict[str, Any] = {
        "powerState": power,
        "uniqueID": "vm-42",
        "nodeName": "esx-1.example",
        "conditions": [condition("VirtualMachineCreated", "True")],
        **more,
    }
    return found | ({"network": {"primaryIP4": address}} if address else {})
