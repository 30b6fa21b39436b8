"""Log-in, log-out, passwords, second factors and sessions, in a browser whose connection is cp_app without an actor."""

from __future__ import annotations

import re
import time

import pytest
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from django.conf import settings as django_settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.contrib.sessions.models import Session
from django.core import mail as outbox
from django.db import connection
from django.test import Client

from frontend.accounts import mail
from tenants import login, vault
from tenants.errors import Forbidden
from tenants.models import Event, Person
from tenants.operations import people
from tenants.states import PlatformRole
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")

SECRET = "correct horse battery staple"
OTHER = "a new and better secret"


@pytest.fixture(autouse=True)
def web(settings, monkeypatch, db):
    """Cheap hashes, mail kept in memory, and the web role: outside our transactions nothing shows to it."""
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


def browse():
    """Return a browser: it asks for pages, not for JSON."""
    return Client(headers={"accept": "text/html"})


def somebody(**values):
    as_worker()
    person = factories.person(password=SECRET, **values)
    as_web()
    return person


def log_in(browser, person, secret=SECRET, **more):
    return browser.post("/accounts/login/", {"login": person.email, "password": secret, **more})


def logged_in(person):
    browser = browse()
    answer = log_in(browser, person)
    assert (answer.status_code, answer["Location"]) == (302, "/")
    return browser


def who(browser):
    """Return the person of a browser's session, None without one."""
    key = browser.session.get("_auth_user_id") if "sessionid" in browser.cookies else None
    return key and login.PersonBackend().get_user(key)


def events(person=None):
    as_worker()
    rows = Event.objects.filter(kind__startswith="person.").order_by("seq")
    found = [row.kind for row in rows if person is None or row.object_id == person.pk]
    as_web()
    return found


def words(answer):
    return answer.content.decode()


def letters():
    mail.settle()
    return outbox.outbox


def test_a_person_logs_in_by_e_mail_and_password_and_out_again():
    person = somebody()
    browser = logged_in(person)

    assert who(browser) == person
    assert browser.post("/accounts/logout/").status_code == 302
    assert who(browser) is None
    assert events(person) == ["person.logged-in", "person.logged-out"]


@pytest.mark.parametrize("page", ["login/", "password/reset/", "signup/", "link/", "password/reset/done/"])
def test_pages_for_strangers_are_ours_and_bear_no_inline_script_or_style(page):
    as_web()
    answer = browse().get(f"/accounts/{page}")

    text = words(answer)
    assert answer.status_code in {200, 404, 410}
    assert "entrance-card" in text
    assert re.findall(r"<script(?![^>]*\b(?:src=|type=\"application/json\"))", text) == []
    assert re.findall(r"\sstyle=|\son[a-z]+=|<style", text) == []


def test_an_unknown_e_mail_a_wrong_password_and_a_suspended_account_get_the_same_answer():
    person, suspended = somebody(), somebody()
    as_worker()
    Person.objects.filter(pk=suspended.pk).update(is_active=False)
    as_web()

    answers = [
        browse().post("/accounts/login/", {"login": email, "password": secret})
        for email, secret in ((person.email, "wrong"), ("nobody@example.org", SECRET), (suspended.email, SECRET))
    ]

    shown = {re.sub(r'value="[^"]*"|hx-headers=\S+ \S+', "", words(answer)) for answer in answers}
    assert {answer.status_code for answer in answers} == {200}
    assert len(shown) == 1
    assert events() == ["person.login-failed", "person.login-failed"]


def test_guessing_ends_after_five_wrong_passwords_even_for_the_right_one():
    person = somebody()
    browser = browse()

    for _ in range(5):
        assert log_in(browser, person, "wrong").status_code == 200
    answer = log_in(browser, person)

    assert answer.status_code == 200
    assert "Too many" in words(answer)
    assert who(browser) is None


