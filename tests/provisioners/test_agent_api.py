"""`/agent/v1/`: enrolment, configuration with its long poll, usage counted once, reports."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import connection
from django.test import AsyncClient, Client

from provisioners import gateways, specs_from_rows
from provisioners.agent_api import asgi, config
from provisioners.driver import BoundaryKind, DriverRejected, ServingSpec
from provisioners.gateway import keys
from provisioners.gateway.protocol import ConfigDocument, EndpointState, EnrolAnswer, Envelope, KeyScope, parse
from provisioners.gateway.signing import Signer, verify
from tenants import desired, gateway_config, hop_keys, states
from tenants.actor import SYSTEM
from tenants.models import (
    Allocation,
    Boundary,
    Endpoint,
    EndpointKey,
    EndpointMinute,
    EndpointUsage,
    Event,
    GatewayReplica,
    GatewayUsage,
    Host,
    Outbox,
    Revision,
    Suspension,
    Unit,
)
from tenants.operations import endpoints, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting
from tenants.usage_times import BETWEEN_BOUNDS_US, TTFT_BOUNDS_MS, counted
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

NOW = datetime.now(UTC)
BACKEND = "http://127.0.0.1:9999/v1"


@pytest.fixture
def world() -> SimpleNamespace:
    return make_world()


def make_world() -> SimpleNamespace:
    """Return an endpoint with one replica that is ready, in a namespace boundary, its gateway and a fresh token."""
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
    factories.host(provider, gpus=2)
    parent = factories.tenant()
    tenant = factories.tenant(parent=parent)
    for each in (parent, tenant):
        factories.generous(each)
    member = factories.actor(factories.member(tenant, Role.MEMBER))
    factories.served_model()
    made = endpoints.create(
        tenant=tenant,
        ask=EndpointAsk("alpha", RevisionAsk("llama-3-1-8b"), spec()),
        actor=member,
        now=NOW,
    )
    ready(made.endpoint)
    with acting(SYSTEM):
        replica = gateways.of_boundary(Boundary.objects.get(), now=NOW)
        token = gateways.arm(replica, now=NOW)
    return SimpleNamespace(
        tenant=tenant, parent=parent, member=member, endpoint=made.endpoint, key=made.key, secret=made.secret,
        gateway=Gateway(replica.pk, token.reveal()), boundary=replica.boundary_id,
    )  # fmt: skip


def spec() -> AllocationSpec:
    return AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),))


def ready(endpoint: Endpoint, *, revision: int = 1) -> UUID:
    """Write what a pass writes when the replica answers; return its unit."""
    unit = Unit.objects.get(allocation_id=endpoint.allocation_id)
    Endpoint.objects.filter(pk=endpoint.pk).update(
        observed={"revision": revision, "units": [{"unit": str(unit.pk), "backend": BACKEND, "ready": True}]}
    )
    gateway_config.bump([endpoint.boundary_id], now=NOW)
    return unit.pk


class Gateway:
    """A gateway as seen by HTTP."""

    def __init__(self, uid: UUID, token: str) -> None:
        self.uid, self.token = uid, token
        self.credential = keys.make_agent_credential(uid)
        self.http = Client()
        self.answer: EnrolAnswer

    def enrol(self, **changes: Any) -> Any:
        body = {
            "token": self.token,
            "gateway_uid": str(self.uid),
            "credential_digest": self.credential.digest,
            "version": "1",
            **changes,
        }
        response = self.http.post("/agent/v1/enrol", json.dumps(body), content_type="application/json")
        if response.status_code == 200:
            self.answer = parse(EnrolAnswer, response.content)
        return response

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.credential.plain}"}

    def config(self, have: int = 0, wait: int = 0) -> Any:
        return self.http.get(f"/agent/v1/config?have={have}&wait={wait}", headers=self.headers)

    def document(self, have: int = 0) -> ConfigDocument:
        response = self.config(have)
        assert response.status_code == 200, response.content
        return self.opened(response.content)

    def opened(self, content: bytes) -> ConfigDocument:
        return verify(parse(Envelope, content), {self.answer.key_id: self.answer.public_key})

    def post(self, path: str, body: Any) -> Any:
        return self.http.post(
            f"/agent/v1/{path}", json.dumps(body), content_type="application/json", headers=self.headers
        )

    def usage(self, *records: dict[str, Any], batch: UUID | None = None) -> Any:
        return self.post("usage", {"id": str(batch or uuid4()), "gateway_uid": str(self.uid), "records": records})

    def row(self) -> GatewayReplica:
        return GatewayReplica.objects.get(pk=self.uid)


def record(world: SimpleNamespace, **changes: Any) -> dict[str, Any]:
    return {
        "request_id": "r1", "key_id": world.key.public_id, "endpoint_uid": str(world.endpoint.pk), "unit_uid": None,
        "revision": 1, "route": "/v1/chat/completions", "model": "alpha", "streamed": False, "prompt_tokens": 7,
        "completion_tokens": 3, "token_source": "reported", "started_at": NOW.isoformat(), "duration_ms": 20,
        "ttft_ms": None, "status": 200, "outcome": "completed", **changes,
    }  # fmt: skip


# --- enrolment ------------------------------------------------------------------------------------


def test_a_gateway_enrols_once_and_is_known_by_its_credential(world: SimpleNamespace) -> None:
    gateway = world.gateway

    answer = gateway.enrol()

    assert answer.status_code == 200
    assert gateway.answer.boundary_uid == world.boundary
    row = gateway.row()
    assert (row.credential_digest, row.token_sealed) == (gateway.credential.digest, None)
    assert row.enrolled_at is not None
    event = Event.objects.get(kind="gateway.enrolled")
    assert (event.actor, event.tenant_id) == (f"agent:{gateway.uid}", world.tenant.pk)
    assert gateway.config().status_code == 200


def test_a_lost_answer_is_repeated_and_a_used_token_opens_nothing_for_another(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()

    again = gateway.enrol()
    thief = gateway.enrol(credential_digest="0" * 64)

    assert (again.status_code, thief.status_code) == (200, 401)
    assert gateway.row().credential_digest == gateway.credential.digest
    assert Event.objects.filter(kind="gateway.enrolled").count() == 1


def test_every_wrong_proof_of_enrolment_looks_the_same(world: SimpleNamespace) -> None:
    gateway = world.gateway
    other = keys.make_enrolment_token().plain

    wrong = gateway.enrol(token=other)
    unknown = gateway.enrol(gateway_uid=str(uuid4()))
    GatewayReplica.objects.update(token_expires_at=datetime.now(UTC) - timedelta(seconds=1))
    expired = gateway.enrol()

    assert [r.status_code for r in (wrong, unknown, expired)] == [401, 401, 401]
    assert wrong.content == unknown.content == expired.content
    assert wrong["Content-Type"] == "application/problem+json"
    assert gateway.row().enrolled_at is None
    assert not Event.objects.filter(kind="gateway.enrolled").exists()


def test_a_new_token_ends_the_old_credential(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()

    with acting(SYSTEM):
        token = gateways.arm(gateway.row(), now=NOW)

    assert gateway.config().status_code == 401
    heir = Gateway(gateway.uid, token.reveal())
    assert heir.enrol().status_code == 200
    assert (heir.config().status_code, gateway.config().status_code) == (200, 401)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"token": "a\\u0000b"}', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"{}", "text/plain", 415),
    ],
)
def test_bad_bodies_are_problems_that_change_nothing(
    world: SimpleNamespace, body: bytes, content_type: str, status: int
) -> None:
    answer = Client().post("/agent/v1/enrol", body, content_type=content_type)

    assert (answer.status_code, answer["Content-Type"]) == (status, "application/problem+json")
    assert world.gateway.row().enrolled_at is None


def test_a_wrong_method_says_which_is_right() -> None:
    answers = {path: Client().put(f"/agent/v1/{path}") for path in ("enrol", "config", "usage", "report")}

    assert {path: (a.status_code, a["Allow"]) for path, a in answers.items()} == {
        "enrol": (405, "POST"), "config": (405, "GET"), "usage": (405, "POST"), "report": (405, "POST"),
    }  # fmt: skip


# --- configuration --------------------------------------------------------------------------------


def test_the_configuration_says_endpoint_backend_and_keys(world: SimpleNamespace) -> None:
    world.gateway.enrol()

    document = world.gateway.document()

    [endpoint] = document.endpoints
    assert (endpoint.uid, endpoint.models, endpoint.state) == (world.endpoint.pk, ("alpha",), EndpointState.OPEN)
    assert [(b.url, b.revision, b.weight) for b in endpoint.backends] == [(BACKEND, 1, 100)]
    assert [(k.id, k.digest) for k in endpoint.keys] == [(world.key.public_id, keys.digest(world.secret))]
    assert (document.boundary_uid, document.gateway_uid) == (world.boundary, world.gateway.uid)


def test_the_gateway_is_told_what_a_key_may_ask_for(world: SimpleNamespace) -> None:
    assert {scope.value for scope in KeyScope} == {scope.value for scope in states.KeyScope}
    with acting(SYSTEM):
        EndpointKey.objects.filter(pk=world.key.pk).update(scopes=["chat", "models"])
    world.gateway.enrol()

    [endpoint] = world.gateway.document().endpoints
    assert endpoint.keys[0].scopes == (KeyScope.CHAT, KeyScope.MODELS)


def test_the_keys_of_the_last_hop_reach_the_gateway_and_are_stored_nowhere_in_plain(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    first = Revision.objects.get()

    document = world.gateway.document()

    with acting(SYSTEM):
        serving = serving_of(world.endpoint)
    assert document.endpoints[0].hop_keys == (hop_keys.plain(first),)
    assert serving.secrets["VLLM_API_KEY"].reveal() == hop_keys.plain(first)
    assert len(hop_keys.plain(first)) >= 43
    assert hop_keys.plain(first) not in world.gateway.row().rendered
    assert str(first.pk) in world.gateway.row().rendered
    assert hop_keys.plain(first) not in repr(document)


def test_while_a_revision_takes_over_both_keys_are_given_and_afterwards_the_new_one(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    before = world.gateway.document()

    revision = endpoints.revise(endpoint=world.endpoint, ask=RevisionAsk("llama-3-1-8b"), actor=world.member, now=NOW)
    between = world.gateway.document(have=before.version)
    ready(world.endpoint, revision=2)
    after = world.gateway.document(have=between.version)

    old, new = before.endpoints[0].hop_keys[0], hop_keys.plain(revision)
    assert old != new
    assert between.endpoints[0].hop_keys == (new, old)
    assert after.endpoints[0].hop_keys == (new,)


def test_of_many_revisions_at_once_the_wanted_and_the_oldest_that_runs_are_given(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    ask = RevisionAsk("llama-3-1-8b")
    made = [Revision.objects.get()]
    made += [endpoints.revise(endpoint=world.endpoint, ask=ask, actor=world.member, now=NOW) for _ in range(6)]

    given = world.gateway.document().endpoints[0].hop_keys

    assert given == tuple(hop_keys.plain(made[number]) for number in (6, 0, 5, 4))


def test_a_revision_of_before_there_were_such_keys_asks_for_none(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    Revision.objects.update(hop_key_sealed=None)

    with acting(SYSTEM):
        serving = serving_of(world.endpoint)
    assert world.gateway.document().endpoints[0].hop_keys == ()
    assert serving.secrets == {}


def test_a_key_that_no_longer_opens_is_said_and_keeps_no_gateway_from_its_news(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    Revision.objects.update(hop_key_sealed=hop_keys.make(uuid4()))

    with acting(SYSTEM), pytest.raises(DriverRejected, match="a new revision"):
        serving_of(world.endpoint)
    assert world.gateway.document().endpoints[0].hop_keys == ()


def serving_of(endpoint: Endpoint) -> ServingSpec:
    """What a driver is told to run."""
    row = Endpoint.objects.get(pk=endpoint.pk)
    unit = Unit.objects.get(allocation_id=endpoint.allocation_id)
    placed = specs_from_rows.unit_spec(unit, Host.objects.get(), ())
    revision = Revision.objects.select_related("model").get(pk=row.revision_id)
    return specs_from_rows.serving_spec(row, revision, placed, BoundaryKind.NAMESPACE)


def test_one_version_has_one_content_also_when_rows_changed_without_a_word(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    before = world.gateway.config().content

    EndpointKey.objects.update(digest="0" * 64)

    assert world.gateway.config().content == before


def test_a_revoked_key_raises_the_version_and_is_gone_from_it(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    before = world.gateway.document()

    endpoints.revoke_key(endpoint=world.endpoint, key=world.key, actor=world.member, now=NOW)
    after = world.gateway.document(have=before.version)

    assert after.version == before.version + 1
    assert after.endpoints[0].keys == ()
    assert world.gateway.config(have=after.version).status_code == 204


def test_a_suspended_parent_closes_the_childs_endpoint_and_resuming_opens_it(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    before = world.gateway.document()
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))

    tenants.suspend(tenant=world.parent, depth=SuspensionDepth.KEYS, reason="audit", actor=operator, now=NOW)
    suspended = world.gateway.document(have=before.version)
    tenants.resume(tenant=world.parent, actor=operator, now=NOW)
    resumed = world.gateway.document(have=suspended.version)

    assert suspended.endpoints[0].state is EndpointState.SUSPENDED
    assert resumed.endpoints[0].state is EndpointState.OPEN
    assert before.version < suspended.version < resumed.version


@pytest.mark.no_audit  # the release is written by hand here
def test_a_deleted_endpoint_is_closed_until_it_is_released(world: SimpleNamespace) -> None:
    world.gateway.enrol()

    endpoints.delete(endpoint=world.endpoint, actor=world.member, now=NOW)
    ending = world.gateway.document()
    Allocation.objects.update(finalizers=[], released_at=NOW)
    Endpoint.objects.update(finalizers=[], released_at=NOW)
    gateway_config.bump([world.boundary], now=NOW)
    ended = world.gateway.document(have=ending.version)

    assert (ending.endpoints[0].state, ending.report_interval_s) == (EndpointState.CLOSED, 1.0)
    assert ended.endpoints == ()


def test_a_gateway_ahead_of_us_is_told_a_version_beyond_its_own(world: SimpleNamespace) -> None:
    world.gateway.enrol()

    document = world.gateway.document(have=900)

    assert document.version == 901
    assert world.gateway.row().config_version == 901


def test_a_gateway_in_a_machine_serves_the_replica_beside_it(world: SimpleNamespace) -> None:
    unit = Unit.objects.get()
    other = uuid4()
    Endpoint.objects.update(
        observed={
            "revision": 4,
            "units": [
                {"unit": str(unit.pk), "backend": BACKEND, "ready": True},
                {"unit": str(other), "backend": "http://127.0.0.1:9998/v1", "ready": True},
                {"unit": str(unit.pk), "backend": "", "ready": False},
            ],
        }
    )
    with acting(SYSTEM):
        [replica] = gateways.of_units(Boundary.objects.get(), [unit], now=NOW)
        document = config.document_of(replica, now=NOW)

    assert [(b.unit_uid, b.url, b.revision) for b in document.endpoints[0].backends] == [(unit.pk, BACKEND, 4)]


def test_a_removed_gateway_is_told_so_and_a_stranger_is_not(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    stranger = Gateway(world.gateway.uid, world.gateway.token)

    with acting(SYSTEM):
        gateways.removed(world.boundary, units=None, now=NOW)

    assert [world.gateway.config().status_code, world.gateway.usage().status_code] == [410, 410]
    assert world.gateway.enrol().status_code == 410
    assert stranger.config().status_code == 401


@pytest.mark.parametrize(
    "query", ["", "have=1", "have=-1&wait=0", "have=1&wait=21", "have=x&wait=0", f"have={2**60}&wait=0"]
)
def test_a_poll_without_proper_numbers_is_refused(world: SimpleNamespace, query: str) -> None:
    world.gateway.enrol()

    answer = world.gateway.http.get(f"/agent/v1/config?{query}", headers=world.gateway.headers)

    assert answer.status_code == 400


def test_keys_of_every_master_key_are_trusted_and_the_oldest_signs(world: SimpleNamespace, settings: Any) -> None:
    world.gateway.enrol()
    old = settings.TENANTRY_MASTER_KEYS
    new = "t2:" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWY="

    settings.TENANTRY_MASTER_KEYS = f"{new},{old}"
    gateway_config.bump([world.boundary], now=NOW)
    both = world.gateway.document()
    settings.TENANTRY_MASTER_KEYS = new
    gateway_config.bump([world.boundary], now=NOW)
    content = world.gateway.config(have=both.version).content

    assert [k.key_id for k in both.signing_keys][1] == world.gateway.answer.key_id
    assert verify(parse(Envelope, content), {k.key_id: k.public_key for k in both.signing_keys}).version > both.version
    assert Signer.__name__ in repr(config.signer())


# --- the long poll --------------------------------------------------------------------------------


def test_a_poll_ends_soon_after_a_change_and_others_wait_on(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    version = gateway.document().version

    async def scenario() -> tuple[Any, float]:
        http, loop = AsyncClient(), asyncio.get_running_loop()
        poll = asyncio.create_task(
            http.get(f"/agent/v1/config?have={version}&wait=20", headers=gateway.headers)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.2)
        assert not poll.done()
        await asyncio.to_thread(bump)
        changed = loop.time()
        return await poll, loop.time() - changed

    def bump() -> None:
        from django.db import connection

        endpoints.revoke_key(endpoint=world.endpoint, key=world.key, actor=world.member, now=NOW)
        connection.close()

    answer, took_s = asyncio.run(scenario())

    assert answer.status_code == 200
    assert gateway.opened(answer.content).endpoints[0].keys == ()
    assert took_s < 2


def test_a_poll_of_a_gateway_that_loses_its_credential_ends_with_401(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    version = gateway.document().version

    async def scenario() -> Any:
        poll = asyncio.create_task(
            AsyncClient().get(f"/agent/v1/config?have={version}&wait=20", headers=gateway.headers)  # type: ignore[arg-type]
        )
        await asyncio.sleep(0.1)
        await asyncio.to_thread(rearm)
        return await poll

    def rearm() -> None:
        from django.db import connection

        with acting(SYSTEM):
            gateways.arm(GatewayReplica.objects.get(pk=gateway.uid), now=NOW)
        connection.close()

    assert asyncio.run(scenario()).status_code == 401


def test_a_poll_in_front_of_django_answers_alike_and_ends_when_the_gateway_leaves(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    version = gateway.document().version

    async def ask(query: str, *, leave: bool = False, credential: str | None = None) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if not leave:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(dict(message))

        plain = gateway.credential.plain if credential is None else credential
        scope = {
            "type": "http", "method": "GET", "path": "/agent/v1/config", "query_string": query.encode(),
            "headers": [(b"authorization", f"Bearer {plain}".encode())],
        }  # fmt: skip
        assert asgi.is_poll(scope)
        await asyncio.wait_for(asgi.application(scope, receive, send), 10)
        return sent

    async def scenario() -> list[list[dict[str, Any]]]:
        return [
            await ask("have=0&wait=0"),
            await ask(f"have={version}&wait=0"),
            await ask("have=x&wait=0"),
            await ask("have=0&wait=0", credential="tna_nonsense"),
            await ask(f"have={version}&wait=20", leave=True),
        ]

    fresh, nothing, bad, stranger, left = asyncio.run(scenario())

    assert [answer[0]["status"] for answer in (fresh, nothing, bad, stranger)] == [200, 204, 400, 401]
    assert gateway.opened(fresh[1]["body"]).version == version
    assert (b"www-authenticate", b'Bearer realm="tenantry"') in stranger[0]["headers"]
    assert json.loads(bad[1]["body"])["errors"][0]["field"] == "have"
    assert left == []


def test_polling_tells_which_version_is_served(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    version = world.gateway.document().version

    world.gateway.config(have=version)

    assert world.gateway.row().reported_version == version


# --- usage ----------------------------------------------------------------------------------------


def test_a_batch_counts_once_however_often_it_comes(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    batch = uuid4()
    records = [record(world), record(world, status=502, completion_tokens=0), record(world, revision=None)]

    answers = [gateway.usage(*records, batch=batch) for _ in range(3)]
    late = gateway.usage(record(world, started_at=(NOW - timedelta(days=2)).isoformat()))

    assert [a.status_code for a in (*answers, late)] == [204] * 4
    assert GatewayUsage.objects.count() == 2
    assert GatewayUsage.objects.get(pk=batch).requests == 3
    sums = EndpointUsage.objects.order_by("hour", "revision").values_list(
        "revision", "requests", "errors", "prompt_tokens", "completion_tokens"
    )
    assert list(sums) == [(1, 1, 0, 7, 3), (0, 1, 0, 7, 3), (1, 2, 1, 14, 3)]
    assert set(EndpointUsage.objects.values_list("tenant_id", "endpoint_id", "key_id")) == {
        (world.tenant.pk, world.endpoint.pk, world.key.public_id)
    }


def test_times_of_streams_add_up_by_key_and_revision_whatever_order_batches_come_in(world: SimpleNamespace) -> None:
    world.gateway.enrol()
    stream = {"streamed": True, "completion_tokens": 11, "ttft_ms": 120, "itl_us": 20_000, "duration_ms": 320}
    slow = {**stream, "ttft_ms": 900, "itl_us": 50_000, "outcome": "backend-broke"}
    batches = [(uuid4(), (record(world, **stream), record(world))), (uuid4(), (record(world, **slow),))]

    for batch, records in (batches[1], batches[0], *batches):
        assert world.gateway.usage(*records, batch=batch).status_code == 204

    row = EndpointUsage.objects.get()
    assert (row.requests, row.errors, row.completion_tokens) == (3, 1, 25)
    assert (row.ttft_ms, row.between_us, row.gaps) == (1020, 700_000, 20)
    assert row.ttft_counts == counted([120, 900], TTFT_BOUNDS_MS)
    assert row.between_counts == counted([20_000, 50_000], BETWEEN_BOUNDS_US)


def test_usage_is_told_by_the_minute_for_charts_once(world: SimpleNamespace) -> None:
    gateway, batch = world.gateway, uuid4()
    gateway.enrol()
    began = datetime.now(UTC).replace(second=30, microsecond=0) - timedelta(minutes=5)
    records = (
        record(world, started_at=began.isoformat(), duration_ms=70_000, ttft_ms=10_000, itl_us=1000, streamed=True,
               prompt_tokens=7, completion_tokens=600),
        record(world, started_at=began.isoformat(), duration_ms=100, status=503, completion_tokens=0, prompt_tokens=0),
        record(world, started_at=(began - timedelta(hours=7)).isoformat()),
    )  # fmt: skip

    for _ in range(2):
        assert gateway.usage(*records, batch=batch).status_code == 204

    first = began.replace(second=0)
    shown = [
        (row.minute, row.requests, row.errors, row.prompt_tokens, row.completion_tokens)
        for row in EndpointMinute.objects.order_by("minute")
    ]
    assert shown == [(first, 1, 1, 7, 200), (first + timedelta(minutes=1), 1, 0, 0, 400)]
    assert EndpointMinute.objects.earliest("minute").ttft_counts == counted([10_000], TTFT_BOUNDS_MS)


def test_last_used_moves_at_most_once_a_minute_and_never_into_the_future(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    base = NOW - timedelta(minutes=10)

    def used(after_s: float) -> datetime | None:
        gateway.usage(record(world, started_at=(base + timedelta(seconds=after_s)).isoformat(), duration_ms=0))
        return EndpointKey.objects.get().last_used_at

    assert used(0) == base
    assert used(59) == base
    assert used(60) == base + timedelta(seconds=60)
    assert used(1) == base + timedelta(seconds=60)
    ahead = used(99_999)
    assert ahead is not None
    assert ahead <= datetime.now(UTC)


def test_usage_of_an_unknown_key_counts_without_naming_it(world: SimpleNamespace) -> None:
    world.gateway.enrol()

    assert world.gateway.usage(record(world, key_id="x" * 200)).status_code == 204

    assert EndpointUsage.objects.get().key_id == ""


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_tokens": -1}, {"prompt_tokens": 2**40}, {"revision": 2**40}, {"unknown": 1}, {"key_id": "a\x00"},
        {"started_at": "yesterday"},
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_is_refused_whole(world: SimpleNamespace, change: dict[str, Any]) -> None:
    world.gateway.enrol()

    answer = world.gateway.usage(record(world), record(world, **change))

    assert answer.status_code == 400
    assert GatewayUsage.objects.count() == 0
    assert EndpointUsage.objects.count() == 0


def test_a_gateway_speaks_for_itself_only(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()

    foreign = gateway.post("usage", {"id": str(uuid4()), "gateway_uid": str(uuid4()), "records": []})
    nobody = Client().post("/agent/v1/usage", "{}", content_type="application/json")

    assert (foreign.status_code, nobody.status_code) == (400, 401)


# --- reports --------------------------------------------------------------------------------------


def test_a_report_is_kept_and_a_change_of_health_makes_the_endpoint_due(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    version = gateway.document().version

    def report(*, reachable: bool) -> None:
        Endpoint.objects.update(due_at=None)
        backend = {"unit_uid": str(uuid4()), "reachable": reachable}
        answer = gateway.post(
            "report",
            {
                "gateway_uid": str(gateway.uid), "gateway_version": "1", "started_at": NOW.isoformat(),
                "config_version": version, "in_flight": 2,
                "endpoints": [{"uid": str(world.endpoint.pk), "state": "open", "in_flight": 2,
                               "backends": [backend | {"unit_uid": str(unit)}]}],
            },
        )  # fmt: skip
        assert answer.status_code == 204, answer.content

    unit = Unit.objects.get().pk
    report(reachable=True)
    first = Endpoint.objects.get().due_at
    report(reachable=True)
    same = Endpoint.objects.get().due_at
    report(reachable=False)
    changed = Endpoint.objects.get().due_at

    assert (first is not None, same, changed is not None) == (True, None, True)
    row = gateway.row()
    assert (row.reported_version, row.report["in_flight"]) == (version, 2)
    assert Outbox.objects.filter(object_id=world.endpoint.pk).exists()


def test_peaks_of_a_minutes_looks_are_kept_and_an_idle_look_writes_nothing_more(world: SimpleNamespace) -> None:
    gateway = world.gateway
    gateway.enrol()
    unit = str(Unit.objects.get().pk)

    def report(**said: Any) -> EndpointMinute:
        backend = {"unit_uid": unit, "reachable": True, **said}
        endpoint = {"uid": str(world.endpoint.pk), "state": "open", "backends": [backend], "waiting": 1}
        foreign = {"uid": str(uuid4()), "state": "open", "backends": [backend]}
        body = {"gateway_uid": str(gateway.uid), "gateway_version": "1", "started_at": NOW.isoformat(),
                "config_version": 1, "in_flight": 0, "endpoints": [endpoint, foreign]}  # fmt: skip
        assert gateway.post("report", body).status_code == 204
        return EndpointMinute.objects.latest("minute")

    report(running=4, queued=2, kv_cache=0.5, prefix_queries=1000, prefix_hits=900)
    report(running=9, queued=0, kv_cache=0.25, prefix_queries=1400, prefix_hits=1000)
    report(running=0, queued=0, kv_cache=0.0, prefix_queries=30, prefix_hits=3)  # the server has started anew
    whole = list(EndpointMinute.objects.order_by("minute"))
    before = version_of(whole[-1])
    report(running=0, queued=0, kv_cache=0.0, prefix_queries=30, prefix_hits=3)

    assert max(row.running or 0 for row in whole) == 9
    assert max(row.queued or 0 for row in whole) == 3
    assert max(row.kv_cache or 0 for row in whole) == 0.5
    assert sum(row.prefix_queries or 0 for row in whole) == 430
    assert sum(row.prefix_hits or 0 for row in whole) == 103
    assert {row.endpoint_id for row in whole} == {world.endpoint.pk}
    if EndpointMinute.objects.count() == len(whole):  # else a new minute has begun
        assert version_of(EndpointMinute.objects.latest("minute")) == before


def version_of(row: EndpointMinute) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT ctid::text FROM tenants_endpointminute WHERE id = %s", [row.pk])
        return str(cursor.fetchone()[0])


def test_a_suspension_is_nobodys_business_below_it(world: SimpleNamespace) -> None:
    """The agent learns the depth that holds from above, not the row that says who and why."""
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    tenants.suspend(tenant=world.parent, depth=SuspensionDepth.POWER, reason="secret", actor=operator, now=NOW)
    world.gateway.enrol()

    document = world.gateway.document()

    assert document.endpoints[0].state is EndpointState.SUSPENDED
    assert "secret" not in document.model_dump_json()
    assert Suspension.objects.count() == 1
    assert desired.kind_of(world.gateway.row()) == "gateway-replica"
