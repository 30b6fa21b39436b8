"""An endpoint in a VM of the lab, by the driver alone: what its guest calls home, a keeper of guests, the real plan."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from aiohttp import web

from controlplane.labs.errors import LabError
from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.guests import ROUND_S, Keeper
from provisioners import plan
from provisioners.driver import (
    Binding,
    BoundaryKind,
    BoundarySpec,
    EndpointSpec,
    GatewaySpec,
    Kind,
    Observed,
    Power,
    Ref,
    Secret,
    ServingSpec,
    Step,
    UnitSpec,
    intent_hash,
    machine_uuid,
)
from provisioners.gateway import keys
from provisioners.gateway.protocol import Backend, EndpointConfig, EndpointKey, EnrolRequest, ServingAnswer, parse
from provisioners.serving import replica
from provisioners.serving.runtime import PLACES, RevisionFacts, UnitFacts
from provisioners.serving.vllm import VLLM
from provisioners.steps import indexed, split
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.machines import Machines
from provisioners.vsphere.vms import Vm
from tests.gateway_lab import ControlPlane
from tests.vsphere.ground import complete

LONGEST_S = 30.0
LOOK_S = 0.1


def unit(index: int = 0, *, host: str = "DC0_C0_H0", profile: str = "3g.40gb") -> UnitSpec:
    """Return one placed unit."""
    return UnitSpec(
        uuid4(), index, host, "H100-80GB", profile, 0, Binding.HOST, ("",), (0,), vcpu=4, memory_gib=16
    )  # fmt: skip


def serving(number: int = 1, **arguments: Any) -> ServingSpec:
    """Return a revision as the typed runtime renders it."""
    facts = RevisionFacts(
        uid=uuid4(), number=number, endpoint="alpha", source="org/model", commit="a" * 40, quantisation="",
        arguments=arguments, hop_key=Secret(f"hop-{uuid4().hex}"),
    )  # fmt: skip
    made = VLLM.render(facts, UnitFacts(1, "3g.40gb", 16), PLACES[BoundaryKind.VM])
    return ServingSpec(
        facts.uid, number, "alpha", facts.source, facts.commit, "vllm", made.argv, made.environment, made.secrets
    )


class ControlOfGuest(ControlPlane):
    """What one guest calls home: enrolment bound to its machine, what to serve, the gateway's configuration."""

    def __init__(self, gateway: UUID) -> None:
        super().__init__(gateway)
        self.wants: ServingSpec | None = None
        self.bound = True
        self.fetched = 0

    def routes(self) -> list[web.RouteDef]:
        return [*super().routes(), web.get("/agent/v1/serving", self._serving)]

    def arm(self) -> Secret:
        """Make a fresh token and end the old credential, as the core does."""
        self.token = keys.make_enrolment_token().plain
        self.credential_digest = ""
        return Secret(self.token)

    async def _enrol(self, request: web.Request) -> web.Response:
        asked = parse(EnrolRequest, await request.read())
        if self.bound and asked.machine_uuid != machine_uuid(self.gateway_uid):
            self.enrolments.append(asked)
            return web.Response(status=401)
        return await super()._enrol(request)

    async def _serving(self, request: web.Request) -> web.Response:
        if status := self._refused(request):
            return web.Response(status=status)
        if self.wants is None:
            return web.Response(status=204)
        self.fetched += 1
        told = ServingAnswer(
            want=intent_hash(replica.want_of(self.wants, self.gateway_uid)),
            revision_uid=self.wants.revision_uid,
            revision=self.wants.revision,
            model=self.wants.model,
            argv=self.wants.argv,
            environment=dict(self.wants.environment),
            secrets={name: secret.reveal() for name, secret in self.wants.secrets.items()},
            port=8000,
        )
        return web.Response(body=told.model_dump_json().encode(), content_type="application/json")


