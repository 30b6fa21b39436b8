"""Passkeys in a real browser, with the browser's own virtual authenticator; pages of accounts by axe."""

from __future__ import annotations

import pytest

from tests import factories
from tests.portal.browser.conftest import Watch, serious

SECRET = "correct horse battery staple"


@pytest.fixture
def by_name(site):
    """Browsers allow passkeys for host names only."""
    return site.replace("127.0.0.1", "localhost")


@pytest.fixture
def browser(db, by_name, chromium):
    """A page with an authenticator that is always present and always knows its user."""
    context = chromium.new_context(base_url=by_name)
    page = context.new_page()
    session = context.new_cdp_session(page)
    session.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
        "isUserVerified": True, "automaticPresenceSimulation": True,
    }  # fmt: skip
    session.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    watch = Watch(by_name.removeprefix("http://"))
    watch.of(page)
    yield page
    context.close()
    assert watch.faults() == []


def log_in(page, person):
    page.goto("/accounts/login/")
    page.fill("#id_login", person.email)
    page.fill("#id_password", SECRET)
    page.click("button.is-primary")
    page.wait_for_url(lambda url: "/accounts/login" not in url)


def test_a_passkey_is_added_and_logs_in_alone(browser):
    person = factories.person(password=SECRET)
    log_in(browser, person)
    browser.goto("/accounts/2fa/webauthn/add/")
    browser.fill("#id_password", SECRET)
    browser.click("button.is-primary")
    browser.check("#id_passwordless")
    browser.click("#mfa_webauthn_add")
    browser.wait_for_url("**/accounts/2fa/recovery-codes/**")

    browser.context.clear_cookies()
    browser.goto("/accounts/login/")
    browser.click("#passkey_login")
    browser.wait_for_url(lambda url: "/accounts/login" not in url)
    browser.goto("/accounts/2fa/webauthn/")

    assert "logs in alone" in browser.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path", ["/accounts/login/", "/accounts/password/reset/", "/accounts/link/", "/accounts/signup/"]
)
def test_pages_for_strangers_have_no_serious_fault(visit, watch, path, scheme):
    watch.expected = ["404", "410"]
    page = visit(path, scheme=scheme)

    assert serious(page) == []


@pytest.mark.parametrize("path", ["/accounts/2fa/", "/accounts/sessions/", "/accounts/password/change/"])
def test_pages_of_an_account_have_no_serious_fault(visit, path):
    page = visit(path, factories.person(password=SECRET))

    assert serious(page) == []
