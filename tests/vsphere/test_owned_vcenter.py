"""What no simulator can show, against a vCenter with GPU hosts of one's own: opt-in, each test a short script.

TENANTRY_OWN_VCENTER names a JSON file; without it everything here is skipped:

    {"config": {"url": "https://…", "user": "…", "ca_pem": "…", "vlans": "1290-1299", "templates": {"ubuntu": "…"}},
     "password": "…", "hosts": ["esx-1"], "may": ["make", "fill", "move"],
     "tenant": {"user": "…", "password": "…"}}

`may` says what it may do there: `make` boundaries and machines, `fill` a host's GPUs, `move` a running machine. `hosts`
are the only ones that are touched. Everything made is taken away. The file of a lab's vCenter will do to try the tests
themselves. Not covered: addresses and licences of guests (look at acceptance), HA, encryption, device groups, DRS of
others. Nothing of the driver asks the REST side of a vCenter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pyVmomi import vim

from provisioners.driver import (
    Acceptance,
    Binding,
    BoundaryKind,
    BoundarySpec,
    Handle,
    Kind,
    MachineSpec,
    NoCapacity,
    Observed,
    Presence,
    Ref,
    Secret,
    Spec,
    TransientDriverError,
    UnitSpec,
)
from provisioners.vsphere import gpu_types, privileges
from provisioners.vsphere.client import MoRef, VCenterClient, managed, reference
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.failures import AccessDenied
from provisioners.vsphere.settings import Settings, settings_of
from provisioners.vsphere.tasks import finish

FILE = os.environ.get("TENANTRY_OWN_VCENTER", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not FILE, reason="TENANTRY_OWN_VCENTER names no vCenter"),
]
LONG_S = 3600.0
log = logging.getLogger(__name__)
"""What was measured: `pytest --log-cli-level=INFO`."""


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(FILE).read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def settings(own: dict[str, Any]) -> Settings:
    return settings_of(own["config"], {"password": Secret(own["password"])})


@pytest.fixture(scope="module")
def driver(settings: Settings) -> Iterator[VSphereDriver]:
    made = VSphereDriver(settings)
    yield made
    made.close()


@pytest.fixture(scope="module")
def place(driver: VSphereDriver, settings: Settings, may: Callable[[str], None]) -> Iterator[BoundarySpec]:
    """A boundary of a tenant that does not exist, with the last VLAN of the range."""
    may("make")
    made = BoundarySpec(
        ref=Ref(Kind.BOUNDARY, uuid4(), uuid4()), kind=BoundaryKind.VM, tier="shared", generation=1, gateway=None,
        vcpu=64, memory_gib=512, storage_gib=1000, gpu_resources={}, access=(), vlan=settings.vlans[-1][1],
    )  # fmt: skip
    try:
        reached(driver, made)
        yield made
    finally:
        gone(driver, made)


@pytest.fixture(scope="module")
def may(own: dict[str, Any]) -> Callable[[str], None]:
    def check(what: str) -> None:
        if what not in own.get("may", []):
            pytest.skip(f"the file does not say that this may {what}")

    return check


@pytest.fixture
def machine(driver: VSphereDriver, place: BoundarySpec, own: dict[str, Any]) -> Iterator[MachineSpec]:
    made = spec(driver, place, own["hosts"][0])
    try:
        yield made
    finally:
        gone(driver, made)


# --- walking --------------------------------------------------------------------------------------


def patiently(look: Callable[[], Any], *, within_s: float = LONG_S, every_s: float = 1.0) -> Any:
    """Return what a look finds as soon as it finds something; what is transient is looked at again."""
    end, last = time.monotonic() + within_s, None
    while time.monotonic() < end:
        try:
            found = look()
        except TransientDriverError as error:
            found, last = None, error
        if found is not None:
            return found
        threading.Event().wait(every_s)
    raise AssertionError(f"not in time: {last}")


def reached(driver: VSphereDriver, wanted: Spec) -> Observed:
    """Walk until everything is as wanted. Raises what is not transient."""

    def look() -> Observed | None:
        seen = driver.observe(wanted.ref)
        for step in driver.steps(wanted):
            part = seen.part(step.name)
            if part.presence is Presence.CHANGING or (part.have == step.want and not part.ready):
                return None
            if part.presence is not Presence.PRESENT or part.have != step.want:
                ended(driver, driver.start(step))
                return None
        return seen

    found: Observed = patiently(look)
    return found


def gone(driver: VSphereDriver, wanted: Spec) -> None:
    """Walk backwards until nothing is left."""

    def look() -> bool | None:
        seen = driver.observe(wanted.ref)
        if not seen.exists:
            return True
        names = {step.name: step for step in driver.steps(wanted)}
        ended(driver, driver.start(names[seen.parts[-1].step].undoing()))
        return None

    patiently(look)


def ended(driver: VSphereDriver, answer: Any) -> None:
    if not isinstance(answer, Handle):
        return

    def look() -> bool | None:
        told = driver.poll(answer)
        if told.error is not None:
            raise told.error
        return True if told.state != "running" else None

    patiently(look)


def spec(driver: VSphereDriver, place: BoundarySpec, host: str) -> MachineSpec:
    """Return a machine with the smallest part of a GPU that a host offers."""
    product, profile = smallest(driver, host)
    unit = UnitSpec(uuid4(), 0, host, product, profile, 0 if profile else 1, Binding.HOST, (), (), 2, 8, role="machine")
    ref = Ref(Kind.MACHINE, uuid4(), place.ref.tenant_uid)
    return MachineSpec(ref, place.ref, 1, unit, min(driver.settings.templates), 0, ())


def smallest(driver: VSphereDriver, host: str) -> tuple[str, str]:
    [seen] = [one for one in driver.snapshot().hosts if one.host == host]
    product = seen.gpus[0].product
    offered = types_of(driver, host)
    kinds = [kind for name in offered if (kind := gpu_types.read(name, product=product)) is not None and kind.is_mig]
    return product, min(kinds, key=lambda kind: (kind.size, kind.name)).profile if kinds else ""


def types_of(driver: VSphereDriver, host: str) -> list[str]:
    told = driver.client.get(driver.ground.host(host).ref, "config.sharedPassthruGpuTypes") or {}
    return list(told.get("config.sharedPassthruGpuTypes") or ())


def vm_of(driver: VSphereDriver, wanted: MachineSpec) -> MoRef:
    [found] = [one for one in driver.ground.vms_of(wanted.ref) if one.is_ours]
    return found.ref


# --- reading --------------------------------------------------------------------------------------


def test_what_it_can_do_is_told_and_nothing_is_missing(driver: VSphereDriver) -> None:
    able = driver.capabilities()

    log.info(able.version)
    assert {name: text for name, text in able.missing.items() if name.startswith("right:")} == {}


def test_every_privilege_of_the_table_is_one_of_this_vcenter(driver: VSphereDriver) -> None:
    known = driver.client.reading(
        lambda session: {str(one.privId) for one in session.content.authorizationManager.privilegeList or ()}
    )
    if not known:
        pytest.skip("it does not tell its privileges")

    assert {right.privilege for right in privileges.needed()} <= known


def test_every_string_that_hosts_offer_is_explained(driver: VSphereDriver) -> None:
    """Item 4: most strings of the catalogue are made by a rule; here is whether the rule holds."""
    seen = driver.snapshot()
    assert seen.complete, seen.version
    unknown = {}
    for host in seen.hosts:
        products = {gpu.product for gpu in host.gpus}
        offered = [name for name in types_of(driver, host.host) if name.rstrip("me").endswith("c")]
        explained = {name for name in offered for one in products if gpu_types.read(name, product=one) is not None}
        if left := sorted(set(offered) - explained):
            unknown[host.host] = left
    assert unknown == {}


def test_two_reads_of_an_estate_at_rest_are_one(driver: VSphereDriver) -> None:
    first, second = driver.snapshot(), driver.snapshot()

    assert first.objects == second.objects
    assert {use.name for use in first.uses} == {use.name for use in second.uses}


def test_a_session_that_was_toldis_made_anew(driver: VSphereDriver, settings: Settings) -> None:
    """Item 10: an idle session ends so; the ceiling of sessions is not tried."""
    mine = driver.client.reading(lambda session: str(session.content.sessionManager.currentSession.key))
    other = VCenterClient(settings)
    try:
        other.changing(lambda si: si.content.sessionManager.TerminateSession([mine]))
    except AccessDenied:
        pytest.skip("the account may not end its own sessions")
    finally:
        other.close()

    assert driver.snapshot().hosts


# --- making ---------------------------------------------------------------------------------------


def test_hosts_pass_their_acceptance(driver: VSphereDriver, own: dict[str, Any], may: Callable[[str], None]) -> None:
    """Items 4, 5 and 7: the string is taken, EFI and MMIO boot, cloud-init runs, the guest's driver answers."""
    may("make")
    for host in own["hosts"]:

        def look(host: str = host) -> Acceptance | None:
            return driver.acceptance(host)

        verdict: Acceptance = patiently(look, every_s=5.0)
        log.info("%s: %s", host, verdict)
        assert verdict.passed, verdict


