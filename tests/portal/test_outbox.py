"""Mail kept for the demo: one's own, labelled as not sent, with links that work; nowhere else."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.mail import EmailMessage, get_connection
from django.utils import timezone

from frontend.views.outbox import linked
from tenants.models import OutboxMail, Provider
from tenants.states import PlatformRole
from tests import factories

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def demo(db, settings):
    settings.TENANTRY_DEMO = True
    settings.TENANTRY_PUBLIC_URL = "http://demo.test:8420"
    return factories.provider(capabilities={"simulated": True})


@pytest.fixture
def me(db):
    return factories.member(factories.tenant(name="acme"))


def kept(to: str, subject: str, text: str = "Hello.", *, ago_s: int = 0) -> None:
    """Send a mail as the demo does, and let it be old."""
    backend = get_connection("tenants.notifications.mailbox.OutboxBackend")
    EmailMessage(subject, text, "x@demo.test", [to], connection=backend).send()
    OutboxMail.objects.filter(subject=subject).update(at=timezone.now() - timedelta(seconds=ago_s))


def test_one_reads_ones_own_mail_newest_first_and_that_it_was_not_sent(browse, demo, me):
    kept(me.email, "Older", ago_s=60)
    kept(me.email.upper(), "Newer")
    kept("zebrafish@demo.test", "Foreign")

    text = browse(me).get("/outbox").content.decode()

    assert text.index("Newer") < text.index("Older")
    assert "Foreign" not in text
    assert "Not sent" in text
    assert "Nothing was sent" in text


def test_links_to_this_installation_work_and_others_stay_text(browse, demo, me):
    from tenants.models import AccountLink  # noqa: F401 - the link's page is looked at below

    kept(me.email, "Invited", "Come: http://demo.test:8420/accounts/login/?next=/t/acme\nnot http://evil.test/x <b>")

    text = browse(me).get("/outbox").content.decode()

    assert '<a href="/accounts/login/?next=/t/acme">http://demo.test:8420/accounts/login/?next=/t/acme</a>' in text
    assert 'href="http://evil.test' not in text
    assert "http://evil.test/x &lt;b&gt;" in text
    assert browse(None).get("/accounts/login/?next=/t/acme").status_code == 200


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("See http://demo.test:8420/me.", '<a href="/me">'),
        ("http://demo.test:8420", '<a href="/">'),
        ("http://demo.test:8420/a#b", '<a href="/a#b">'),
        ("http://demo.test:8420//evil.test/x", None),
        ("http://demo.test:8420.evil.test/", None),
        ("https://demo.test:8420/", None),
        ("javascript:alert(1)", None),
    ],
)
def test_only_our_own_address_becomes_a_link(demo, text, link):
    found = linked(text)

    assert (link in found) if link else ("<a" not in found)


def test_people_of_the_platform_may_read_everybodys(browse, demo, me):
    operator = factories.person(platform=(PlatformRole.OPERATOR,))
    kept(me.email, "To a member")

    assert "To a member" in browse(operator).get("/outbox?to=all").content.decode()
    assert "To a member" not in browse(operator).get("/outbox").content.decode()
    kept("other@demo.test", "To another")
    assert "To another" not in browse(me).get("/outbox?to=all").content.decode()


def test_outside_a_demo_there_is_no_such_page(browse, me, settings):
    assert browse(me).get("/outbox").status_code == 404
    settings.TENANTRY_DEMO = True
    factories.provider(kind="kubernetes")

    assert Provider.objects.count() == 1
    assert browse(me).get("/outbox").status_code == 404


def test_visitors_are_sent_to_the_log_in_and_the_persona_bar_leads_there(browse, demo, me):
    assert browse(None).get("/outbox").status_code == 302
    assert 'href="/outbox"' in browse(me).get("/me").content.decode()


def test_twenty_stand_on_a_page(browse, demo, me):
    for number in range(23):
        kept(me.email, f"Mail n{number:02d}x", ago_s=number)
    browser = browse(me)

    first = browser.get("/outbox").content.decode()
    second = browser.get(f"/outbox?after={first.split('?after=')[1].split(chr(34))[0]}").content.decode()

    assert [f"n{number}x" in first for number in (19, 20)] == [True, False]
    assert [f"n{number}x" in second for number in (19, 20, 22)] == [False, True, True]


def test_without_any_it_says_what_will_come(browse, demo, me):
    assert "Nobody has written to you yet" in browse(me).get("/outbox").content.decode()
