"""Log-in by an identity provider: a small OpenID Connect provider on loopback plays it, healthy, lying and away."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.db import connection
from django.test import Client
from django.utils import timezone

from controlplane.env import Environment
from tenants import login
from tenants.models import Event, Membership, Person
from tenants.operations import accounts
from tenants.states import Role
from tests import factories

pytestmark = pytest.mark.usefixtures("db")

SECRET = "correct horse battery staple"
KEY = "only for tests, thirty-two bytes or more"
CLIENT = "tenantry"


class Provider:
    """What the provider answers: who has logged in there, and what is wrong with it."""

    def __init__(self):
        self.subject = "subject-1"
        self.claims = {"email": "nina@example.org", "email_verified": True}
        self.audience = CLIENT
        self.broken = ""
        self.nonces = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self, outer.document())

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.answer(self, {"access_token": "x", "token_type": "Bearer", "id_token": outer.token()})

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def document(self):
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "token_endpoint_auth_methods_supported": ["client_secret_post"],
        }

    def token(self):
        now = int(time.time())
        issuer = "https://evil.example" if self.broken == "issuer" else self.issuer
        claims = {"iss": issuer, "aud": self.audience, "sub": self.subject, "iat": now, "exp": now + 60, **self.claims}
        return jwt.encode(claims, KEY, algorithm="HS256")

    def answer(self, handler, body):
        data = b"<html>proxy error</html>" if self.broken == "nonsense" else json.dumps(body).encode()
        handler.send_response(502 if self.broken == "error" else 200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture(autouse=True)
def web(settings, monkeypatch, db):
    monkeypatch.setattr(PBKDF2PasswordHasher, "iterations", 1)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    settings.EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
    yield
    as_worker()


@pytest.fixture
def provider(settings):
    made = Provider()
    use(settings, made.issuer)
    yield made
    made.close()


def use(settings, issuer):
    environment = Environment(
        TENANTRY_OIDC_ISSUER=issuer, TENANTRY_OIDC_CLIENT_ID=CLIENT, TENANTRY_OIDC_CLIENT_SECRET="s"
    )
    apps = environment.identity_providers()
    settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": apps}}
    settings.TEST_OIDC_PATH = f"/accounts/oidc/{apps[0]['provider_id']}/login/"


def as_web():
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE cp_app; SET app.actor = ''")


def as_worker():
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE cp_worker; SET app.actor = 'system'")


def browse():
    as_web()
    return Client(headers={"accept": "text/html"})


def words(answer):
    return answer.content.decode()


def who(browser):
    key = browser.session.get("_auth_user_id") if "sessionid" in browser.cookies else None
    return key and login.PersonBackend().get_user(key)


def log_in(person):
    browser = browse()
    browser.post("/accounts/login/", {"login": person.email, "password": SECRET})
    assert who(browser) == person
    return browser


def proven(person):
    """Log in and prove once more who it is, as linking asks."""
    browser = log_in(person)
    browser.post("/accounts/reauthenticate/", {"password": SECRET})
    return browser


def start(browser, path, process="login"):
    """Press the button; return the page and the query that goes to the provider."""
    page = browser.post(f"{path}?process={process}")
    target = page.context["redirect_to"] if page.context and "redirect_to" in page.context else ""
    return page, {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}


def come_back(browser, path, process="login", **changes):
    """Go through the provider and come back; return the answer."""
    page, query = start(browser, path, process)
    assert page.status_code == 200, words(page)
    return browser.get(f"{path}callback/", {"code": "c", "state": query["state"], **changes})


def linked(person, provider, settings):
    answer = come_back(proven(person), settings.TEST_OIDC_PATH, "connect")
    assert answer["Location"] == "/accounts/3rdparty/"


def kinds():
    as_worker()
    found = list(Event.objects.order_by("at", "seq").values_list("kind", flat=True))
    as_web()
    return found


def test_the_way_to_the_provider_is_a_page_of_ours_with_state_and_pkce(provider, settings):
    page, query = start(browse(), settings.TEST_OIDC_PATH)

    assert page.status_code == 200
    assert "entrance-card" in words(page)
    assert (query["client_id"], query["response_type"], query["code_challenge_method"]) == (CLIENT, "code", "S256")
    assert len(query["state"]) >= 16


def test_a_link_alone_starts_nothing(provider, settings):
    page = browse().get(f"{settings.TEST_OIDC_PATH}?process=connect")

    assert page.status_code == 200
    assert "http-equiv" not in words(page)


def test_a_linked_identity_logs_in_and_an_unknown_one_does_not(provider, settings):
    person = factories.person(password=SECRET)
    linked(person, provider, settings)
    known, unknown = browse(), browse()

    let_in = come_back(known, settings.TEST_OIDC_PATH)
    provider.subject = "subject-2"
    refused = come_back(unknown, settings.TEST_OIDC_PATH)

    assert (let_in.status_code, let_in["Location"]) == (302, "/")
    assert who(known) == person
    assert refused.status_code == 403
    assert "No account is linked" in words(refused)
    assert who(unknown) is None
    assert "person.identity-linked" in kinds()


def test_nothing_is_linked_without_proving_once_more_who_asks(provider, settings):
    person = factories.person(password=SECRET)
    stolen = log_in(person)

    page = stolen.get("/accounts/3rdparty/")
    come_back(stolen, settings.TEST_OIDC_PATH, "connect")
    stranger = browse()
    refused = come_back(stranger, settings.TEST_OIDC_PATH)

    assert page["Location"].startswith("/accounts/reauthenticate/")
    assert refused.status_code == 403
    assert "person.identity-linked" not in kinds()


@pytest.mark.parametrize("verified", [True, "true", False])
def test_the_same_e_mail_links_nobody(provider, settings, verified):
    person = factories.person(password=SECRET)
    provider.claims = {"email": person.email, "email_verified": verified}
    browser = browse()

    assert come_back(browser, settings.TEST_OIDC_PATH).status_code == 403
    assert who(browser) is None


def test_an_invited_person_comes_in_without_a_password(provider, settings):
    tenant = factories.tenant()
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    made = accounts.invite(tenant=tenant, email="nina@example.org", role=Role.MEMBER, actor=owner, now=timezone.now())
    browser = browse()
    browser.get(f"/accounts/link/{made.secret}/", follow=True)
    browser.post("/accounts/link/", {"display_name": "Nina New", "identity": "1"}, follow=True)

    answer = come_back(browser, settings.TEST_OIDC_PATH)

    assert answer.status_code == 302
    person = who(browser)
    assert (person.email, person.display_name, person.has_usable_password()) == ("nina@example.org", "Nina New", False)
    as_worker()
    assert Membership.objects.filter(person=person, tenant=tenant).count() == 1
    assert Person.objects.filter(email="nina@example.org").count() == 1


def test_an_identity_that_opens_another_account_is_not_linked_twice(provider, settings):
    first, second = factories.person(password=SECRET), factories.person(password=SECRET)
    linked(first, provider, settings)
    as_worker()
    browser = proven(second)

    answer = come_back(browser, settings.TEST_OIDC_PATH, "connect")
    other = browse()
    come_back(other, settings.TEST_OIDC_PATH)

    assert answer["Location"] == "/accounts/3rdparty/"
    assert who(other) == first


def test_an_identity_of_a_suspended_person_opens_nothing(provider, settings):
    person = factories.person(password=SECRET)
    linked(person, provider, settings)
    as_worker()
    Person.objects.filter(pk=person.pk).update(is_active=False)
    browser = browse()

    come_back(browser, settings.TEST_OIDC_PATH)

    assert who(browser) is None


def test_a_forged_state_and_somebody_else_s_answer_open_nothing(provider, settings):
    person = factories.person(password=SECRET)
    linked(person, provider, settings)
    victim, attacker = browse(), browse()
    _, query = start(attacker, settings.TEST_OIDC_PATH)

    forged = come_back(victim, settings.TEST_OIDC_PATH, state="forged")
    planted = browse()
    foreign = planted.get(f"{settings.TEST_OIDC_PATH}callback/", {"code": "c", "state": query["state"]})

    assert "did not let you in" in words(forged)
    assert "did not let you in" in words(foreign)
    assert (who(victim), who(planted)) == (None, None)


@pytest.mark.parametrize("fault", ["issuer", "audience"])
def test_a_token_for_others_opens_nothing(provider, settings, fault):
    person = factories.person(password=SECRET)
    linked(person, provider, settings)
    provider.broken = fault
    provider.audience = "somebody-else" if fault == "audience" else CLIENT
    browser = browse()

    answer = come_back(browser, settings.TEST_OIDC_PATH)

    assert answer.status_code < 500
    assert who(browser) is None


@pytest.mark.parametrize("fault", ["down", "error", "nonsense"])
def test_a_provider_that_is_away_gives_a_page_with_reason_and_next_step(provider, settings, fault):
    if fault == "down":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            use(settings, f"http://127.0.0.1:{free.getsockname()[1]}")
    provider.broken = fault

    page = browse().post(f"{settings.TEST_OIDC_PATH}?process=login")

    assert page.status_code == 503
    assert "does not answer" in words(page)
    assert 'href="/accounts/login/"' in words(page)


@pytest.mark.parametrize("fault", ["error", "nonsense"])
def test_a_provider_that_fails_on_the_way_back_gives_a_page_too(provider, settings, fault):
    browser = browse()
    _, query = start(browser, settings.TEST_OIDC_PATH)
    provider.broken = fault

    page = browser.get(f"{settings.TEST_OIDC_PATH}callback/", {"code": "c", "state": query["state"]})

    assert page.status_code in {200, 401, 403, 503}
    assert "entrance-card" in words(page)
    assert who(browser) is None


def test_an_issuer_without_encryption_is_refused_at_start():
    with pytest.raises(ValueError, match="https"):
        Environment(TENANTRY_OIDC_ISSUER="http://idp.example.org")


def test_another_issuer_is_another_provider():
    ids = {
        Environment(TENANTRY_OIDC_ISSUER=issuer).identity_providers()[0]["provider_id"]
        for issuer in ("https://a.example", "https://b.example")
    }

    assert len(ids) == 2
