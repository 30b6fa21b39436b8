"""People and access: invitations, roles, ownership, offboarding, service accounts, the review."""

from __future__ import annotations

import html
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.views import access_review, offboarding
from tenants import tokens
from tenants.errors import Unauthenticated
from tenants.models import AccountLink, ApiToken, Endpoint, EndpointKey, Event, Membership, ServiceAccount
from tenants.operations import endpoints, people, service_accounts
from tenants.states import Role
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
PEOPLE = "/t/acme/people"


@pytest.fixture
def world(db: None) -> World:
    return build()


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def membership(who) -> Membership:
    return Membership.objects.get(person=who)


def role(who) -> int:
    return membership(who).role


# --- list -----------------------------------------------------------------------------------------------


def test_the_list_shows_role_last_activity_and_where_a_role_comes_from(world, browse):
    lab = factories.tenant(name="acme-lab", parent=world.acme.tenant)
    factories.member(lab, who=factories.person(name="Lab Member"))

    here = text(browse(world.acme.owner).get(PEOPLE))
    below = text(browse(world.acme.owner).get("/t/acme-lab/people"))

    assert re.search(r"Owner you p\d+@example.org Owner none not in 90 days", here)
    assert re.search(r"Member p\d+@example.org Member none \w", here)
    assert "through Acme Works" in below
    assert "Lab Member" in below


def test_members_read_without_actions_or_invitations(world, browse):
    shown = text(browse(world.acme.member).get(PEOPLE))

    assert "Offboard" not in shown
    assert "Open invitations" not in shown
    assert "Leave the tenant" in shown


def test_the_list_takes_as_many_queries_for_forty_people_as_for_ten(world, browse):
    browser = browse(world.acme.owner)

    def cost(count):
        for _ in range(count):
            factories.member(world.acme.tenant)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert browser.get(PEOPLE).status_code == 200
        return len(queries)

    cost(1)
    assert cost(9) == cost(30)


@pytest.mark.parametrize("page", ["accounts", "review"])
def test_programs_and_the_review_take_as_many_queries_for_forty_as_for_ten(world, browse, page):
    browser, owner = browse(world.acme.owner), factories.actor(world.acme.owner)

    def cost(first, last):
        for n in range(first, last):
            row = service_accounts.create(
                tenant=world.acme.tenant, name=f"robot-{n}", role=Role.VIEWER, actor=owner, now=timezone.now()
            )
            service_accounts.issue_token(account=row, name="t", actor=owner, now=timezone.now())
        with CaptureQueriesContext(connection) as queries:
            assert browser.get(f"{PEOPLE}/{page}").status_code == 200
        return len(queries)

    cost(0, 1)
    assert cost(1, 10) == cost(10, 40)


def test_a_role_filters_and_the_list_is_exported(world, browse):
    browser = browse(world.acme.owner)

    owners = browser.get(f"{PEOPLE}?role=owner&format=csv").content.decode().splitlines()
    everybody = browser.get(f"{PEOPLE}?format=json").json()

    assert owners[0] == "name,email,role,through,second_factor,last_active,since"
    assert [line.split(",")[2] for line in owners[1:]] == ["owner"]
    assert sorted(one["role"] for one in everybody) == ["member", "owner", "viewer"]


# --- invitations ------------------------------------------------------------------------------------------


def test_an_invitation_is_shown_once_where_no_mail_is_set_up_and_opens_the_tenant(world, browse):
    browser = browse(world.acme.owner)

    sent = browser.post(f"{PEOPLE}/invite", {"email": "nia@example.org", "role": "viewer"}, follow=True)
    again = browser.get(PEOPLE)

    address = re.search(r"/accounts/link/[\w-]+/", sent.content.decode())
    assert address is not None
    assert "/accounts/link/" not in again.content.decode()
    assert "nia@example.org" in text(again)
    visitor = browse(None)
    visitor.get(address[0])
    done = visitor.post("/accounts/link/", {"display_name": "Nia", "password": "a-long-enough-secret"}, follow=True)
    assert done.status_code == 200
    assert Membership.objects.get(person__email="nia@example.org").role == int(Role.VIEWER)