def test_the_session_of_before_the_log_in_is_not_the_session_after_it():
    person = somebody()
    browser = browse()
    planted = browser.session
    planted["planted"] = 1
    planted.save()
    browser.cookies["sessionid"] = planted.session_key

    log_in(browser, person)

    assert browser.cookies["sessionid"].value != planted.session_key
    assert not Session.objects.filter(session_key=planted.session_key).exists()


@pytest.mark.parametrize(
    "next_page",
    ["https://evil.example/", "//evil.example/", "https:///evil.example", "javascript:alert(1)", "\\\\evil"],
)
def test_a_log_in_sends_nobody_to_another_host(next_page):
    person = somebody()

    answer = log_in(browse(), person, next=next_page)

    assert (answer.status_code, answer["Location"]) == (302, "/")


def test_a_log_in_goes_on_to_the_page_that_was_wanted():
    answer = log_in(browse(), somebody(), next="/t/acme/endpoints")

    assert answer["Location"] == "/t/acme/endpoints"


def test_a_session_ends_with_suspension_and_with_leaving():
    suspended, leaver, operator = somebody(), somebody(), somebody(platform=(PlatformRole.OPERATOR,))
    browsers = {person: logged_in(person) for person in (suspended, leaver)}
    as_worker()
    actor = factories.actor(operator)
    people.suspend(person=suspended, reason="lost laptop", actor=actor, now=NOW)
    from tenants.operations import leavers

    leavers.leave(person=leaver, actor=actor, now=NOW)
    as_web()

    for browser in browsers.values():
        assert browser.get("/accounts/sessions/")["Location"].startswith("/accounts/login/")


# --- passwords ------------------------------------------------------------------------------------------


def reset_link():
    letter = letters()[-1]
    found = re.search(r"(http\S+)(/accounts/password/reset/key/\S+)", letter.body)
    assert found
    return found[1], found[2]


def test_a_forgotten_password_is_chosen_anew_by_a_link_that_works_once():
    person = somebody()
    other_session = logged_in(person)
    browser = browse()

    assert browser.post("/accounts/password/reset/", {"email": person.email.upper()}).status_code == 302
    host, path = reset_link()
    page = browser.get(path, follow=True)
    set_at = page.redirect_chain[-1][0]
    done = browser.post(set_at, {"password1": OTHER, "password2": OTHER})
    again = browse().get(path, follow=True)

    assert host == django_settings.TENANTRY_PUBLIC_URL
    assert "entrance-card" in words(page)
    assert done.status_code == 302
    assert "This link opens nothing" in words(again)
    assert who(logged_in_with(person, OTHER)) == person
    assert other_session.get("/accounts/sessions/").status_code == 302
    assert "person.password-set" in events(person)
    assert OTHER not in str(list_of_data())


def list_of_data():
    as_worker()
    found = list(Event.objects.values_list("data", flat=True))
    as_web()
    return found


def logged_in_with(person, secret):
    browser = browse()
    log_in(browser, person, secret)
    return browser


def test_a_reset_for_nobody_looks_the_same_and_writes_to_nobody():
    person = somebody()
    known = browse().post("/accounts/password/reset/", {"email": person.email})
    unknown = browse().post("/accounts/password/reset/", {"email": "nobody@example.org"})

    assert (known.status_code, known["Location"]) == (unknown.status_code, unknown["Location"])
    assert [letter.to for letter in letters()] == [[person.email]]


def test_a_reset_link_names_our_host_whatever_the_request_says():
    person = somebody()

    browse().post("/accounts/password/reset/", {"email": person.email}, headers={"host": "localhost"})
    refused = browse().post("/accounts/password/reset/", {"email": person.email}, headers={"host": "evil.example"})

    assert refused.status_code == 400
    assert reset_link()[0] == django_settings.TENANTRY_PUBLIC_URL
    assert len(letters()) == 1


