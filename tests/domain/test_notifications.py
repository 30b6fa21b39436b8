"""Events become notifications exactly once, for the right people; bells, wishes and webhooks stay with their owners."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import IntegrityError

from tenants.actor import SYSTEM, Actor, Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import (
    Delivery,
    Endpoint,
    Event,
    FanoutCursor,
    Notification,
    NotificationMark,
    NotificationPreference,
    Provider,
    Webhook,
)
from tenants.notifications import fanout, reads, registry, stories, watch
from tenants.operations import endpoints, inventory, members, notifications, people, requests, tenants
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import PlatformRole, Role, SuspensionDepth
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

DAY = timedelta(days=1)


class World:
    """A tenant with an owner and a member, an approver and an operator."""

    def __init__(self):
        self.tenant = factories.tenant(name="acme")
        factories.generous(self.tenant)
        self.owner = factories.member(self.tenant, Role.OWNER)
        self.member = factories.member(self.tenant)
        self.approver = factories.person(platform=(PlatformRole.APPROVER,))
        self.operator = factories.person(platform=(PlatformRole.OPERATOR,))

    def ask(self, now=NOW):
        return requests.submit(
            kind="quota", payload={"limits": {"vcpu": 1}}, reason="more", tenant=self.tenant,
            actor=factories.actor(self.member), now=now,
        )  # fmt: skip

    def endpoint(self):
        provider = factories.provider(capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"]})
        factories.host(provider, gpus=1)
        factories.served_model()
        spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=1, memory_gib=1),))
        asked = EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec)
        actor = factories.actor(self.member)
        return endpoints.create(tenant=self.tenant, ask=asked, actor=actor, now=NOW).endpoint

    def webhook(self, name="hook", kinds=(), now=NOW):
        return notifications.create_webhook(
            tenant=self.tenant, name=name, url="https://hooks.example.org/in?token=t0k3n", kinds=kinds,
            actor=factories.actor(self.owner), now=now,
        )  # fmt: skip


@pytest.fixture
def world():
    return World()


def told(kind=None):
    """Who was told what."""
    rows = Notification.objects.filter(kind=kind) if kind else Notification.objects.all()
    return sorted((row.kind, row.person_id) for row in rows)


def test_a_request_is_told_to_who_decides_and_its_end_to_who_asked(world):
    request = world.ask()

    fanout.run(NOW)
    at_first = told()
    requests.decide(
        request=request, version=1, verdict="approve", reason="", actor=factories.actor(world.owner), now=NOW
    )
    fanout.run(NOW)
    after_stage = set(told()) - set(at_first)
    requests.decide(
        request=request, version=1, verdict="deny", reason="no", actor=factories.actor(world.approver), now=NOW
    )
    fanout.run(NOW)

    assert at_first == [("request.waiting", world.owner.pk)]
    assert after_stage == {("request.waiting", world.approver.pk), ("request.advanced", world.member.pk)}
    assert told("request.decided") == [("request.decided", world.member.pk)]
    row = Notification.objects.get(kind="request.decided")
    assert registry.text_of(row) == f"{request.short_id} (more quota) is now denied."
    assert registry.link_of(row) == f"/t/acme/requests/{request.short_id}"


def test_an_event_is_told_once_though_the_cursor_is_lost_and_two_workers_run(world):
    world.webhook(now=NOW)
    world.ask()
    fanout.run(NOW)
    before = (told(), Delivery.objects.count())

    fanout.run(NOW)
    FanoutCursor.objects.all().delete()
    fanout.run(NOW)

    assert (told(), Delivery.objects.count()) == before
    assert before[1] == 2  # one mail, one webhook


def test_a_worker_that_dies_in_the_middle_of_a_batch_has_told_nothing_and_the_next_tells_all(world, monkeypatch):
    world.ask()
    world.ask(NOW + timedelta(seconds=1))
    real, calls = fanout._tell, []

    def dies(event, story, *, now):
        calls.append(event)
        real(event, story, now=now)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(fanout, "_tell", dies)
    with pytest.raises(KeyboardInterrupt):
        fanout.run(NOW)
    left = Notification.objects.count()
    monkeypatch.setattr(fanout, "_tell", real)
    fanout.run(NOW)

    assert left == 0
    assert told() == [("request.waiting", world.owner.pk)] * 2


def test_one_event_that_cannot_be_told_does_not_silence_the_next(world, monkeypatch):
    first = world.ask()
    world.ask(NOW + timedelta(seconds=1))
    real = stories.of

    def broken(event, kind, *, now):
        if event.object_id == first.pk:
            raise RuntimeError
        return real(event, kind, now=now)

    monkeypatch.setattr(stories, "of", broken)
    fanout.run(NOW)

    assert told() == [("request.waiting", world.owner.pk)]


def test_who_did_it_is_not_told_but_his_password_is_told_to_himself(world):
    people.set_password(
        person=world.owner, old="", new="correct-horse-battery", actor=factories.actor(world.owner), now=NOW
    )
    tenants.suspend(
        tenant=world.tenant, depth=SuspensionDepth.KEYS, reason="bill", actor=factories.actor(world.operator), now=NOW
    )

    fanout.run(NOW)

    assert told("account.password") == [("account.password", world.owner.pk)]
    assert {person for _, person in told("tenant.suspended")} == {world.owner.pk, world.member.pk}


def test_who_is_taken_out_is_told_though_he_sees_the_tenant_no_more(world):
    membership = world.member.memberships.get()
    members.remove(membership=membership, actor=factories.actor(world.owner), now=NOW)

    fanout.run(NOW)

    actor = factories.actor(world.member)
    with acting(actor):
        rows = list(reads.bell(actor))
    assert [registry.text_of(row) for row in rows] == ["You are no member of acme any more."]


def test_a_bell_is_its_persons_alone_even_without_our_filter(world):
    world.ask()
    fanout.run(NOW)
    account = factories.service_account(world.tenant, owner=world.owner)
    machine = Actor(Kind.SERVICE_ACCOUNT, account.pk, world.owner.pk, tenant_roles={world.tenant.pk: Role.MEMBER})

    seen = {}
    for name, actor in (
        ("owner", factories.actor(world.owner)), ("member", factories.actor(world.member)),
        ("operator", factories.actor(world.operator)), ("machine", machine),
    ):  # fmt: skip
        with acting(actor):
            seen[name] = (Notification.objects.count(), Delivery.objects.count(), reads.unread_count(actor))

    assert seen == {"owner": (1, 1, 1), "member": (0, 0, 0), "operator": (0, 0, 0), "machine": (0, 0, 0)}


def test_read_marks_touch_ones_own_rows_only(world):
    world.ask()
    world.ask(NOW + timedelta(seconds=1))
    fanout.run(NOW)
    ids = list(Notification.objects.order_by("at").values_list("pk", flat=True))

    assert notifications.mark_read(ids=ids, actor=factories.actor(world.member), now=NOW) == 0
    assert Notification.objects.filter(read_at__isnull=False).count() == 0
    assert notifications.mark_read(ids=ids[:1], actor=factories.actor(world.owner), now=NOW) == 1
    assert notifications.mark_read(ids=None, actor=factories.actor(world.owner), now=NOW) == 0
    assert Notification.objects.filter(read_at=NOW).count() == 2


def test_a_wish_changes_bell_and_mail_and_unknown_kinds_are_refused(world):
    actor = factories.actor(world.owner)
    notifications.set_preference(kind="request.waiting", bell=False, mail="off", actor=actor, now=NOW)
    world.ask()
    fanout.run(NOW)

    with acting(actor):
        wishes = {each.kind.id: (each.bell, each.mail.value, each.own) for each in reads.preferences(actor)}
        unread = reads.unread_count(actor)

    assert unread == 0
    assert Delivery.objects.count() == 0
    assert wishes["request.waiting"] == (False, "off", True)
    assert wishes["request.decided"] == (True, "now", False)
    assert "provider.down" not in wishes
    for kind in ("nothing.at-all", "provider.down"):
        with pytest.raises(InvalidSpec):
            notifications.set_preference(kind=kind, bell=True, mail="now", actor=actor, now=NOW)
    assert NotificationPreference.objects.count() == 1


def test_deciders_are_reminded_once_a_day_for_each_request_that_waits(world):
    world.ask()

    counts = []
    for hours in (23, 24, 25, 47, 48, 24 * 5 + 1):
        now = NOW + timedelta(hours=hours)
        watch.run(now)
        watch.run(now)
        fanout.run(now)
        counts.append(len(told("request.stale")))

    assert counts == [0, 1, 1, 1, 2, 3]
    assert {person for _, person in told("request.stale")} == {world.owner.pk}
    assert "for 5 days" in registry.text_of(Notification.objects.filter(kind="request.stale").latest("at"))


def test_an_object_that_stopped_lies_idle_or_became_ready_is_told_to_its_owner_once(world):
    row = world.endpoint()
    Endpoint.objects.filter(pk=row.pk).update(phase="Failed")
    watch.run(NOW)
    watch.run(NOW)
    Endpoint.objects.filter(pk=row.pk).update(phase="Ready", ready_at=NOW)
    for days in (6, 8, 9, 15):
        watch.run(NOW + timedelta(days=days))

    fanout.run(NOW + timedelta(days=15))

    assert told("object.failed") == [("object.failed", world.member.pk)]
    assert told("object.idle") == [("object.idle", world.member.pk)] * 2
    failed = Notification.objects.get(kind="object.failed")
    assert registry.link_of(failed) == "/t/acme/endpoints/chat"


def test_a_provider_that_is_down_is_told_once_until_it_answers_again(world):
    provider = factories.provider(name="estate")
    down = Provider.objects.filter(pk=provider.pk)

    down.update(healthy=False, breaker_open_until=NOW)
    watch.run(NOW)
    watch.run(NOW + DAY)
    down.update(healthy=True, breaker_open_until=None)
    watch.run(NOW + DAY)
    down.update(healthy=False, breaker_open_until=NOW)
    watch.run(NOW + 2 * DAY)
    fanout.run(NOW + 2 * DAY)

    assert told("provider.down") == [("provider.down", world.operator.pk)] * 2
    assert told("provider.up") == [("provider.up", world.operator.pk)]
    assert NotificationMark.objects.count() == 1


def test_work_on_hardware_is_told_in_each_tenants_own_words_and_names_nobody_else(world):
    row = world.endpoint()
    host = row.allocation.units.get().host
    inventory.drain(
        host=host, reason="new fans", actor=factories.actor(world.operator), now=NOW, starts_at=NOW + 7 * DAY
    )

    fanout.run(NOW)

    row = Notification.objects.get(kind="hardware.work", person=world.member)
    assert "new fans" in registry.text_of(row)
    assert host.name not in str(row.data)
    assert row.tenant_id == world.tenant.pk


def test_old_news_is_not_mailed(world):
    world.ask(NOW - 3 * DAY)

    fanout.run(NOW)

    assert len(told()) == 1
    assert Delivery.objects.count() == 0


# --- webhooks -------------------------------------------------------------------------------------------


def test_a_webhook_gets_the_kinds_it_asked_for_from_its_creation_on(world):
    world.ask(NOW - timedelta(minutes=1))
    world.webhook("all")
    world.webhook("some", kinds=["request.decided"])
    request = world.ask(NOW + timedelta(seconds=1))
    requests.decide(
        request=request, version=1, verdict="deny", reason="no", actor=factories.actor(world.owner), now=NOW + DAY / 24
    )

    fanout.run(NOW + DAY / 24)

    got = sorted(Delivery.objects.filter(medium="webhook").values_list("webhook__name", "kind"))
    assert got == [("all", "request.decided"), ("some", "request.decided")]  # it was decided before it was told


def test_the_secret_is_shown_once_sealed_and_in_no_event(world):
    row, secret = world.webhook()
    rolled, second = notifications.roll_webhook(
        webhook=row, overlap_s=3600, actor=factories.actor(world.owner), now=NOW
    )

    assert notifications.secrets_of(rolled, now=NOW + timedelta(seconds=3599)) == [second, secret]
    assert notifications.secrets_of(rolled, now=NOW + timedelta(seconds=3600)) == [second]
    stored = bytes(Webhook.objects.get().secret_sealed) + bytes(Webhook.objects.get().previous_sealed)
    events = str(list(Event.objects.values_list("data", flat=True)))
    for text in (secret, second):
        assert text.encode() not in stored
        assert text not in events
    assert "t0k3n" not in events


def test_webhooks_are_checked_counted_and_the_owners_matter(world):
    world.webhook()
    owner, member = factories.actor(world.owner), factories.actor(world.member)
    good = {"tenant": world.tenant, "name": "two", "url": "https://hooks.example.org/", "kinds": [], "now": NOW}

    for wrong in ({"url": "https://10.0.0.1/"}, {"kinds": ["provider.down"]}, {"name": "No Name"}):
        with pytest.raises(InvalidSpec):
            notifications.create_webhook(**{**good, **wrong}, actor=owner)
    with pytest.raises(Conflict):
        notifications.create_webhook(**{**good, "name": "hook"}, actor=owner)
    with pytest.raises(Forbidden):
        notifications.create_webhook(**good, actor=member)
    for number in range(9):
        notifications.create_webhook(**{**good, "name": f"more-{number}"}, actor=owner)
    with pytest.raises(Conflict, match="at most 10"):
        notifications.create_webhook(**good, actor=owner)
    assert Webhook.objects.count() == 10


def test_another_tenant_sees_no_webhook_and_no_delivery_even_without_our_filter(world):
    row, _ = world.webhook()
    notifications.try_webhook(webhook=row, actor=factories.actor(world.owner), now=NOW)
    other = factories.tenant()
    stranger = factories.actor(factories.member(other, Role.OWNER))

    with acting(stranger):
        assert (Webhook.objects.count(), Delivery.objects.count()) == (0, 0)
    with acting(factories.actor(world.owner)):
        assert (Webhook.objects.count(), Delivery.objects.count()) == (1, 1)


def test_a_removed_webhook_forgets_its_secrets_and_the_database_insists(world):
    row, _ = world.webhook()

    notifications.remove_webhook(webhook=row, actor=factories.actor(world.owner), now=NOW)

    found = Webhook.objects.get()
    assert (found.secret_sealed, found.previous_sealed, found.removed_at) == (None, None, NOW)
    with pytest.raises(IntegrityError), acting(SYSTEM):
        Webhook.objects.update(secret_sealed=b"x")