def test_sending_again_ends_the_first_link_and_withdrawing_ends_all(world, browse):
    browser = browse(world.acme.owner)
    browser.post(f"{PEOPLE}/invite", {"email": "nia@example.org", "role": "member"})
    first = AccountLink.objects.get()

    browser.post(f"{PEOPLE}/invitations/{first.pk}/again")
    second = AccountLink.objects.get(withdrawn_at=None)
    browser.post(f"{PEOPLE}/invitations/{second.pk}/withdraw")

    assert second.pk != first.pk
    assert second.email == "nia@example.org"
    assert not AccountLink.objects.filter(withdrawn_at=None).exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"email": "nobody", "role": "member"}, "This is no e-mail address."),
        ({"email": "nia@example.org", "role": "king"}, "Choose a role."),
    ],
)
def test_a_wrong_invitation_is_said_at_its_field(world, browse, given, sentence):
    answer = browse(world.acme.owner).post(f"{PEOPLE}/invite", given)

    assert answer.status_code == 422
    assert sentence in text(answer)
    assert not AccountLink.objects.exists()


def test_a_member_is_not_invited_twice(world, browse):
    answer = browse(world.acme.owner).post(f"{PEOPLE}/invite", {"email": world.acme.member.email, "role": "member"})

    assert answer.status_code == 409
    assert "a member already" in text(answer)


# --- roles and ownership ------------------------------------------------------------------------------------


def test_an_owner_changes_a_role_but_not_the_last_owners(world, browse):
    browser = browse(world.acme.owner)

    browser.post(f"{PEOPLE}/{membership(world.acme.viewer).pk}/role", {"role": "member"})
    refused = browser.post(f"{PEOPLE}/{membership(world.acme.owner).pk}/role", {"role": "viewer"}, follow=True)

    assert (role(world.acme.viewer), role(world.acme.owner)) == (int(Role.MEMBER), int(Role.OWNER))
    assert "This is the last owner of acme" in text(refused)


def test_ownership_is_passed_on_and_the_former_owner_acts_no_more(world, browse):
    browser = browse(world.acme.owner)

    answer = browser.post(f"{PEOPLE}/pass-ownership", {"member": str(membership(world.acme.member).pk)}, follow=True)

    assert (role(world.acme.member), role(world.acme.owner)) == (int(Role.OWNER), int(Role.MEMBER))
    assert "owns the tenant now" in text(answer)
    assert "Offboard" not in text(browser.get(PEOPLE))


# --- offboarding ---------------------------------------------------------------------------------------------


def test_offboarding_shows_what_hangs_on_a_person_and_hands_it_over(world, browse):
    who, owner = world.acme.member, world.acme.owner
    token = people.issue_token(name="mine", tenant=world.acme.tenant, actor=factories.actor(who), now=timezone.now())
    browser = browse(owner)
    url = f"{PEOPLE}/{membership(who).pk}/remove"

    plan = text(browser.get(url))
    chosen = text(browser.get(url, {"successor": str(owner.pk)}))
    done = browser.post(url, {"successor": str(owner.pk)}, follow=True)

    assert re.search(r"Endpoint chat goes on; an owner hands it over later", plan)
    assert "1 token for this tenant is revoked" in plan
    assert re.search(r"Endpoint chat goes on; Owner owns it", chosen)
    assert "has no access any more" in text(done)
    assert not Membership.objects.filter(person=who).exists()
    assert Endpoint.objects.get(tenant=world.acme.tenant).owner_id == owner.pk
    with pytest.raises(Unauthenticated):
        tokens.resolve(f"Bearer {token.plain}", now=timezone.now())


