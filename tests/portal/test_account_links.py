"""Invitations, the first set-up and recovery by link: what they open, and everything they must not open."""

from __future__ import annotations

import io
import re
from datetime import timedelta

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core import mail as outbox
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from frontend.accounts import links, mail
from tenants import login
from tenants.actor import SYSTEM
from tenants.errors import Conflict, Forbidden
from tenants.models import AccountLink, ApiToken, Event, Membership, Person, PlatformMembership, Tenant
from tenants.operations import accounts, people
from tenants.states import PlatformRole, Role, TenantStatus
from tenants.transactions import acting
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

SECRET = "correct horse battery staple"
OTHER = "a new and better secret"
PAGE = "/accounts/link/"


@pytest.fixture(autouse=True)
def web(settings, monkeypatch, db):
    monkeypatch.setattr(PBKDF2PasswordHasher, "iterations", 1)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    login._hash_of_nobody.cache_clear()
    yield
    as_worker()
    login._hash_of_nobody.cache_clear()


def as_web():
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE cp_app; SET app.actor = ''")


def as_worker():
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE cp_worker; SET app.actor = 'system'")


@pytest.fixture
def team():
    tenant = factories.tenant(name="acme", display_name="Acme Research")
    return tenant, factories.member(tenant, Role.OWNER)


@pytest.fixture
def invite(team):
    tenant, owner = team

    def make(email="new@example.org", role=Role.MEMBER):
        as_worker()
        made = accounts.invite(tenant=tenant, email=email, role=role, actor=factories.actor(owner), now=timezone.now())
        as_web()
        return made

    return make


def browse():
    return Client(headers={"accept": "text/html"})


def opened(secret, browser=None):
    """Follow a link as from a mail; return browser and page."""
    browser = browser or browse()
    page = browser.get(f"{PAGE}{secret}/", follow=True)
    return browser, page


def accept(secret, browser=None, **values):
    browser, _ = opened(secret, browser)
    return browser, browser.post(PAGE, {"display_name": "Nina New", "password": SECRET, **values})


def words(answer):
    return answer.content.decode()


def who(browser):
    key = browser.session.get("_auth_user_id") if "sessionid" in browser.cookies else None
    return key and login.PersonBackend().get_user(key)


def rows(model, **conditions):
    as_worker()
    found = list(model.objects.filter(**conditions))
    as_web()
    return found


def change(model, key, **values):
    as_worker()
    model.objects.filter(pk=key).update(**values)
    as_web()


def log_in(person):
    browser = browse()
    browser.post("/accounts/login/", {"login": person.email, "password": SECRET})
    assert who(browser) == person
    return browser


def proven(person):
    """Log in and prove once more who it is, as recovering somebody asks."""
    browser = log_in(person)
    browser.post("/accounts/reauthenticate/", {"password": SECRET})
    return browser


# --- invitation -------------------------------------------------------------------------------------------


def test_an_invitation_makes_account_and_membership_and_logs_in(invite, team):
    made = invite("nina@example.org")
    browser, page = opened(made.secret)

    done = browser.post(PAGE, {"display_name": "Nina New", "password": SECRET})

    assert page.redirect_chain[-1][0] == PAGE  # the secret is out of the address
    assert "Acme Research" in words(page)
    assert (done.status_code, done["Location"]) == (302, "/")
    person = who(browser)
    assert (person.email, person.display_name) == ("nina@example.org", "Nina New")
    assert [(m.tenant_id, m.role) for m in rows(Membership, person=person)] == [(team[0].pk, int(Role.MEMBER))]
    kinds = [e.kind for e in rows(Event)]
    assert [k for k in kinds if k != "person.logged-in"] == [
        "invitation.made", "person.created", "invitation.accepted", "member.added",
    ]  # fmt: skip
    assert "nina" not in str([e.data for e in rows(Event)]).lower()


def test_the_secret_lies_nowhere(invite, superuser):
    made = invite()
    opened(made.secret)

    names = superuser.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    ).fetchall()
    holding = [
        name
        for (name,) in names
        if superuser.execute(f'SELECT 1 FROM "{name}" AS t WHERE t::text LIKE %s', [f"%{made.secret}%"]).fetchone()
    ]

    assert len(names) > 50
    assert holding == []
    assert made.secret not in repr(made)