def test_a_boundary_is_as_it_was_asked_for(driver: VSphereDriver, place: BoundarySpec) -> None:
    """Item 2 as far as vCenter shows it: that no frame passes is for two machines to try."""
    seen = driver.observe(place.ref)

    assert [(part.step, part.have) for part in seen.parts] == [(step.name, step.want) for step in driver.steps(place)]


def test_a_machine_runs_where_it_was_put_and_leaves_nothing(driver: VSphereDriver, machine: MachineSpec) -> None:
    """Items 8 and 9: how long a clone takes, and that the cluster's automation does not move it."""
    began = time.monotonic()
    seen = reached(driver, machine)
    log.info("from nothing to power in %.0f s", time.monotonic() - began)

    assert [unit.host for unit in seen.units] == [machine.unit.host]
    [use] = [one for one in driver.snapshot().uses if one.ref == machine.ref]
    assert (use.unit, use.profile, bool(use.device)) == (machine.unit.uid, machine.unit.profile, True)
    gone(driver, machine)
    assert machine.ref not in {one.ref for one in driver.snapshot().objects}


def test_a_second_vm_with_its_uuid_does_not_confuse_it(driver: VSphereDriver, machine: MachineSpec) -> None:
    """Item 11: what a vCenter does with an instance UUID that exists."""
    reached(driver, machine)
    vm = vm_of(driver, machine)
    told = driver.client.get(vm, "config.instanceUuid", "parent", "resourcePool") or {}
    folder, pool = reference(told["parent"]), reference(told["resourcePool"])
    same = vim.vm.ConfigSpec(
        name=f"same-{uuid4().hex[:8]}", instanceUuid=told["config.instanceUuid"], guestId="otherLinux64Guest",
        numCPUs=1, memoryMB=64, files=vim.vm.FileInfo(vmPathName=f"[{datastore_of(driver, vm)}]"),
    )  # fmt: skip
    client = driver.client
    task = client.start(lambda si: managed(folder, si).CreateVM_Task(same, managed(pool, si), None))
    made = patiently(lambda: client.task(task) if client.task(task).is_over else None)
    try:
        log.info("vCenter %s it", "refuses" if made.error else "takes")
        assert vm_of(driver, machine) == vm
        assert driver.observe(machine.ref).exists
    finally:
        if made.error is None:
            finish(client, client.start(lambda si: managed(made.result, si).Destroy_Task()), within_s=60)