def test_what_is_too_much_to_name_is_counted(world, browse, monkeypatch):
    who = world.acme.member
    monkeypatch.setattr(offboarding, "MOST", 1)
    endpoint = Endpoint.objects.get(tenant=world.acme.tenant, owner=who)
    EndpointKey.objects.filter(endpoint=endpoint).update(author=who)
    for name in ("one", "two"):
        endpoints.create_key(
            endpoint=endpoint, name=name, expires_at=None, actor=factories.actor(who), now=timezone.now()
        )

    plan = text(browse(world.acme.owner).get(f"{PEOPLE}/{membership(who).pk}/remove"))

    count = EndpointKey.objects.filter(author=who, revoked_at__isnull=True).count()
    assert f"and {count - 1} more" in plan


def test_looking_at_the_plan_changes_nothing(world, browse):
    before = list(Membership.objects.order_by("pk").values_list("pk", "role")), Event.objects.count()

    browse(world.acme.owner).get(f"{PEOPLE}/{membership(world.acme.member).pk}/remove")

    assert (list(Membership.objects.order_by("pk").values_list("pk", "role")), Event.objects.count()) == before


def test_the_last_owner_cannot_leave_and_another_owner_is_typed(world, browse):
    second = factories.member(world.acme.tenant, Role.OWNER)
    browser = browse(world.acme.owner)
    url = f"{PEOPLE}/{membership(second).pk}/remove"

    untyped = browser.post(url)
    typed = browser.post(url, {"confirm": second.email})
    alone = browser.get(f"{PEOPLE}/leave")

    assert untyped.status_code == 422
    assert "Type the e-mail" in text(untyped)
    assert typed.status_code == 302
    assert "This is the last owner of acme" in text(alone)


def test_a_member_leaves_by_himself(world, browse):
    answer = browse(world.acme.viewer).post(f"{PEOPLE}/leave")

    assert (answer.status_code, answer["Location"]) == (302, "/")
    assert not Membership.objects.filter(person=world.acme.viewer).exists()


def test_what_a_leaver_left_is_handed_over_later(world, browse):
    browser = browse(world.acme.owner)
    browser.post(f"{PEOPLE}/{membership(world.acme.member).pk}/remove")

    left = text(browser.get(PEOPLE))
    browser.post(f"{PEOPLE}/{world.acme.member.pk}/hand-over", {"successor": str(world.acme.owner.pk)})

    assert re.search(r"Left behind .* chat, box, space", left)
    assert "Left behind" not in text(browser.get(PEOPLE))
    assert Endpoint.objects.get(tenant=world.acme.tenant).owner_id == world.acme.owner.pk


# --- service accounts ------------------------------------------------------------------------------------------


def test_a_service_account_is_made_with_a_token_that_is_shown_once_and_works(world, browse):
    browser = browse(world.acme.owner)

    made = browser.post(f"{PEOPLE}/accounts/new", {"name": "evals", "role": "viewer", "days": "30"})
    shown = browser.post(f"{made['Location']}/tokens/new", {"name": "ci", "days": "7"}, follow=True)
    again = browser.get(made["Location"])

    secret = re.search(r"tnt_\w+", shown.content.decode())
    assert secret is not None
    assert secret[0] not in again.content.decode()
    row = ServiceAccount.objects.get(name="evals")
    assert row.expires_at is not None
    assert tokens.resolve(f"Bearer {secret[0]}", now=timezone.now()).id == row.pk


def test_a_service_account_is_changed_and_ended_with_its_name_typed(world, browse):
    browser = browse(world.acme.owner)
    row = service_accounts.create(
        tenant=world.acme.tenant, name="robot", role=Role.VIEWER, actor=factories.actor(world.acme.owner),
        now=timezone.now(),
    )  # fmt: skip
    issued = service_accounts.issue_token(
        account=row, name="t", actor=factories.actor(world.acme.owner), now=timezone.now()
    )
    url = f"{PEOPLE}/accounts/robot"

    browser.post(f"{url}/change", {"role": "member", "owner": str(world.acme.member.pk)})
    row.refresh_from_db()
    untyped = browser.post(f"{url}/end")
    ended = browser.post(f"{url}/end", {"confirm": "robot"})

    assert (row.role, row.owner_id) == (int(Role.MEMBER), world.acme.member.pk)
    assert (untyped.status_code, ended.status_code) == (400, 302)
    assert ApiToken.objects.get(pk=issued.row.pk).revoked_at is not None


