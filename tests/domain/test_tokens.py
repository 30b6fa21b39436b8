"""Tokens and log-in: shown once, resolved to roles of now, and every wrong one looks alike."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth import authenticate
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from tenants import login, tokens
from tenants.actor import Kind
from tenants.errors import Conflict, Forbidden, InvalidSpec, NotVisible, RateLimited, Unauthenticated
from tenants.models import ApiToken, Event, Membership, Person
from tenants.operations import people, service_accounts
from tenants.states import PlatformRole, Role
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

SECRET = "correct horse battery staple"


def issued(who: Person, now, **values):
    return people.issue_token(name="laptop", actor=factories.actor(who), now=now, **values)


def resolve(plain: str, now):
    return tokens.resolve(f"Bearer {plain}", now=now)


def test_a_token_stands_for_its_person_with_the_roles_of_now(now):
    tenant = factories.tenant()
    who = factories.member(tenant, Role.MEMBER)
    made = issued(who, now)
    Membership.objects.update(role=int(Role.OWNER))

    actor = resolve(made.plain, now)

    assert (actor.kind, actor.person_id, actor.token_id) == (Kind.PERSON, who.pk, made.row.pk)
    assert actor.tenant_roles == {tenant.pk: Role.OWNER}


def test_a_service_accounts_token_is_narrowed_to_its_tenant(now):
    tenant = factories.tenant()
    owner = factories.member(tenant, Role.OWNER)
    account = service_accounts.create(tenant=tenant, name="ci", role=Role.MEMBER, actor=factories.actor(owner), now=now)
    made = service_accounts.issue_token(account=account, name="ci", actor=factories.actor(owner), now=now)

    actor = resolve(made.plain, now)

    assert (actor.kind, actor.id, actor.person_id, actor.only_tenant) == (
        Kind.SERVICE_ACCOUNT, account.pk, owner.pk, tenant.pk,
    )  # fmt: skip
    assert actor.tenant_roles == {tenant.pk: Role.MEMBER}


def test_neither_plain_text_nor_digest_is_in_events_or_reprs(now):
    made = issued(factories.person(), now)

    events = str(list(Event.objects.values()))

    assert made.plain not in events
    assert made.plain.split("_")[3] not in repr(made)
    assert bytes(ApiToken.objects.get().digest) != made.plain.encode()


def _wrong_secret(plain: str) -> str:
    from tenants import credentials

    env, public_id = plain.split("_")[1:3]
    body = f"tnt_{env}_{public_id}_{'0' * 32}"
    return body + credentials._crc(body)


@pytest.mark.parametrize(
    "spoil",
    ["unknown", "wrong-secret", "malformed", "expired", "revoked", "left", "suspended", "scheme"],
)
def test_every_wrong_token_looks_alike(spoil, now):
    who = factories.person()
    made = issued(who, now, expires_at=now + timedelta(days=1))
    header, at = f"Bearer {made.plain}", now
    if spoil == "unknown":
        ApiToken.objects.all().delete()
    elif spoil == "wrong-secret":
        header = f"Bearer {_wrong_secret(made.plain)}"
    elif spoil == "malformed":
        header = f"Bearer {made.plain[:-1]}"
    elif spoil == "expired":
        at = now + timedelta(days=1)
    elif spoil == "revoked":
        people.revoke_token(token=made.row, actor=factories.actor(who), now=now)
    elif spoil == "left":
        Person.objects.update(is_active=False, left_at=now)
    elif spoil == "suspended":
        Person.objects.update(is_active=False)
    else:
        header = f"Basic {made.plain}"

    with pytest.raises(Unauthenticated) as refusal:
        tokens.resolve(header, now=at)

    assert (refusal.value.detail, refusal.value.data) == (Unauthenticated.title, {})


@pytest.mark.parametrize("spoil", ["disabled", "expired", "owner-suspended"])
def test_a_service_account_that_ended_opens_nothing(spoil, now):
    tenant = factories.tenant()
    owner = factories.member(tenant, Role.OWNER)
    account = factories.service_account(tenant, owner=owner)
    made = service_accounts.issue_token(account=account, name="ci", actor=factories.actor(owner), now=now)
    assert resolve(made.plain, now).id == account.pk
    if spoil == "disabled":
        service_accounts.disable(account=account, actor=factories.actor(owner), now=now)
    elif spoil == "expired":
        type(account).objects.update(expires_at=now)
    else:
        Person.objects.update(is_active=False)

    with pytest.raises(Unauthenticated):
        resolve(made.plain, now)


def test_last_use_moves_at_most_once_a_minute(now):
    made = issued(factories.person(), now)
    seen = []

    for seconds in (0, 30, 59, 60, 61):
        resolve(made.plain, now + timedelta(seconds=seconds))
        seen.append((ApiToken.objects.get().last_used_at - now).total_seconds())

    assert seen == [0, 0, 0, 60, 60]


def test_a_read_only_token_issues_nothing(now):
    made = issued(factories.person(), now, read_only=True)

    with pytest.raises(Forbidden):
        people.issue_token(name="more", actor=resolve(made.plain, now), now=now)

    assert ApiToken.objects.count() == 1


def test_a_narrowed_token_makes_no_wider_one(now):
    tenant, other = factories.tenant(), factories.tenant()
    who = factories.member(tenant)
    factories.member(other, who=who)
    narrow = resolve(issued(who, now, tenant=tenant).plain, now)

    with pytest.raises(Forbidden):
        people.issue_token(name="wide", actor=narrow, now=now)
    with pytest.raises(Forbidden):
        people.issue_token(name="other", actor=narrow, tenant=other, now=now)

    assert people.issue_token(name="same", actor=narrow, tenant=tenant, now=now).row.tenant == tenant


def test_a_service_account_issues_no_tokens(now):
    tenant = factories.tenant()
    owner = factories.member(tenant, Role.OWNER)
    account = factories.service_account(tenant, owner=owner)
    made = service_accounts.issue_token(account=account, name="ci", actor=factories.actor(owner), now=now)

    with pytest.raises(Forbidden):
        people.issue_token(name="more", actor=resolve(made.plain, now), now=now)


def test_another_persons_token_is_not_visible(now):
    made = issued(factories.person(), now)

    with pytest.raises(NotVisible):
        people.revoke_token(token=made.row, actor=factories.actor(factories.person()), now=now)

    assert ApiToken.objects.get().revoked_at is None


def test_an_end_in_the_past_is_refused(now):
    with pytest.raises(InvalidSpec) as refusal:
        issued(factories.person(), now, expires_at=now)

    assert refusal.value.field == "expires_at"


def test_there_is_an_end_to_live_tokens(now, monkeypatch):
    monkeypatch.setattr(tokens, "MOST_TOKENS", 2)
    who = factories.person()
    issued(who, now)
    gone = issued(who, now)
    with pytest.raises(Conflict):
        issued(who, now)

    people.revoke_token(token=gone.row, actor=factories.actor(who), now=now)

    assert issued(who, now).row.revoked_at is None


def test_a_pasted_token_is_found_in_a_text(now):
    made = issued(factories.person(), now)

    assert tokens.of_text(f"export TOKEN={made.plain}; curl …") == made.row.public_id
    assert tokens.of_text(f"export TOKEN={made.plain[:-1]}") is None


# --- log-in -----------------------------------------------------------------------------------------


@pytest.fixture
def quick_hash(settings, monkeypatch):
    """One round of PBKDF2 instead of Argon2: what is tested here is who gets in, not how slow it is."""
    monkeypatch.setattr(PBKDF2PasswordHasher, "iterations", 1)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    login._hash_of_nobody.cache_clear()
    yield
    login._hash_of_nobody.cache_clear()


def test_a_password_gives_a_token_that_works(now, quick_hash):
    who = factories.person(password=SECRET, platform=(PlatformRole.OPERATOR,))

    made = login.log_in(who.email.upper(), SECRET, address="10.0.0.1", now=now)

    actor = resolve(made.plain, now)
    assert (actor.person_id, actor.platform_roles) == (who.pk, {PlatformRole.OPERATOR})
    assert made.row.expires_at == now + login.TOKEN_LASTS


@pytest.mark.parametrize("spoil", ["password", "email", "suspended", "no-password"])
def test_every_wrong_log_in_looks_alike_and_hashes_once(spoil, now, quick_hash, monkeypatch):
    who = factories.person(password="" if spoil == "no-password" else SECRET)
    if spoil == "suspended":
        Person.objects.update(is_active=False)
    hashed = []
    plain = login.check_password
    monkeypatch.setattr(login, "check_password", lambda *a: hashed.append(a) or plain(*a))

    with pytest.raises(Unauthenticated) as refusal:
        login.log_in(
            "nobody@example.org" if spoil == "email" else who.email,
            "wrong" if spoil == "password" else SECRET,
            address="10.0.0.1",
            now=now,
        )

    assert refusal.value.detail == "E-mail or password is wrong."
    assert len(hashed) == 1
    assert ApiToken.objects.count() == 0


def test_too_many_attempts_from_one_address_have_to_wait(now, quick_hash):
    who = factories.person(password=SECRET)
    for _ in range(login.MOST_PER_ADDRESS):
        with pytest.raises(Unauthenticated):
            login.log_in(who.email, "wrong", address="10.0.0.1", now=now)

    with pytest.raises(RateLimited) as refusal:
        login.log_in(who.email, SECRET, address="10.0.0.1", now=now)

    assert refusal.value.retry_after_s == 900
    assert login.log_in(who.email, SECRET, address="10.0.0.2", now=now).row.person_id == who.pk
    assert login.log_in(who.email, SECRET, address="10.0.0.1", now=now + login.WINDOW).row.person_id == who.pk


def test_attempts_for_unknown_people_are_limited_too(now, quick_hash, monkeypatch):
    monkeypatch.setattr(login, "MOST_PER_ADDRESS", 1)
    with pytest.raises(Unauthenticated):
        login.log_in("nobody@example.org", "x", address="10.0.0.1", now=now)

    with pytest.raises(RateLimited):
        login.log_in("nobody@example.org", "x", address="10.0.0.1", now=now)


def test_a_log_in_that_works_clears_the_counter(now, quick_hash, monkeypatch):
    monkeypatch.setattr(login, "MOST_PER_ADDRESS", 1)
    who = factories.person(password=SECRET)

    for _ in range(3):
        login.log_in(who.email, SECRET, address="10.0.0.1", now=now)

    assert ApiToken.objects.count() == 3


def test_sessions_know_a_person_only_while_he_is_active(now, quick_hash):
    who = factories.person(password=SECRET, platform=(PlatformRole.AUDITOR,))
    backend = login.PersonBackend()
    assert authenticate(None, username=who.email, password=SECRET) == who
    assert authenticate(None, username=who.email, password="wrong") is None
    assert backend.get_user(who.pk).is_staff is True

    Person.objects.update(is_active=False)

    assert backend.get_user(who.pk) is None