def datastore_of(driver: VSphereDriver, vm: MoRef) -> str:
    told = driver.client.get(vm, "datastore") or {}
    return str((driver.client.get(reference(told["datastore"][0]), "name") or {})["name"])


def test_a_host_that_is_full_says_so_at_power_on(
    driver: VSphereDriver, place: BoundarySpec, own: dict[str, Any], may: Callable[[str], None]
) -> None:
    """Item 3: machines with the smallest part until the host refuses one."""
    may("fill")
    host = own["hosts"][0]
    made: list[MachineSpec] = []

    def fill() -> None:
        for _ in range(200):
            made.append(spec(driver, place, host))
            reached(driver, made[-1])

    try:
        with pytest.raises(NoCapacity):
            fill()
        running = [one for one in driver.snapshot().uses if one.host == host and one.ref is not None]
        log.info("%d of %s %s fit on %s", len(running), made[0].unit.product, made[0].unit.profile, host)
        assert len(running) == len(made) - 1
        assert not next(one for one in driver.snapshot().hosts if one.host == host).contradictions
    finally:
        for one in reversed(made):
            gone(driver, one)


def test_a_running_machine_that_somebody_moves_is_seen_where_it_is(
    driver: VSphereDriver, machine: MachineSpec, own: dict[str, Any], may: Callable[[str], None]
) -> None:
    """Item 6: vMotion with a vGPU needs `vgpu.hotmigrate.enabled`; what is measured is the whole task."""
    may("move")
    if len(own["hosts"]) < 2:
        pytest.skip("the file names one host only")
    reached(driver, machine)
    vm, there = vm_of(driver, machine), driver.ground.host(own["hosts"][1])
    where = vim.vm.RelocateSpec()

    def move(si: Any) -> Any:
        where.host = managed(there.ref, si)
        return managed(vm, si).RelocateVM_Task(where)

    began = time.monotonic()
    task = driver.client.start(move)
    told = patiently(lambda: driver.client.task(task) if driver.client.task(task).is_over else None)
    log.info("%.0f s, %s", time.monotonic() - began, told.error and told.error.raw)
    [unit] = driver.observe(machine.ref).units
    assert unit.host == (machine.unit.host if told.error else there.name)


# --- a tenant's own login -------------------------------------------------------------------------


def test_a_tenants_login_may_nothing_outside_its_folder(
    driver: VSphereDriver, settings: Settings, own: dict[str, Any], machine: MachineSpec
) -> None:
    """Item 1: permissions are what no simulator enforces."""
    if "tenant" not in own:
        pytest.skip("the file names no tenant's login")
    reached(driver, machine)
    vm, root = vm_of(driver, machine), driver.ground.estate().vm_folder
    stranger = VCenterClient(replace(settings, user=own["tenant"]["user"], password=Secret(own["tenant"]["password"])))
    tries: dict[str, Callable[[Any], Any]] = {
        "make a folder": lambda si: managed(root, si).CreateFolder(f"not-{uuid4().hex[:8]}"),
        "switch a machine off": lambda si: managed(vm, si).PowerOffVM_Task(),
        "change a machine": lambda si: managed(vm, si).ReconfigVM_Task(vim.vm.ConfigSpec(annotation="x")),
    }
    allowed = []
    for what, change in tries.items():
        with contextlib.suppress(AccessDenied):
            stranger.changing(change)
            allowed.append(what)
    stranger.close()

    assert allowed == []