@pytest.mark.parametrize(("name", "sentence"), [("Bad Name", "Use a DNS label"), ("taken", "exists already")])
def test_a_wrong_service_account_is_said_at_its_field(world, browse, name, sentence):
    service_accounts.create(
        tenant=world.acme.tenant, name="taken", role=Role.VIEWER, actor=factories.actor(world.acme.owner),
        now=timezone.now(),
    )  # fmt: skip

    answer = browse(world.acme.owner).post(f"{PEOPLE}/accounts/new", {"name": name, "role": "viewer"})

    assert answer.status_code in {409, 422}
    assert sentence in text(answer)


def test_a_token_is_revoked(world, browse):
    row = service_accounts.create(
        tenant=world.acme.tenant, name="robot", role=Role.VIEWER, actor=factories.actor(world.acme.owner),
        now=timezone.now(),
    )  # fmt: skip
    issued = service_accounts.issue_token(
        account=row, name="t", actor=factories.actor(world.acme.owner), now=timezone.now()
    )

    browse(world.acme.owner).post(f"{PEOPLE}/accounts/robot/tokens/{issued.row.public_id}/revoke")

    assert ApiToken.objects.get().revoked_at is not None


# --- review ----------------------------------------------------------------------------------------------------


def test_a_long_review_has_pages(world, browse, monkeypatch):
    monkeypatch.setattr(access_review, "PAGE", 2)
    browser = browse(world.acme.owner)

    first, second = (browser.get(f"{PEOPLE}/review{query}").content.decode() for query in ("", "?from=2"))
    beyond = browser.get(f"{PEOPLE}/review?from=9999").content.decode()

    lines = [set(re.findall(r'name="way" value="([^"]+)"', page)) for page in (first, second, beyond)]
    assert (len(lines[0]), len(lines[0] & lines[1]), lines[2]) == (2, 0, lines[0])
    assert 'href="?from=2"' in first


def test_the_review_counts_every_key_and_puts_what_is_stale_first(world, browse):
    key, now = world.acme.key, timezone.now()
    EndpointKey.objects.bulk_create(
        EndpointKey(
            tenant=key.tenant, endpoint=key.endpoint, public_id=f"k{n}", digest=f"{n:064x}", name=f"n-{n:03d}",
            created_at=now - timedelta(days=100 if n == 599 else 1),
        )
        for n in range(600)
    )  # fmt: skip

    first = browse(world.acme.owner).get(f"{PEOPLE}/review")

    assert "1-60 of 604" in text(first)
    assert text(first).index("n-599 Key unused") < text(first).index("n-000")


def test_the_review_lists_every_way_in_and_writes_down_what_is_kept(world, browse):
    browser = browse(world.acme.owner)
    Membership.objects.filter(person=world.acme.viewer).update(created_at=timezone.now() - timedelta(days=200))
    url = f"{PEOPLE}/review"

    stale = text(browser.get(f"{url}?show=stale"))
    viewer = membership(world.acme.viewer)
    kept = browser.post(f"{url}/keep", {"way": [f"member:{viewer.pk}", f"key:{world.acme.key.pk}"]}, follow=True)
    after = browser.get(f"{url}?format=json").json()

    assert "Viewer Person unused" in stale
    assert "2 ways in are kept; that is written down." in text(kept)
    assert sorted(one["kind"] for one in after) == ["Key", "Person", "Person", "Person"]
    assert sum(one["looked_at"] is not None for one in after) == 2
    assert Event.objects.filter(kind="access.reviewed", person_id=world.acme.owner.pk).count() == 2
    assert "Viewer Person unused" not in text(browser.get(f"{url}?show=stale"))


def test_ways_into_another_tenant_are_not_kept_here(world, browse):
    foreign = membership(world.foreign.member)

    answer = browse(world.acme.owner).post(f"{PEOPLE}/review/keep", {"way": [f"member:{foreign.pk}"]})

    assert answer.status_code == 400
    assert not Event.objects.filter(kind="access.reviewed").exists()