def test_an_invitation_works_once(invite):
    made = invite()
    accept(made.secret)

    _, again = opened(made.secret)
    browser, _ = opened(made.secret)
    posted = browser.post(PAGE, {"display_name": "Eve", "password": SECRET})

    assert (again.status_code, posted.status_code) == (410, 410)
    assert "used already" in words(again)
    assert len(rows(Person, email="new@example.org")) == 1


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("expired", "time is over"),
        ("withdrawn", "withdrawn"),
        ("inviter", "is no longer so"),
        ("role", "is no longer so"),
        ("tenant", "is no longer so"),
    ],
)
def test_an_invitation_that_does_not_hold_any_more_opens_nothing_and_says_why(invite, team, broken, why):
    made, (tenant, owner) = invite(), team
    browser, _ = opened(made.secret)
    match broken:
        case "expired":
            change(AccountLink, made.row.pk, expires_at=timezone.now() - timedelta(seconds=1))
        case "withdrawn":
            as_worker()
            accounts.withdraw(link=made.row, actor=factories.actor(owner), now=timezone.now())
            as_web()
        case "inviter":
            change(Person, owner.pk, is_active=False)
        case "role":
            change(Membership, rows(Membership, person=owner)[0].pk, role=1)
        case "tenant":
            change(Tenant, tenant.pk, status=TenantStatus.SUSPENDED.value)

    page = browser.get(PAGE)
    posted = browser.post(PAGE, {"display_name": "Eve", "password": SECRET})

    assert (page.status_code, posted.status_code) == (410, 410)
    assert why in words(page)
    assert rows(Person, email="new@example.org") == []


def test_a_guessed_or_mutilated_link_opens_nothing(invite):
    made = invite()

    answers = [opened(secret)[1] for secret in ("x", made.secret[:-1], made.secret.swapcase())]
    nothing = browse().get(PAGE)

    assert {a.status_code for a in (*answers, nothing)} == {410}


def test_a_cookie_that_was_tampered_with_opens_nothing(invite):
    made = invite()
    browser = browse()
    browser.cookies[links.COOKIE] = made.secret

    assert browser.get(PAGE).status_code == 410


def test_who_has_an_account_accepts_with_it_and_keeps_one_account(invite, team):
    person = factories.person(password=SECRET)
    made = invite(person.email.upper(), Role.OWNER)
    _, stranger = opened(made.secret)
    browser, page = opened(made.secret, log_in(person))

    forged = browse()
    opened(made.secret, forged)
    unproven = forged.post(PAGE, {"display_name": "Eve", "password": SECRET})
    done = browser.post(PAGE)

    assert "Log in with it to accept" in words(stranger)
    assert "Accept the invitation" in words(page)
    assert unproven.status_code == 200
    assert done.status_code == 302
    assert [(m.tenant_id, m.role) for m in rows(Membership, person=person)] == [(team[0].pk, int(Role.OWNER))]
    assert len(rows(Person, email__iexact=person.email)) == 1


def test_an_invitation_is_for_its_e_mail_only(invite):
    other = factories.person(password=SECRET)
    made = invite()
    browser, page = opened(made.secret, log_in(other))

    browser.post(PAGE)
    with pytest.raises(Conflict):
        accounts.join(secret=made.secret, actor=accounts.as_person(other.pk), now=timezone.now())

    assert "You are logged in with another account" in words(page)
    assert rows(Membership, person=other) == []


def test_a_weak_password_is_refused_at_its_field_and_the_link_stays_open(invite):
    made = invite()

    browser, weak = accept(made.secret, password="short")
    strong = browser.post(PAGE, {"display_name": "Nina", "password": SECRET})

    assert weak.status_code == 422
    assert "too short" in words(weak)
    assert strong.status_code == 302