class Story:
    """One endpoint of one unit: what is wanted, and the walk there by the plan that passes use."""

    def __init__(self, driver: VSphereDriver, boundary: BoundarySpec, control: Control, folder: Path) -> None:
        self.driver = driver
        self.machines = Machines(driver.ground)
        self.unit = unit()
        self.home = ControlOfGuest(self.unit.uid)
        self.key = keys.make("test")
        self._folder = folder
        self.started: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._never = threading.Event()
        self._home = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._home.start()
        self.play(control)
        self.at_home(self.home.start())
        self.spec = EndpointSpec(
            ref=Ref(Kind.ENDPOINT, uuid4(), boundary.ref.tenant_uid),
            boundary=boundary.ref,
            boundary_kind=BoundaryKind.VM,
            generation=1,
            serving=serving(),
            units=(self.unit,),
            gateways=(GatewaySpec(self.unit.uid, self.home.url, None),),
        )

    def play(self, control: Control) -> None:
        """Begin to play the guests, with the disks that are there."""
        self.keeper, stop = Keeper(control, self._folder), threading.Event()
        self._stop = stop

        def work() -> None:
            while not stop.wait(ROUND_S):
                with contextlib.suppress(LabError):  # a vCenter that is away comes back
                    self.keeper.round()

        self._player = threading.Thread(target=work, daemon=True)
        self._player.start()

    def stop_playing(self, *, halt: bool = True) -> None:
        """Play no more; without `halt` as one that was killed: what it played runs on."""
        self._stop.set()
        self._player.join(20)
        if halt:
            self.keeper.close()

    def close(self) -> None:
        self.stop_playing()
        self.at_home(self.home.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._home.join(5)
        self._loop.close()

    def at_home(self, work: Any) -> Any:
        """Run a coroutine of the control plane."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def publish(self, *, revision: int = 1, key: keys.NewKey | None = None) -> None:
        """Configure the gateway: one endpoint, the backend that the driver shows, one key."""

        async def work() -> None:
            seen = await asyncio.to_thread(self.seen)
            hop = self.home.wants.secrets["VLLM_API_KEY"].reveal() if self.home.wants else ""
            backends = tuple(
                Backend(unit_uid=one.uid, url=one.backend, revision=revision) for one in seen.units if one.backend
            )
            opened, hops = key or self.key, (hop,) if hop else ()
            told = EndpointConfig(
                uid=self.spec.ref.uid, name="alpha", tenant=self.spec.ref.tenant_uid, models=("alpha",),
                backends=backends, keys=(EndpointKey(id=opened.id, digest=opened.digest),), hop_keys=hops,
            )  # fmt: skip
            self.home.publish(told)

        self.at_home(work())

    def vm(self) -> Vm:
        """Return its one VM."""
        found = self.machines.find(self.spec.ref, 0)
        assert found is not None
        return found

    # --- walking ----------------------------------------------------------------------------------

    def seen(self) -> Observed:
        return self.driver.observe(self.spec.ref)

    def steps(self) -> list[Step]:
        return list(self.driver.steps(self.spec))

    def once(self, *, stale: frozenset[str] = frozenset(), deleting: bool = False) -> plan.Action:
        """Plan one action and do it."""
        action = plan.plan(self.steps(), self.seen(), deleting=deleting, stale=stale)
        match action:
            case plan.Start(step):
                self.start(step)
            case plan.Poll(handle):
                while self.driver.poll(handle).state == "running":
                    self._never.wait(LOOK_S / 5)
        return action

    def start(self, step: Step) -> None:
        """Start a step and wait for its end; a gateway gets its token now."""
        self.started.append(step.name + (" undo" if step.undo else ""))
        if split(step.name)[0] == "vm.gateway" and not step.undo:
            token = self.at_home(self._arm())
            armed = replace(self.spec, gateways=(replace(self.spec.gateways[0], enrolment_token=token),))
            step = next(one for one in self.driver.steps(armed) if one.name == step.name)
        complete(self.driver, step)

    async def _arm(self) -> Secret:
        return self.home.arm()

    def until(self, end: Callable[[plan.Action], bool], *, longest_s: float = LONGEST_S, **how: Any) -> plan.Action:
        """Act until an action ends it. Fails with the last action and what was seen."""
        deadline = time.monotonic() + longest_s
        while True:
            action = self.once(**how)
            if end(action):
                return action
            if time.monotonic() > deadline:
                raise AssertionError(f"{action}\n{self.seen()}")
            if isinstance(action, plan.Nothing):
                self._never.wait(LOOK_S)

    def ready(self) -> Observed:
        """Walk until everything is there and works."""
        self.home.wants = self.spec.serving
        self.until(lambda action: isinstance(action, plan.Nothing) and action.ready)
        return self.seen()

    def gone(self) -> None:
        """Walk back until nothing is left."""
        self.until(lambda action: isinstance(action, plan.Forget), deleting=True)

    def wait_for(self, step: str, why: str) -> plan.Nothing:
        """Walk until one part is waited for with some words."""

        def waits(action: plan.Action) -> bool:
            return isinstance(action, plan.Nothing) and action.step == indexed(step, 0) and why in action.why

        action = self.until(waits)
        assert isinstance(action, plan.Nothing)
        return action

    def await_(self, held: Callable[[], bool]) -> None:
        """Wait until something holds that nobody here does."""
        deadline = time.monotonic() + LONGEST_S
        while not held():
            assert time.monotonic() < deadline
            self._never.wait(LOOK_S)

    def want(self, **changes: Any) -> None:
        self.spec = replace(self.spec, **changes)

    def switch(self, power: Power) -> None:
        self.want(power=power)

    # --- asking -----------------------------------------------------------------------------------

    def ask(self, address: str, *, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """Return (status, body) of one chat completion through the gateway."""
        body = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": "hello"}]}).encode()
        headers = {"Authorization": f"Bearer {key or self.key.plain}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/chat/completions", body, headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def answers(self, address: str, *, key: str | None = None, status: int = 200) -> dict[str, Any]:
        """Ask until it is answered with a status; the gateway hears of a change a moment later."""
        deadline = time.monotonic() + LONGEST_S
        while True:
            try:
                got, body = self.ask(address, key=key)
            except OSError as error:
                got, body = 0, {"error": str(error)}
            if got == status:
                return body
            assert time.monotonic() < deadline, (got, body)
            self._never.wait(LOOK_S)


@contextmanager
def story(driver: VSphereDriver, boundary: BoundarySpec, control: Control, folder: Path) -> Iterator[Story]:
    """Tell one story; its processes end with it."""
    told = Story(driver, boundary, control, folder)
    try:
        yield told
    finally:
        told.close()
