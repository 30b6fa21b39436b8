"""The control plane itself and a guest in a VM of the lab: real rows, passes, web process and gateway, stub of vLLM."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.guests import Keeper
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import sweep
from provisioners.driver import Power, machine_uuid
from provisioners.kinds import PASSES
from provisioners.passes import Engine
from provisioners.specs_from_rows import ref_of
from provisioners.vsphere.driver import VSphereDriver
from tenants import states
from tenants.models import Endpoint, EndpointKey, GatewayReplica, Hold, Host, Provider
from tenants.operations import endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk, Where
from tests import factories
from tests.provisioners.test_agent_api_process import Web, free_port
from tests.vsphere.ground import settings_for

pytestmark = [pytest.mark.real, pytest.mark.vcsim, pytest.mark.usefixtures("db")]

LONGEST_S = 100.0
NEVER = threading.Event()


class Core:
    """The control plane on one lab vCenter: passes in this process, its web side in another, guests in a thread."""

    def __init__(self, vcenter: VCenter, control: Control, folder: Path, settings: Any) -> None:
        self.control = control
        self.driver = VSphereDriver(settings_for(vcenter, templates={"endpoint": "ubuntu-24.04-gpu"}))
        self.engine = Engine(driver_of=lambda _: self.driver, base_s=0.1, jitter=lambda: 1.0)
        self._stop = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._home = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._guests = threading.Thread(target=Keeper(control, folder / "guests").run, args=(self._stop,), daemon=True)
        self._home.start()
        self._guests.start()
        self._web = Web(folder, "", free_port())
        self._await(self._web.start())
        settings.TENANTRY_PUBLIC_URL = self._web.url
        found = self.driver.capabilities()
        self.provider = factories.provider(
            kind="vsphere",
            config={"vlans": "1000-3999"},
            capabilities={
                "boundary_kinds": sorted(str(kind) for kind in found.boundary_kinds),
                "bindings": sorted(str(binding) for binding in found.bindings),
                "features": dict(found.features),
            },
            due_at=None,
        )
        self.look_until(Host.objects.exists)
        Host.objects.update(state="open")
        self.look_until(lambda: Host.objects.filter(placeable=True).exists())

    def _await(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        self._stop.set()
        self._guests.join(20)
        self._await(self._web.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._home.join(5)
        self._loop.close()
        self.driver.close()

    def look_until(self, so: Callable[[], bool]) -> None:
        """Take snapshots until they show something."""
        self.until(so, look=True)

    def until(self, so: Callable[[], bool], *, look: bool = False) -> None:
        """Sweep until a condition holds."""
        deadline = time.monotonic() + LONGEST_S
        while not so():
            if look:
                Provider.objects.update(due_at=datetime.now(UTC) - timedelta(seconds=1))
            sweep.sweep(self.engine)
            assert time.monotonic() < deadline, self.explain()
            NEVER.wait(0.05)

    def explain(self) -> str:
        lines = []
        for kind in PASSES.values():
            for row in kind.model._base_manager.filter(released_at__isnull=True):
                said = [f"{c['type']}={c['status']} {c['reason']} {c['message']}" for c in row.conditions]
                lines.append(f"{kind.word} {row.phase} due={row.due_at} failures={row.failures} {said}")
        return "\n".join(lines)

    def answered(self, address: str, key: str, so: Callable[[int, Any], bool]) -> Any:
        """Ask until the answer is as it should be, sweeping meanwhile."""
        seen: list[Any] = []

        def asked() -> bool:
            seen.append(ask(address, key))
            return so(*seen[-1])

        self.until(asked)
        return seen[-1][1]


def ask(address: str, key: str, *, patience_s: float = 10) -> tuple[int, Any]:
    body = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": "hello"}]}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", body, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=patience_s) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, {}
    except OSError:
        return 0, {}


def is_ready() -> bool:
    row = Endpoint.objects.get()
    ready = states.condition_of(row.conditions, states.ConditionType.READY)
    return ready is not None and ready["status"] == "True" and row.observed_generation == row.generation


@pytest.fixture
def core(vcenters: Callable[..., VCenter], tmp_path: Path, settings: Any) -> Iterator[Core]:
    with vcenters("serving-core").control() as control:
        made = Core(vcenters("serving-core"), control, tmp_path, settings)
        yield made
        made.close()


def test_from_the_asking_to_an_answer_and_nothing_left(core: Core) -> None:
    tenant = factories.tenant()
    factories.generous(tenant)
    factories.served_model()
    member = factories.actor(factories.member(tenant, states.Role.OWNER))
    unit = UnitAsk(GpuAsk("H100-80GB", "3g.40gb"), vcpu=4, memory_gib=16)
    allocation = AllocationSpec((unit,), Where(kind=states.BoundaryKind.VM))
    asked = EndpointAsk("alpha", RevisionAsk("llama-3-1-8b"), allocation)
    made = endpoints.create(tenant=tenant, ask=asked, actor=member, now=datetime.now(UTC))

    core.until(is_ready)
    row = Endpoint.objects.get()
    body = core.answered(row.address, made.secret, lambda status, _: status == 200)
    gateway = GatewayReplica.objects.get()
    [vm] = [one for one in core.control.guests() if one.running]
    assert vm.uuid == str(machine_uuid(gateway.pk))
    assert (row.reachable_from, gateway.enrolled_at is not None, gateway.token_sealed) == ("lab", True, None)
    assert f"simulated VM {vm.name}" in body["choices"][0]["message"]["content"]
    assert ask(row.address, "tnk_wrong")[0] == 401

    endpoints.revise(
        endpoint=row, ask=RevisionAsk("llama-3-1-8b", {"max_model_len": 2048}), actor=member, now=datetime.now(UTC)
    )
    core.answered(row.address, made.secret, lambda status, told: status == 200 and told["tenantry"]["revision"] == 2)
    core.until(is_ready)

    core.driver.power(ref_of(row), want=Power.OFF)  # somebody, or a host, switches the machine off
    core.until(lambda: not any(one.running for one in core.control.guests()))
    endpoints.update(endpoint=row, changes={"description": "look at it"}, actor=member, now=datetime.now(UTC))
    core.until(lambda: any(one.running for one in core.control.guests()), look=True)
    core.until(is_ready)
    core.answered(address(), made.secret, lambda status, _: status == 200)
    assert GatewayReplica.objects.get().credential_digest == gateway.credential_digest

    key = EndpointKey.objects.get()
    endpoints.revoke_key(endpoint=Endpoint.objects.get(), key=key, actor=member, now=datetime.now(UTC))
    core.answered(address(), made.secret, lambda status, _: status == 401)

    endpoints.delete(endpoint=Endpoint.objects.get(), actor=member, now=datetime.now(UTC))
    core.until(lambda: Endpoint.objects.get().released_at is not None)
    assert [window for gpu in core.control.gpus() for window in gpu.held] == []
    assert not Hold.objects.filter(kind="tenant", during__contains=datetime.now(UTC)).exists()
    assert [one for one in core.control.guests() if one.name.startswith("tn-")] == []


def address() -> str:
    return str(Endpoint.objects.get().address)