def test_a_newer_invitation_of_the_same_e_mail_ends_the_older(invite):
    older, newer = invite(), invite()

    assert opened(older.secret)[1].status_code == 410
    assert opened(newer.secret)[1].status_code == 200


def test_only_owners_and_operators_invite_and_members_are_not_invited_again(team):
    tenant, owner = team
    member = factories.member(tenant)

    with pytest.raises(Forbidden):
        accounts.invite(
            tenant=tenant, email="a@example.org", role=Role.VIEWER, actor=factories.actor(member), now=timezone.now()
        )
    with pytest.raises(Conflict, match="member already"):
        accounts.invite(
            tenant=tenant, email=member.email, role=Role.VIEWER, actor=factories.actor(owner), now=timezone.now()
        )


def test_other_teams_see_no_invitation_of_this_one(invite):
    invite()
    as_worker()
    stranger = factories.actor(factories.member(factories.tenant(), Role.OWNER))
    as_web()

    with acting(stranger):
        seen = AccountLink.objects.count()

    assert seen == 0


# --- first set-up ----------------------------------------------------------------------------------------


def first_link():
    as_worker()
    out = io.StringIO()
    call_command("bootstrap", "--first-link", stdout=out)
    as_web()
    return out.getvalue()


def test_the_first_link_makes_the_first_operator_once():
    said = first_link()
    secret = re.search(r"/accounts/link/([^/]+)/", said)[1]
    browser, page = opened(secret)

    done = browser.post(PAGE, {"email": "ole@example.org", "display_name": "Ole", "password": SECRET})
    person = who(browser)

    assert "Make the first operator" in words(page)
    assert done.status_code == 302
    assert [m.role for m in rows(PlatformMembership, person=person)] == ["operator"]
    assert opened(secret)[1].status_code == 410
    assert "there is an operator already" in first_link()


def test_two_first_links_make_one_operator_and_a_later_one_ends_the_earlier():
    earlier = re.search(r"/accounts/link/([^/]+)/", first_link())[1]
    later = re.search(r"/accounts/link/([^/]+)/", first_link())[1]

    assert opened(earlier)[1].status_code == 410
    browser, _ = opened(later)
    as_worker()
    factories.person(platform=(PlatformRole.OPERATOR,))
    as_web()
    posted = browser.post(PAGE, {"email": "eve@example.org", "display_name": "Eve", "password": SECRET})

    assert posted.status_code == 410
    assert rows(Person, email="eve@example.org") == []


def test_nobody_but_the_system_makes_a_first_link():
    with pytest.raises(Forbidden):
        accounts.first_link(actor=factories.actor(factories.person()), now=timezone.now())
    assert accounts.first_link(actor=SYSTEM, now=timezone.now()) is not None


# --- recovery ---------------------------------------------------------------------------------------------


@pytest.fixture
def locked_out():
    as_worker()
    person = factories.person(password=SECRET)
    people.issue_token(name="ci", actor=factories.actor(person), now=timezone.now())
    as_web()
    return person


@pytest.fixture
def operator():
    as_worker()
    person = factories.person(password=SECRET, platform=(PlatformRole.OPERATOR,))
    as_web()
    return person


def test_an_operator_recovers_an_account_and_never_sees_a_password(locked_out, operator):
    browser, before = proven(operator), log_in(locked_out)

    page = browser.post(f"/accounts/recover/{locked_out.pk}/", {"reason": "lost phone, called back"})
    secret = re.search(r"/accounts/link/([\w-]+)/", words(page))[1]
    his, _ = opened(secret)
    done = his.post(PAGE, {"password": OTHER})

    assert done["Location"] == "/accounts/login/"
    assert before.get("/accounts/sessions/").status_code == 302
    assert [t.revoked_at is not None for t in rows(ApiToken, person=locked_out)] == [True]
    assert opened(secret)[1].status_code == 410
    events = {e.kind: e for e in rows(Event)}
    assert events["person.recovery-made"].actor == f"person:{operator.pk}"
    assert events["person.recovery-made"].data["reason"] == "lost phone, called back"
    assert events["person.recovered"].data["tokens"] == 1
    mail.settle()
    assert [letter.to for letter in outbox.outbox] == [[locked_out.email]]


