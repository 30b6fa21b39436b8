"""Idempotency, plans, waiting, sessions with CSRF, log-in, and the event stream."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections
from django.test import Client

from tenants.api import stream
from tenants.models import Endpoint, Event, IdempotencyRecord, Person
from tenants.states import Role
from tests import factories
from tests.api.client import Api
from tests.api.world import ALLOCATION, ENDPOINT

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def tenant():
    row = factories.tenant(name="acme")
    factories.generous(row)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]}))
    factories.served_model()
    return row


def test_a_post_with_a_token_needs_an_idempotency_key_and_a_session_none(api, tenant):
    member = factories.member(tenant)

    answer = api(member).post("tenants/acme/endpoints", ENDPOINT, key=None)
    assert (answer.status, answer.body["code"]) == (428, "precondition-required")

    browser = Client(raise_request_exception=False)
    browser.force_login(member, backend="tenants.login.PersonBackend")
    done = browser.post("/api/v1/tenants/acme/endpoints", ENDPOINT, content_type="application/json")
    assert done.status_code == 201, done.content


def test_a_session_without_its_csrf_token_changes_nothing(tenant):
    browser = Client(raise_request_exception=False, enforce_csrf_checks=True)
    browser.force_login(factories.member(tenant), backend="tenants.login.PersonBackend")

    answer = browser.post("/api/v1/tenants/acme/endpoints", ENDPOINT, content_type="application/json")

    assert (answer.status_code, answer.json()["code"]) == (403, "csrf")
    assert browser.get("/api/v1/who").status_code == 200
    assert Endpoint.objects.count() == 0


def test_batches_replay_in_their_order(api, tenant):
    me = api(factories.member(tenant))
    body = {"allocations": [{**ALLOCATION, "name": f"n{i}"} for i in (3, 1, 2)]}

    first = me.post("tenants/acme/allocations:batch", body, key="batch")
    second = me.post("tenants/acme/allocations:batch", body, key="batch")

    assert [each["name"] for each in first.body["allocations"]] == ["n3", "n1", "n2"]
    assert second.body == first.body
    assert second.headers["Idempotency-Replayed"] == "true"


def test_a_secret_is_replayed_for_a_day_and_then_left_out(api, tenant):
    me = api(factories.member(tenant))
    first = me.post("tenants/acme/endpoints", ENDPOINT, key="k")

    IdempotencyRecord.objects.update(created_at=datetime.now(UTC) - timedelta(hours=25))
    late = me.post("tenants/acme/endpoints", ENDPOINT, key="k")

    assert first.body["key"].startswith("tnt_test_")
    assert (late.status, late.body["key"], late.body["id"]) == (201, None, first.body["id"])


def test_one_principals_key_is_nobody_elses(api, tenant):
    one, two = api(factories.member(tenant)), api(factories.member(tenant))

    assert one.post("tenants/acme/endpoints", ENDPOINT, key="same").status == 201
    other = two.post("tenants/acme/endpoints", {**ENDPOINT, "name": "other"}, key="same")

    assert (other.status, "Idempotency-Replayed" in other.headers) == (201, False)


def test_a_refused_request_leaves_no_record_behind(api, tenant):
    me = api(factories.member(tenant))

    assert me.post("tenants/acme/endpoints", {**ENDPOINT, "model": "none"}, key="k").status == 400
    assert me.post("tenants/acme/endpoints", ENDPOINT, key="k").status == 201


def test_twins_at_the_same_moment_make_one_object(api, tenant):
    me = api(factories.member(tenant))
    gate = threading.Barrier(6)

    def send(_: int) -> tuple[int, str]:
        gate.wait()
        try:
            answer = me.post("tenants/acme/endpoints", ENDPOINT, key="twin")
            return answer.status, answer.body.get("id") or answer.body["code"]
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))

    made = {body for status, body in answers if status == 201}
    assert len(made) == 1
    assert {body for status, body in answers if status != 201} <= {"idempotency-running"}
    assert Endpoint.objects.count() == 1


def test_a_twin_that_is_still_running_is_409(api, tenant, monkeypatch):
    from tenants.api import idempotency

    me = api(factories.member(tenant))
    monkeypatch.setattr(idempotency, "record", lambda *_, **__: (_ for _ in ()).throw(idempotency.twin()))

    answer = me.post("tenants/acme/endpoints", ENDPOINT, key="k")

    assert (answer.status, answer.body["code"]) == (409, "idempotency-running")
    assert Endpoint.objects.count() == 0


def test_a_plan_leaves_no_row_no_event_and_no_record(api, tenant):
    me = api(factories.member(tenant))
    before = Event.objects.count()

    plan = me.post("tenants/acme/endpoints?plan=true", ENDPOINT, key="k")

    assert plan.status == 200
    assert (Event.objects.count(), IdempotencyRecord.objects.count()) == (before, 0)
    assert me.post("tenants/acme/endpoints", ENDPOINT, key="k").status == 201


def test_a_plan_of_too_much_is_refused_as_the_change_would_be(api, tenant):
    from tenants.models import Quota

    Quota.objects.filter(tenant=tenant, dimension="vcpu").update(amount=1)
    answer = api(factories.member(tenant)).post("tenants/acme/endpoints?plan=true", ENDPOINT)

    assert (answer.status, answer.body["code"]) == (409, "quota-exceeded")
    assert answer.body["data"]


def test_waiting_ends_with_the_phase_or_with_its_time(api, tenant):
    me = api(factories.member(tenant))
    made = me.post("tenants/acme/endpoints", ENDPOINT)

    over = me.get("tenants/acme/endpoints/fresh?wait=0.3")
    assert over.body["phase"] == "Provisioning"

    def ready() -> None:
        try:
            Endpoint.objects.filter(pk=made.body["id"]).update(phase="Ready")
        finally:
            connections.close_all()

    timer = threading.Timer(0.4, ready)
    timer.start()
    waited = me.get("tenants/acme/endpoints/fresh?wait=20&for=Ready,Failed")
    timer.join()
    assert waited.body["phase"] == "Ready"


def test_log_in_gives_a_token_that_works_until_log_out(api):
    person = factories.person(password="correct-horse-battery")
    nobody = api(None)

    wrong = nobody.post("login", {"email": person.email, "password": "wrong"})
    made = nobody.post("login", {"email": person.email.upper(), "password": "correct-horse-battery"})

    assert wrong.status == 401
    assert made.status == 201, made
    me = Api(made.body["token"])
    assert me.get("who").body["person"] == str(person.pk)
    assert me.delete("login").status == 204
    assert me.get("who").status == 401


def test_an_idempotency_key_never_gives_one_persons_log_in_to_another(api):
    person = factories.person(password="correct-horse-battery")
    body = {"email": person.email, "password": "correct-horse-battery"}

    first = api(None).post("login", body, key="same")
    second = api(None).post("login", body, key="same")

    assert first.body["token"] != second.body["token"]
    assert IdempotencyRecord.objects.count() == 0


def test_who_says_what_the_caller_may_do(api, tenant):
    person = factories.member(tenant, Role.OWNER)

    assert api(person).get("who").body == {
        "kind": "person",
        "id": str(person.pk),
        "person": str(person.pk),
        "name": person.display_name,
        "platform_roles": [],
        "read_only": False,
        "tenants": [{"id": str(tenant.pk), "name": "acme", "role": "owner"}],
    }


def test_an_object_is_found_by_its_short_id_by_those_who_see_it(api, tenant):
    me = api(factories.member(tenant))
    made = me.post("tenants/acme/endpoints", ENDPOINT).body

    found = me.get(f"objects/{made['short_id']}")
    assert (found.status, found.body["name"], found.body["kind"]) == (200, "fresh", "endpoint")
    assert me.get(found.body["address"]).body["id"] == made["id"]
    assert api(factories.member(factories.tenant())).get(f"objects/{made['short_id']}").status == 404


def test_an_address_takes_a_short_id_before_a_name_that_looks_like_one(api, tenant):
    me = api(factories.member(tenant))
    made = me.post("tenants/acme/endpoints", ENDPOINT).body
    other = me.post("tenants/acme/endpoints", {**ENDPOINT, "name": made["short_id"]}).body
    named = me.post("tenants/acme/endpoints", {**ENDPOINT, "name": "ep-0000"}).body

    assert me.get(f"tenants/acme/endpoints/{made['short_id']}").body["id"] == made["id"] != other["id"]
    assert me.get("tenants/acme/endpoints/ep-0000").body["id"] == named["id"]
    assert me.get("tenants/acme/endpoints/fresh").body["id"] == made["id"]


def test_a_request_is_decided_by_a_second_person(api, tenant):
    from tenants.models import Quota

    Quota.objects.filter(tenant=tenant, dimension="vcpu").update(amount=1)
    me, boss = api(factories.member(tenant)), factories.member(tenant, Role.OWNER)
    from tenants.states import PlatformRole

    approver = api(factories.person(platform=(PlatformRole.APPROVER,)))

    made = me.post("tenants/acme/endpoints", {**ENDPOINT, "on_shortage": "request"})
    assert (made.status, made.body["phase"]) == (201, "AwaitingApproval"), made
    asked = me.get("requests").body["items"][0]
    assert asked["payload"]["limits"] == {"vcpu": 1}
    own = me.post(f"requests/{asked['id']}/decide", {"version": 1, "verdict": "approve"})
    assert own.status in {403, 409}, own
    for decider in (api(boss), approver):
        seen = decider.get("inbox").body["items"]
        assert [each["id"] for each in seen] == [asked["id"]]
        proof = decider.get(f"requests/{asked['id']}/proof")
        assert proof.status == 200, proof
        done = decider.post(
            f"requests/{asked['id']}/decide",
            {"version": seen[0]["version"], "verdict": "approve", "expect_proof": proof.body["proof"]},
        )
        assert done.status == 200, done
    assert done.body["state"] == "approved"
    assert me.get("allocations?product_kind=endpoint").body["items"][0]["phase"] == "Provisioning"


def heard(ear: stream.Ear) -> list[str]:
    return [event.kind for event in stream.look(ear)]


def test_the_stream_tells_each_listener_what_he_may_see_once_and_in_order(api, tenant):
    other = factories.tenant(name="globex")
    member, stranger = factories.member(tenant), factories.member(other)
    ears = {}
    for who in (member, stranger):
        ears[who.pk] = stream.Ear(factories.actor(who), "", "")
        stream._settle(ears[who.pk], None)

    api(member).post("tenants/acme/endpoints", ENDPOINT)

    first = heard(ears[member.pk])
    assert "endpoint.requested" in first
    assert first == list(dict.fromkeys(first)) or len(first) == len(Event.objects.filter(tenant_id=tenant.pk))
    assert heard(ears[member.pk]) == []
    assert heard(ears[stranger.pk]) == []


def test_the_stream_resumes_where_it_was(api, tenant):
    member = factories.member(tenant)
    api(member).post("tenants/acme/endpoints", ENDPOINT)
    last = Event.objects.filter(tenant_id=tenant.pk).order_by("at").last()
    assert last is not None

    ear = stream.Ear(factories.actor(member), "acme", "endpoint")
    stream._settle(ear, last.at - timedelta(hours=1))

    assert "endpoint.requested" in heard(ear)


def test_the_stream_is_server_sent_events_and_ends_with_its_token(api, tenant, monkeypatch):
    monkeypatch.setattr(stream, "PROVE_AGAIN_S", 0.0)
    monkeypatch.setattr(stream, "POLL_S", 0.01)
    member = factories.member(tenant)
    me = api(member)
    request = type("R", (), {"headers": {"Authorization": f"Bearer {me.token}"}})()
    ear = stream.Ear(factories.actor(member), "", "")
    stream._settle(ear, None)
    connection.close()

    async def listen() -> list[bytes]:
        got = []
        async for line in stream._events(ear, request):
            got.append(line)
            if len(got) == 1:
                await asyncio.to_thread(_change, me, member)
        return got

    lines = asyncio.run(listen())

    assert lines[0] == b"retry: 2000\n\n"
    assert lines[-1] == b"event: end\ndata: unauthenticated\n\n"
    told = [line for line in lines if line.startswith(b"id: ")]
    assert any(b"\nevent: endpoint.requested\ndata: {" in line for line in told)


def _change(me: Api, member: Person) -> None:
    try:
        assert me.post("tenants/acme/endpoints", ENDPOINT).status == 201
        timer = threading.Timer(0.5, _suspend, [member])
        timer.start()
    finally:
        connections.close_all()


def _suspend(member: Person) -> None:
    try:
        Person.objects.filter(pk=member.pk).update(is_active=False)
    finally:
        connections.close_all()


def test_the_stream_refuses_before_it_begins(api, tenant):
    me = api(factories.member(tenant))

    assert api(None).get("events/stream").status == 401
    assert me.get("events/stream?tenant=globex").status == 404
    assert me.get("events/stream?colour=red").status == 400
    assert me.get("events/stream", last_event_id="nonsense").status == 400
