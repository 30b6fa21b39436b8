"""What tests of the vSphere driver stand on: settings of a lab's vCenter, the walk along steps, a hand that meddles."""

from __future__ import annotations

import itertools
import os
import threading
from typing import Any
from uuid import UUID, uuid4

from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import (
    BoundaryKind,
    BoundarySpec,
    Done,
    Handle,
    Kind,
    Observed,
    Presence,
    Ref,
    Secret,
    Spec,
    Step,
)
from provisioners.vsphere.client import MoRef, VCenterClient, managed, reference
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.settings import Settings
from provisioners.vsphere.tasks import finish

TENANT = UUID("11111111-1111-4111-8111-111111111111")
_vlans = itertools.cycle(range(1000 + os.getpid() % 1000, 4000))
_counting = threading.Lock()


def settings_for(vcenter: VCenter, **more: Any) -> Settings:
    """Return the settings of a lab's vCenter, with VLANs to give."""
    told: dict[str, Any] = {"vlans": ((1000, 3999),), "access": "lab", "datacenter": "DC0"} | more
    return Settings(
        "lab", vcenter.host, vcenter.user, Secret(vcenter.password), port=vcenter.port, ca_pem=vcenter.ca_pem, **told
    )


def boundary(**more: Any) -> BoundarySpec:
    """Return a new boundary of the tenant with a VLAN of its own."""
    with _counting:
        vlan = next(_vlans)
    told: dict[str, Any] = {
        "ref": Ref(Kind.BOUNDARY, uuid4(), TENANT),
        "kind": BoundaryKind.VM,
        "tier": "shared",
        "generation": 1,
        "gateway": None,
        "vcpu": 16,
        "memory_gib": 64,
        "storage_gib": 100,
        "gpu_resources": {},
        "access": (),
        "vlan": vlan,
    }
    return BoundarySpec(**(told | more))


def unmet(driver: VSphereDriver, spec: Spec, seen: Observed) -> Step | None:
    """Return the first step whose part is not as wanted."""
    for step in driver.steps(spec):
        part = seen.part(step.name)
        if part.presence is not Presence.PRESENT or part.have != step.want or not part.ready:
            return step
    return None


def complete(driver: VSphereDriver, step: Step) -> None:
    """Start a step and wait for its end. Raises what it failed with."""
    answer = driver.start(step)
    while isinstance(answer, Handle):
        polled = driver.poll(answer)
        if polled.error is not None:
            raise polled.error
        if polled.state != "running":
            return


def walk(driver: VSphereDriver, spec: Spec, *, rounds: int = 30) -> Observed:
    """Walk until everything is as wanted. Raises the first error."""
    for _ in range(rounds):
        seen = driver.observe(spec.ref)
        step = unmet(driver, spec, seen)
        if step is None:
            return seen
        complete(driver, step)
    raise AssertionError(f"not as wanted after {rounds} rounds: {seen}")


def clear(driver: VSphereDriver, spec: Spec) -> None:
    """Undo every step, the last first."""
    for step in reversed(driver.steps(spec)):
        complete(driver, step.undoing())
    assert not driver.observe(spec.ref).exists


class Hand:
    """Somebody else at work in the same vCenter, with a session of his own."""

    def __init__(self, settings: Settings) -> None:
        self.client = VCenterClient(settings)

    def call(self, ref: MoRef, method: str, *given: Any) -> Any:
        """Call a method of an object; managed objects come back as references."""
        answer = self.client.changing(lambda si: getattr(managed(ref, si), method)(*given))
        return reference(answer) if hasattr(answer, "_moId") else answer

    def task(self, ref: MoRef, method: str, *given: Any) -> None:
        """Call a method that starts a task, and wait for it. Raises what it failed with."""
        ended = finish(self.client, self.client.start(lambda si: getattr(managed(ref, si), method)(*given)))
        assert ended == Done()

    def names(self, kind: str, name: str) -> list[MoRef]:
        """Return every object of a kind with a name, wherever it lies.

        By a new session: the lab's library leaves a pool that is made later out of a view.
        """
        self.client.close()
        return [one.ref for one in self.client.rows({kind: ("name",)})[kind] if one.values["name"] == name]

    def close(self) -> None:
        self.client.close()