def test_a_reset_link_opens_nothing_after_suspension_or_an_hour(settings):
    person = somebody()
    browse().post("/accounts/password/reset/", {"email": person.email})
    path = reset_link()[1]

    settings.PASSWORD_RESET_TIMEOUT = -1
    late = words(browse().get(path, follow=True))
    settings.PASSWORD_RESET_TIMEOUT = 3600
    browser = browse()
    page = browser.get(path, follow=True)
    as_worker()
    Person.objects.filter(pk=person.pk).update(is_active=False)
    as_web()
    suspended = browser.post(page.redirect_chain[-1][0], {"password1": OTHER, "password2": OTHER})

    assert "This link opens nothing" in late
    assert "This link opens nothing" in words(suspended)


def test_a_password_is_changed_with_the_old_one_and_other_sessions_end():
    person = somebody()
    browser, elsewhere = logged_in(person), logged_in(person)

    wrong = browser.post("/accounts/password/change/", {"oldpassword": "x", "password1": OTHER, "password2": OTHER})
    weak = browser.post(
        "/accounts/password/change/", {"oldpassword": SECRET, "password1": "short", "password2": "short"}
    )
    right = browser.post("/accounts/password/change/", {"oldpassword": SECRET, "password1": OTHER, "password2": OTHER})

    assert (wrong.status_code, weak.status_code, right.status_code) == (200, 200, 302)
    assert browser.get("/accounts/sessions/").status_code == 200
    assert elsewhere.get("/accounts/sessions/").status_code == 302
    assert events(person).count("person.password-set") == 1


# --- second factors ---------------------------------------------------------------------------------------


def code_for(secret):
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30))


def set_up_totp(browser, person):
    """Set the app up, through the re-authentication that it asks for; return its secret and the recovery codes."""
    page = browser.get("/accounts/2fa/totp/activate/")
    if page.status_code == 302:
        assert page["Location"].startswith("/accounts/reauthenticate/")
        browser.post(page["Location"], {"password": SECRET})
        page = browser.get("/accounts/2fa/totp/activate/")
    secret = re.search(r'id="authenticator_secret">([A-Z2-7]+)<', words(page))[1]
    done = browser.post("/accounts/2fa/totp/activate/", {"code": code_for(secret)})
    assert done.status_code == 302
    codes = re.search(r'id="recovery_codes">([^<]+)<', words(browser.get("/accounts/2fa/recovery-codes/")))[1].split()
    return secret, codes


def forget_used_codes():
    """Let a code be used again within its thirty seconds: two log-ins of a test are closer than that."""
    from django.core.cache import cache

    cache.clear()


def test_an_authenticator_app_is_asked_for_at_the_next_log_in():
    person = somebody()
    secret, codes = set_up_totp(logged_in(person), person)
    forget_used_codes()
    browser = browse()

    half = log_in(browser, person)
    not_yet = who(browser)
    wrong = browser.post("/accounts/2fa/authenticate/", {"code": "000000"})
    right = browser.post("/accounts/2fa/authenticate/", {"code": code_for(secret)})

    assert half["Location"] == "/accounts/2fa/authenticate/"
    assert not_yet is None
    assert (wrong.status_code, right.status_code) == (200, 302)
    assert who(browser) == person
    assert len(codes) == 10
    found = events(person)
    assert [kind for kind in found if "factor" in kind] == ["person.factor-added", "person.factor-failed"]


def test_a_recovery_code_opens_once():
    person = somebody()
    _, codes = set_up_totp(logged_in(person), person)
    first, second = browse(), browse()

    for browser in (first, second):
        log_in(browser, person)
        browser.post("/accounts/2fa/authenticate/", {"code": codes[0]})

    assert (who(first), who(second)) == (person, None)
    assert "person.code-used" in events(person)


def test_secrets_of_factors_are_sealed_in_the_database():
    person = somebody()
    secret, _ = set_up_totp(logged_in(person), person)
    as_worker()
    with connection.cursor() as cursor:
        cursor.execute("SELECT data::text FROM mfa_authenticator WHERE type = 'totp'")
        stored = cursor.fetchone()[0]

    assert secret not in stored
    assert vault._VERSION.hex() in stored


