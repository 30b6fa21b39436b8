"""Gateways and model servers on a real control plane whose pods are played: they answer, fail and end as pods do.

The gateway is the real program, started from the argv, environment and Secret that its pod really has; a stub stands
for vLLM. What calls home is answered by a control plane of the test's own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import httpx
import pytest

from provisioners.driver import (
    Binding,
    BoundarySpec,
    DriverError,
    EndpointSpec,
    GatewaySpec,
    Kind,
    NoCapacity,
    Observed,
    Power,
    Presence,
    Ref,
    Secret,
    Spec,
    Step,
    UnitSpec,
)
from provisioners.gateway import keys
from provisioners.gateway.protocol import Backend, EndpointConfig, EndpointKey, EndpointState
from provisioners.kubernetes import gateways, workloads
from provisioners.kubernetes.client import Cluster
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.ground import INSIDE
from provisioners.kubernetes.objects import dig, name_of, uid_of
from provisioners.plan import Blocked, Forget, Nothing, Poll, Start, plan
from tests.gateway_lab import ControlPlane
from tests.kubernetes import samples

if TYPE_CHECKING:
    from provisioners.kubernetes.settings import Settings

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]

REGISTRY = "registry.lab.internal"
PATIENCE_S = 90.0
PLUGIN_NODE, PARTS_NODE = "h100-mixed", "h100-parts"


class Home:
    """A control plane for one gateway, in a thread of its own."""

    def __init__(self) -> None:
        self.uid = uuid4()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.control = self.call(self._made())

    async def _made(self) -> ControlPlane:
        control = ControlPlane(self.uid)
        await control.start()
        return control

    def call(self, doing: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(10)

    def publish(self, *endpoints: EndpointConfig) -> None:
        async def act() -> None:
            self.control.publish(*endpoints)

        self.call(act())

    def renew(self, token: str) -> None:
        """Take this token only, from a gateway that has no credential yet."""
        self.control.token, self.control.credential_digest = token, ""

    def close(self) -> None:
        self.call(self.control.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Tenancy:
    """One boundary with a gateway, and an endpoint in it."""

    def __init__(self, settings: Settings) -> None:
        self.driver = KubernetesDriver(settings)
        self.cluster: Cluster = self.driver.cluster
        self.home = Home()
        tenant = uuid4()
        self.boundary: BoundarySpec = samples.boundary(
            ref=Ref(Kind.BOUNDARY, uuid4(), tenant),
            gateway=GatewaySpec(self.home.uid, self.home.control.url, Secret(self.home.control.token)),
            vcpu=32,
            memory_gib=128,
            gpu_resources={"H100-80GB.1g.10gb": 3, "H100-80GB": 1},
            access=(),
        )
        self.home.control.boundary_uid = self.boundary.ref.uid
        self.endpoint: EndpointSpec = replace(
            samples.endpoint(unit()),
            ref=Ref(Kind.ENDPOINT, uuid4(), tenant),
            boundary=self.boundary.ref,
            serving=samples.serving(secrets={"HF_TOKEN": Secret(samples.HF_TOKEN)}),
        )

    def use(self, **changes: Any) -> None:
        """Go on with other settings."""
        self.driver.close()
        self.driver = KubernetesDriver(replace(self.driver.settings, **changes))
        self.cluster = self.driver.cluster

    # --- walking ----------------------------------------------------------------------------------

    def drive(self, spec: Spec, *, until: Callable[[Observed], bool] | None = None, deleting: bool = False) -> Observed:
        """Do what the plan says until all is ready (or gone, or `until`); retry what is transient."""
        deadline, said = time.monotonic() + PATIENCE_S, "nothing"
        while time.monotonic() < deadline:
            try:
                seen = self.driver.observe(spec.ref)
                if until is not None and until(seen):
                    return seen
                action = plan(self.driver.steps(spec), seen, deleting=deleting)
                said = said if "(raw" in said and isinstance(action, Start) else str(action)[:500]
                match action:
                    case Forget() | Nothing(ready=True):
                        if until is None:
                            return seen
                    case Start(step):
                        self._run(step)
                        continue
                    case Poll(handle):
                        self.driver.poll(handle)
                    case Blocked(reason):
                        said = reason
                    case Nothing():
                        pass
            except NoCapacity:
                raise
            except DriverError as error:
                said = f"{error.detail} (raw: {error.raw})"
            time.sleep(0.1)  # noqa: TID251 - asks a real server again
        msg = f"not so in time; last: {said}"
        raise AssertionError(msg)

    def _run(self, step: Step) -> None:
        self.driver.start(step)

    def message(self, spec: Spec, step: str, words: str) -> None:
        """Wait until a part says `words`."""
        self.drive(spec, until=lambda seen: words in seen.part(step).message)

    def remove(self) -> None:
        for spec in (self.endpoint, self.boundary):
            self.drive(spec, deleting=True)

    def left(self) -> list[str]:
        labels = f"tenantry.internal/tenant={self.boundary.ref.tenant_uid}"
        found = []
        for kind in ("v1 Namespace", "v1 Pod", *(f"{one.api} {one.kind}" for one in INSIDE)):
            api, _, name = kind.partition(" ")
            if self.cluster.serves(api, name):
                found += [f"{name} {name_of(one)}" for one in self.cluster.list(api, name, labels=labels).items]
        return found

    def close(self) -> None:
        namespace = self.cluster.get("v1", "Namespace", self.boundary.ref.name)
        if namespace is not None:
            self.cluster.delete("v1", "Namespace", name_of(namespace), uid=uid_of(namespace), propagation="Background")
        self.driver.close()
        self.home.close()

    # --- asking -----------------------------------------------------------------------------------

    def open_for(
        self, seen: Observed, *hop_keys: str, weights: Mapping[int, int] | None = None, key: keys.NewKey | None = None
    ) -> str:
        """Tell the gateway of the replicas and of the keys that these want to be shown; return a key.

        `weights`: revision → its share; none: all alike. `key`: one made before, instead of a fresh one.
        """
        key = key or keys.make("test")
        self.home.publish(
            EndpointConfig(
                uid=self.endpoint.ref.uid,
                name="chat",
                tenant=self.boundary.ref.tenant_uid,
                state=EndpointState.OPEN,
                models=("chat",),
                backends=tuple(
                    Backend(
                        unit_uid=one.uid,
                        url=one.backend,
                        revision=one.revision or 3,
                        weight=1 if weights is None else weights[one.revision or 3],
                    )
                    for one in seen.units
                ),
                hop_keys=hop_keys,
                keys=(EndpointKey(id=key.id, digest=key.digest),),
            )
        )
        return key.plain

    def await_taken(self) -> None:
        """Wait until the gateway reports the newest configuration."""
        control = self.home.control
        _await(lambda: any(one.config_version >= control.version for one in control.reports[-1:]))

    def await_served(self, *revisions: int) -> None:
        """Wait until the gateway has told of requests that these revisions answered."""
        _await(lambda: set(revisions) <= {one.revision for one in self.home.control.records})


def _await(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)  # noqa: TID251 - asks a real program again


def unit(index: int = 0, **changes: Any) -> UnitSpec:
    base = samples.unit(index, uid=uuid4(), host=PLUGIN_NODE, devices=(f"{PLUGIN_NODE}-gpu-0",), memory_gib=8)
    return replace(base, **changes)


@pytest.fixture
def tenancy(kube_cluster: Any) -> Iterator[Tenancy]:
    made = Tenancy(
        samples.settings(
            url=kube_cluster.url,
            ca_pem=kube_cluster.ca_pem,
            token=Secret(kube_cluster.admin_token),
            access="lab",
            lab=True,
            gateway_image=f"{REGISTRY}/tenantry/gateway@{samples.DIGEST}",
            vllm_image=f"{REGISTRY}/vllm/vllm-openai@{samples.DIGEST}",
            reads_per_s=500.0,
            writes_per_s=500.0,
        )
    )
    yield made
    made.close()


def test_an_endpoint_answers_through_its_gateway_with_its_own_argv_environment_and_secret(tenancy: Tenancy) -> None:
    front = tenancy.drive(tenancy.boundary)
    seen = tenancy.drive(tenancy.endpoint)
    key = tenancy.open_for(seen)

    answer = ask(seen.address, key)

    assert front.part("namespace.gateway").ready
    assert "simulated pod" in answer.text
    assert (seen.reachable_from, seen.simulated, seen.model, seen.revision) == ("lab", True, "chat", 3)
    assert [one.host for one in seen.units] == [PLUGIN_NODE]
    uses = [use for use in tenancy.driver.snapshot().uses if use.ref == tenancy.endpoint.ref]
    assert [use.unit for use in uses] == [one.uid for one in seen.units]

    tenancy.remove()
    assert tenancy.left() == []


def test_a_key_for_the_last_hop_comes_from_the_secret_alone(tenancy: Tenancy) -> None:
    spec = replace(tenancy.endpoint, serving=samples.serving())
    tenancy.drive(tenancy.boundary)
    (one,) = tenancy.drive(spec).units

    without = httpx.get(f"{one.backend}/models", trust_env=False)
    held = httpx.get(f"{one.backend}/models", headers={"Authorization": f"Bearer {samples.VLLM_KEY}"}, trust_env=False)

    assert (without.status_code, held.status_code) == (401, 200)


def test_a_revision_brings_its_own_key_and_the_gateway_serves_before_and_after(tenancy: Tenancy) -> None:
    spec = replace(tenancy.endpoint, serving=samples.serving())
    newer = replace(
        spec,
        serving=replace(
            spec.serving, revision=4, revision_uid=uuid4(),
            secrets={**spec.serving.secrets, "VLLM_API_KEY": Secret("hop-key-of-revision-four")},
        ),
    )  # fmt: skip
    tenancy.drive(tenancy.boundary)
    seen = tenancy.drive(spec)
    first = ask(seen.address, tenancy.open_for(seen, samples.VLLM_KEY))

    after = tenancy.drive(newer)
    second = ask(after.address, tenancy.open_for(after, "hop-key-of-revision-four", samples.VLLM_KEY))
    (one,) = after.units
    old = httpx.get(f"{one.backend}/models", headers={"Authorization": f"Bearer {samples.VLLM_KEY}"}, trust_env=False)

    assert "simulated pod" in first.text
    assert "simulated pod" in second.text
    assert old.status_code == 401


def test_requests_go_on_while_a_canary_takes_over_and_the_old_replica_leaves(tenancy: Tenancy) -> None:
    old = replace(tenancy.endpoint, serving=samples.serving())
    surge = unit(1, role="surge")
    newer = replace(
        old.serving, revision=4, revision_uid=uuid4(), secrets={"VLLM_API_KEY": Secret("hop-key-of-revision-four")}
    )
    canary = replace(old, units=(*old.units, surge), beside=newer, on_beside=frozenset({surge.uid}))
    alone = replace(old, serving=newer, units=(surge,))
    key = keys.make("test")
    tenancy.drive(tenancy.boundary)
    hops = (samples.VLLM_KEY, "hop-key-of-revision-four")
    seen = tenancy.drive(old)
    tenancy.open_for(seen, *hops, weights={3: 1}, key=key)
    ask(seen.address, key.plain)

    with Load(seen.address, key.plain) as load:
        both = tenancy.drive(canary)
        own = [
            [
                httpx.get(
                    f"{one.backend}/models", headers={"Authorization": f"Bearer {hop}"}, trust_env=False
                ).status_code
                for hop in hops
            ]
            for one in both.units
        ]
        tenancy.open_for(both, *hops, weights={3: 50, 4: 50}, key=key)
        tenancy.await_taken()
        load.await_more(20)
        tenancy.open_for(both, *hops, weights={3: 0, 4: 100}, key=key)
        tenancy.await_taken()
        load.await_more(20)  # what ran at the old one has ended
        last = tenancy.drive(alone)
        tenancy.open_for(last, *hops, weights={4: 100}, key=key)
        load.await_more(20)

    assert [one.revision for one in both.units] == [3, 4]
    assert own == [[200, 401], [401, 200]]  # each takes the key of its own revision and no other
    assert [(one.uid, one.revision) for one in last.units] == [(surge.uid, 4)]
    assert set(load.statuses) == {200}, load.statuses
    assert len(load.statuses) >= 60
    tenancy.await_served(3, 4)


class Load:
    """Somebody who asks one thing after the other."""

    def __init__(self, address: str, key: str) -> None:
        self.statuses: list[int] = []
        self._address, self._key = address, key
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        body = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
        headers = {"Authorization": f"Bearer {self._key}"}
        with httpx.Client(trust_env=False, timeout=30, headers=headers) as http:
            while not self._ended.is_set():
                self.statuses.append(http.post(f"{self._address}/chat/completions", json=body).status_code)

    def await_more(self, count: int) -> None:
        """Wait until so many more were answered."""
        wanted, deadline = len(self.statuses) + count, time.monotonic() + PATIENCE_S
        while len(self.statuses) < wanted:
            assert time.monotonic() < deadline, self.statuses
            self._ended.wait(0.05)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)


def ask(address: str, key: str, *, within_s: float = 30.0) -> httpx.Response:
    """Ask until the gateway has taken its configuration."""
    deadline = time.monotonic() + within_s
    while True:
        answer = httpx.post(
            f"{address}/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json={"model": "chat", "messages": [{"role": "user", "content": "hello"}]},
            timeout=20,
            trust_env=False,
        )
        if answer.status_code == 200:
            return answer
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)  # noqa: TID251 - asks a real server again


def test_a_gateway_whose_token_is_refused_shows_as_absent_until_it_gets_a_fresh_one(tenancy: Tenancy) -> None:
    tenancy.home.renew("tnt_enrol_another")

    tenancy.drive(tenancy.boundary, until=lambda seen: _gave_up(tenancy, seen))
    tenancy.home.renew("tnt_enrol_fresh")
    gateway = replace(tenancy.boundary.gateway, enrolment_token=Secret("tnt_enrol_fresh"))
    seen = tenancy.drive(replace(tenancy.boundary, gateway=gateway))

    assert seen.part("namespace.gateway").ready
    secrets = tenancy.cluster.list("v1", "Secret", namespace=tenancy.boundary.ref.name).items
    fresh = gateways.gateway_secret_name(gateways.delivery_of(Secret("tnt_enrol_fresh")))
    assert [name_of(one) for one in secrets] == [fresh]


def _gave_up(tenancy: Tenancy, seen: Observed) -> bool:
    """Whether the gateway was started and is absent all the same."""
    started = tenancy.cluster.get("apps/v1", "Deployment", gateways.GATEWAY_NAME, tenancy.boundary.ref.name)
    return started is not None and seen.part("namespace.gateway").presence is Presence.ABSENT


def test_the_same_start_again_keeps_the_gateway_that_runs(tenancy: Tenancy) -> None:
    tenancy.drive(tenancy.boundary)
    pods = _pods(tenancy)
    step = next(one for one in tenancy.driver.steps(tenancy.boundary) if one.name == "namespace.gateway")
    without = replace(tenancy.boundary.gateway, enrolment_token=None)
    later = next(
        one
        for one in tenancy.driver.steps(replace(tenancy.boundary, gateway=without))
        if one.name == "namespace.gateway"
    )

    tenancy.driver.start(step)
    tenancy.driver.start(later)

    assert tenancy.drive(tenancy.boundary).part("namespace.gateway").ready
    assert _pods(tenancy) == pods


def _pods(tenancy: Tenancy) -> set[str]:
    return {uid_of(one) for one in tenancy.cluster.list("v1", "Pod", namespace=tenancy.boundary.ref.name).items}


def test_power_revision_and_fewer_replicas_change_what_runs_and_nothing_else(tenancy: Tenancy) -> None:
    spec = replace(tenancy.endpoint, units=(unit(0), unit(1)))
    tenancy.drive(tenancy.boundary)
    tenancy.drive(spec)

    off = tenancy.drive(replace(spec, power=Power.OFF))
    running_off = [one for one in _replica_pods(tenancy, spec) if not dig(one, "metadata", "deletionTimestamp")]
    newer = replace(
        spec, serving=replace(spec.serving, revision=4, revision_uid=uuid4(), environment={"NEW": "$(HOME)"})
    )
    on = tenancy.drive(newer)
    fewer = tenancy.drive(replace(newer, units=newer.units[:1]))

    assert (off.power, running_off) == (Power.OFF, [])
    assert (on.power, on.revision, len(on.units)) == (Power.ON, 4, 2)
    assert [one.uid for one in fewer.units] == [spec.units[0].uid]
    (left,) = _replica_pods(tenancy, spec)
    assert dig(left, "metadata", "labels", "tenantry.internal/unit") == str(spec.units[0].uid)
    budgets = tenancy.cluster.list("policy/v1", "PodDisruptionBudget", namespace=spec.boundary.name).items
    assert budgets == ()
    tenancy.endpoint = newer
    tenancy.remove()
    assert tenancy.left() == []


def _replica_pods(tenancy: Tenancy, spec: EndpointSpec) -> list[dict[str, Any]]:
    labels = f"tenantry.internal/uid={spec.ref.uid}"
    return list(tenancy.cluster.list("v1", "Pod", namespace=spec.boundary.name, labels=labels).items)


def test_a_unit_with_a_claim_gets_its_very_gpu_and_gives_it_back(tenancy: Tenancy) -> None:
    shown = tenancy.driver.snapshot()
    host = next(one for one in shown.hosts if one.host == PARTS_NODE)
    assert host.binding is Binding.GPU
    wanted = unit(host=PARTS_NODE, binding=Binding.GPU, devices=(host.gpus[2].device,), starts=(0,))
    spec = tenancy.endpoint = replace(tenancy.endpoint, units=(wanted,))
    tenancy.drive(tenancy.boundary)

    seen = tenancy.drive(spec)

    (one,) = seen.units
    assert (one.host, one.device, one.profile, one.exact) == (PARTS_NODE, host.gpus[2].device, "1g.10gb", True)
    assert one.start in {0, 1, 2, 3, 4, 5, 6}
    tenancy.remove()
    assert tenancy.left() == []


def test_a_lost_secret_is_said_and_delivered_again(tenancy: Tenancy) -> None:
    spec = tenancy.endpoint
    tenancy.drive(tenancy.boundary)
    tenancy.drive(spec)
    secret = tenancy.cluster.get("v1", "Secret", workloads.secret_name(spec.ref, spec.serving), spec.boundary.name)
    assert secret is not None

    uid = uid_of(secret)
    tenancy.cluster.delete("v1", "Secret", name_of(secret), spec.boundary.name, uid=uid, propagation="Background")

    assert tenancy.driver.observe(spec.ref).part("serving.secret").presence is Presence.ABSENT
    assert tenancy.drive(spec).part("serving.secret").presence is Presence.PRESENT


@pytest.mark.parametrize(
    ("image", "argv", "words"),
    [
        ("nobody/unknown", (), "its image cannot be pulled"),
        ("vllm/vllm-openai", ("--no-such-flag=1",), "this version of vLLM does not take one of its arguments"),
        ("vllm/vllm-openai", ("--host=127.0.0.1",), "loading the model"),
    ],
)
def test_a_replica_that_does_not_come_up_says_why(
    tenancy: Tenancy, image: str, argv: tuple[str, ...], words: str
) -> None:
    tenancy.use(vllm_image=f"{REGISTRY}/{image}@{samples.DIGEST}", registries=(f"{REGISTRY}/",))
    serving = samples.serving(secrets={}, argv=("vllm", "serve", "org/model", *argv))
    spec = replace(tenancy.endpoint, serving=serving)
    tenancy.drive(tenancy.boundary)

    tenancy.message(spec, "serving.replica[0]", words)

    seen = tenancy.driver.observe(spec.ref)
    assert not seen.part("serving.replica[0]").ready


def test_a_cordoned_node_is_named_and_uncordoned_it_goes_on(tenancy: Tenancy) -> None:
    spec = tenancy.endpoint
    tenancy.drive(tenancy.boundary)
    tenancy.driver.evacuate(PLUGIN_NODE)
    try:
        tenancy.message(spec, "serving.replica[0]", "its node takes no new pods")
    finally:
        tenancy.driver.restore(PLUGIN_NODE)

    assert tenancy.drive(spec).part("serving.replica[0]").ready