def test_where_mail_reaches_people_the_link_goes_to_the_person_only(locked_out, operator, settings):
    settings.TENANTRY_MAIL_REACHES_PEOPLE = True

    page = proven(operator).post(f"/accounts/recover/{locked_out.pk}/", {"reason": "lost phone"})

    mail.settle()
    assert "/accounts/link/" not in words(page).replace('action="/accounts/link/', "")
    assert [(letter.to, "/accounts/link/" in letter.body) for letter in outbox.outbox] == [([locked_out.email], True)]


def test_lost_factors_are_forgotten_only_where_the_operator_said_so(locked_out, operator):
    for forget, left in ((False, 1), (True, 0)):
        as_worker()
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM mfa_authenticator")
            cursor.execute(
                "INSERT INTO mfa_authenticator (user_id, type, data, created_at) VALUES (%s, 'totp', '{}', now())",
                [locked_out.pk],
            )
        made = accounts.recover(
            person=locked_out, reason="lost it", forget_factors=forget, actor=factories.actor(operator),
            now=timezone.now(),
        )  # fmt: skip
        as_web()
        browser, _ = opened(made.secret)

        browser.post(PAGE, {"password": OTHER + str(left)})

        assert login.has_second_factor(locked_out) is (left == 1)


def test_a_recovery_link_opens_nothing_once_its_person_or_its_operator_is_suspended(locked_out, operator):
    for who_ends in (locked_out, operator):
        as_worker()
        made = accounts.recover(
            person=locked_out, reason="lost it", forget_factors=False, actor=factories.actor(operator),
            now=timezone.now(),
        )  # fmt: skip
        browser, _ = opened(made.secret)
        change(Person, who_ends.pk, is_active=False)

        posted = browser.post(PAGE, {"password": OTHER})

        assert posted.status_code == 410
        change(Person, who_ends.pk, is_active=True)


def test_only_operators_recover_and_nobody_himself(locked_out, operator):
    as_worker()
    approver = factories.person(password=SECRET, platform=(PlatformRole.APPROVER,))
    as_web()

    foreign = proven(approver).get(f"/accounts/recover/{locked_out.pk}/")
    unproven = log_in(operator).post(f"/accounts/recover/{locked_out.pk}/", {"reason": "lost phone"})
    stranger = browse().get(f"/accounts/recover/{locked_out.pk}/")
    as_worker()
    with pytest.raises(Forbidden):
        accounts.recover(
            person=operator, reason="me", forget_factors=True, actor=factories.actor(operator), now=timezone.now()
        )

    assert foreign.status_code == 404
    assert unproven["Location"].startswith("/accounts/reauthenticate/")
    assert stranger["Location"].startswith("/accounts/login/")
    assert rows(AccountLink) == []


def test_a_recovery_link_of_one_person_sets_nobody_else_s_password(locked_out, operator):
    as_worker()
    other = factories.person(password=SECRET)
    made = accounts.recover(
        person=locked_out, reason="lost it", forget_factors=False, actor=factories.actor(operator), now=timezone.now()
    )
    as_web()

    with pytest.raises(Conflict):
        accounts.finish_recovery(
            secret=made.secret, password=OTHER, actor=accounts.as_person(other.pk), now=timezone.now()
        )

    log_in(other)
    assert rows(AccountLink)[0].used_at is None


def test_who_is_erased_leaves_nothing_in_links_and_factors(team, operator, invite):
    made = invite("gone@example.org")
    accept(made.secret)
    person = rows(Person, email="gone@example.org")[0]
    as_worker()
    actor = factories.actor(operator)
    from tenants.operations import leavers

    leavers.leave(person=person, actor=actor, now=timezone.now())
    as_web()
    people.erase(person=person, actor=actor, now=timezone.now())

    assert [row.email for row in rows(AccountLink)] == [f"erased-{person.pk}@erased.invalid"]
    as_worker()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM usersessions_usersession WHERE user_id = %s", [person.pk])
        assert cursor.fetchone()[0] == 0