def test_a_password_alone_gives_no_token_once_there_is_a_second_factor():
    person = somebody()
    set_up_totp(logged_in(person), person)

    with pytest.raises(Forbidden) as refused:
        login.log_in(person.email, SECRET, address="127.0.0.1", now=NOW)

    assert refused.value.specific_code == "second-factor"


def test_who_must_have_a_second_factor_gets_no_token_by_a_password_alone(settings):
    settings.TENANTRY_SECOND_FACTOR = "operators"
    operator, member = somebody(platform=(PlatformRole.OPERATOR,)), somebody()

    with pytest.raises(Forbidden, match="needs a second factor") as refused:
        login.log_in(operator.email, SECRET, address="127.0.0.1", now=NOW)

    assert refused.value.specific_code == "second-factor"
    assert login.log_in(member.email, SECRET, address="127.0.0.1", now=NOW).row.person_id == member.pk


def test_somebody_suspended_between_password_and_code_does_not_come_in():
    person = somebody()
    secret, _ = set_up_totp(logged_in(person), person)
    forget_used_codes()
    browser = browse()
    log_in(browser, person)
    as_worker()
    Person.objects.filter(pk=person.pk).update(is_active=False)
    as_web()

    browser.post("/accounts/2fa/authenticate/", {"code": code_for(secret)})

    assert who(browser) is None


def test_factors_of_others_show_to_nobody_in_the_database():
    person, other = somebody(), somebody()
    set_up_totp(logged_in(person), person)

    with acting(factories_actor(other)), connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM mfa_authenticator")
        seen = cursor.fetchone()[0]

    assert seen == 0


def factories_actor(person):
    as_worker()
    actor = factories.actor(person)
    as_web()
    return actor


def test_who_must_have_a_second_factor_is_led_to_it_before_anything_else(settings):
    settings.TENANTRY_SECOND_FACTOR = "operators"
    operator, member = somebody(platform=(PlatformRole.OPERATOR,)), somebody()
    browser = logged_in(operator)

    led = browser.get("/admin/")
    refused = browser.get("/api/v1/who", headers={"accept": "application/json"})
    set_up_totp(browser, operator)
    free = browser.get("/admin/")

    assert (led.status_code, led["Location"]) == (302, "/accounts/2fa/")
    assert (refused.status_code, refused.json()["code"]) == (403, "second-factor")
    assert free.status_code == 200
    assert logged_in(member).get("/api/v1/who", headers={"accept": "application/json"}).status_code == 200


def test_the_console_s_own_log_in_is_ours():
    as_web()
    answer = browse().get("/admin/login/?next=/admin/tenants/")

    assert answer["Location"] == "/accounts/login/?next=%2Fadmin%2Ftenants%2F"


# --- sessions ---------------------------------------------------------------------------------------------


def test_a_person_sees_his_sessions_and_logs_out_the_others():
    person, other = somebody(), somebody()
    here, there, foreign = logged_in(person), logged_in(person), logged_in(other)

    page = words(here.get("/accounts/sessions/"))
    done = here.post("/accounts/sessions/")

    assert page.count("127.0.0.1") == 2
    assert done.status_code == 302
    assert [b.get("/accounts/sessions/").status_code for b in (here, there, foreign)] == [200, 302, 200]
    assert events(person)[-1] == "person.sessions-ended"


@pytest.mark.parametrize(
    "page", ["2fa/", "2fa/webauthn/", "2fa/webauthn/add/", "sessions/", "password/change/", "3rdparty/", "logout/"]
)
def test_pages_of_an_account_are_ours(page):
    browser = logged_in(somebody())

    answer = browser.get(f"/accounts/{page}", follow=True)

    text = words(answer)
    assert answer.status_code == 200
    assert "entrance-card" in text
    assert re.findall(r"<script(?![^>]*\b(?:src=|type=\"application/json\"))", text) == []
    assert re.findall(r"\sstyle=|\son[a-z]+=|<style", text) == []
