"""The bell: what was told, to whom, marks, wishes."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from tenants.models import Notification, NotificationPreference
from tenants.notifications import registry
from tenants.states import PlatformRole
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def acme(db):
    return factories.tenant(name="acme", display_name="Acme Works")


@pytest.fixture
def me(acme):
    return factories.member(acme)


def told(who, kind="object.ready", *, ago=1, **data):
    """Tell somebody something."""
    now = timezone.now()
    given = {"tenant": "acme", "noun": "endpoints", "object": "endpoint", "name": "chat"} | data
    return Notification.objects.create(
        person=who, kind=kind, event_id=uuid4(), data=given, at=now - timedelta(minutes=ago), created_at=now
    )


def test_the_bell_counts_and_the_page_lists_only_ones_own_newest_first(browse, acme, me):
    told(me, ago=5, name="older")
    told(me, ago=1, name="newer")
    told(factories.member(acme), name="zebrafish")

    text = browse(me).get("/me/notifications").content.decode()

    assert "2 unread" in text
    assert "zebrafish" not in text
    assert text.index("The endpoint newer is ready.") < text.index("The endpoint older is ready.")
    assert '<a href="/t/acme/endpoints/newer">Ready</a>' in text


def test_news_lead_to_their_page_and_what_has_none_is_text_without_a_link(browse, me, monkeypatch):
    told(me, "webhook.failing", name="ops", why="timeout")
    told(me, "gpu.faulty", device="0", name="h1", id="1", why="Xid 79")
    link_of = registry.link_of
    monkeypatch.setattr(registry, "link_of", lambda row: "/nowhere" if row.kind == "gpu.faulty" else link_of(row))

    text = browse(me).get("/me/notifications").content.decode()

    assert "The webhook ops of acme gave up" in text
    assert 'href="/t/acme/settings/webhooks/ops"' in text
    assert "GPU 0 of h1 is faulty" in text
    assert "/nowhere" not in text


def test_filters_show_unread_and_one_kind(browse, me):
    told(me, name="fresh")
    seen = told(me, "object.idle", name="old", days="9")
    Notification.objects.filter(pk=seen.pk).update(read_at=timezone.now())
    browser = browse(me)

    unread = browser.get("/me/notifications?show=unread").content.decode()
    idle = browser.get("/me/notifications?kind=object.idle").content.decode()
    none = browser.get("/me/notifications?kind=key.revoked").content.decode()

    assert ("fresh is ready" in unread, "endpoint old" in unread) == (True, False)
    assert ("fresh is ready" in idle, "endpoint old" in idle) == (False, True)
    assert "Nothing matches these filters" in none


def test_fifty_stand_on_a_page_and_the_rest_on_the_next(browse, me):
    for number in range(53):
        told(me, ago=number + 1, name=f"n{number:02d}x")
    browser = browse(me)

    first = browser.get("/me/notifications")
    cursor = first.content.decode().split("?after=")[1].split('"')[0]
    second = browser.get(f"/me/notifications?after={cursor}").content.decode()

    assert "endpoint n49x is" in first.content.decode()
    assert "endpoint n50x is" not in first.content.decode()
    assert [f"n{number}x is" in second for number in (49, 50, 52)] == [False, True, True]


def test_one_and_all_are_marked_as_read_and_nobody_elses(browse, acme, me):
    one, two, foreign = told(me), told(me), told(factories.member(acme))
    browser = browse(me)

    browser.post("/me/notifications/read", {"id": str(foreign.pk)})
    answer = browser.post("/me/notifications/read", {"id": str(one.pk), "back": "/me/notifications?show=unread"})
    after_one = set(Notification.objects.filter(read_at__isnull=True).values_list("pk", flat=True))
    browser.post("/me/notifications/read", {"all": "1", "back": "https://evil.test/"})

    assert answer["Location"] == "/me/notifications?show=unread"
    assert after_one == {two.pk, foreign.pk}
    assert set(Notification.objects.filter(read_at__isnull=True).values_list("pk", flat=True)) == {foreign.pk}


def test_one_is_never_sent_off_the_host(browse, me):
    answer = browse(me).post("/me/notifications/read", {"all": "1", "back": "https://evil.test/"})

    assert answer["Location"] == "/me/notifications"


def test_wishes_are_kept_where_they_differ(browse, me):
    browser = browse(me)
    shown = browser.get("/me/notifications/preferences").content.decode()

    answer = browser.post(
        "/me/notifications/preferences/set",
        {"mail:object.ready": "off", "bell:object.idle": "on", "mail:object.idle": "digest"},
    )

    assert 'name="mail:object.ready"' in shown
    assert "gpu.faulty" not in shown
    assert answer.status_code == 302
    assert list(NotificationPreference.objects.values_list("person_id", "kind", "bell", "mail")) == [
        (me.pk, "object.ready", False, "off")
    ]


def test_a_mail_word_that_is_none_is_refused(browse, me):
    browse(me).post("/me/notifications/preferences/set", {"mail:object.ready": "hourly"})

    assert not NotificationPreference.objects.exists()


def test_kinds_of_the_platform_are_for_its_people(browse):
    shown = browse(factories.person(platform=(PlatformRole.OPERATOR,))).get("/me/notifications/preferences")

    assert 'name="mail:gpu.faulty"' in shown.content.decode()


def test_without_any_the_page_says_what_will_come(browse, me):
    text = browse(me).get("/me/notifications").content.decode()

    assert "Nothing has happened yet" in text
    assert "unread" not in text.split("<main")[0]


def test_visitors_are_sent_to_the_log_in(browse):
    for path in ("/me/notifications", "/me/notifications/preferences"):
        assert browse(None).get(path).status_code == 302
    assert browse(None).post("/me/notifications/read").status_code == 302
