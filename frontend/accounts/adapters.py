"""How the log-in library meets our domain: everything it would write goes through operations, nothing signs up.

The three adapters are named in the settings. Addresses in mails are made from TENANTRY_PUBLIC_URL, never from the
Host header of whoever asked.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit
from uuid import UUID

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import get_authentication_records
from allauth.account.internal.flows.reauthentication import is_reauthentication_required
from allauth.core import context as current
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.conf import settings
from django.http import HttpRequest, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.accounts import links, mail, middleware, trail
from tenants import vault
from tenants.actor import AUTH
from tenants.errors import Conflict
from tenants.models import Person
from tenants.operations import accounts
from tenants.transactions import acting

HOW: Final = {
    "account_change_password": "changed",
    "account_set_password": "set",
    "account_reset_password_from_key": "reset",
}
_NO_ROW: Final = UUID(int=0)
"""The library seals a secret before its row has an id."""


class PersonAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # the library has no types
    """Log-in by e-mail and password, over `PersonBackend`."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultAccountAdapter.error_messages,
        "email_password_mismatch": gettext_lazy("E-mail or password is wrong."),
        "incorrect_password": gettext_lazy("This is not the password."),
        "incorrect_code": gettext_lazy("This code is wrong, or was used already."),
        "too_many_login_attempts": gettext_lazy("Too many attempts. Wait five minutes and try again."),
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """Nobody signs up: accounts come by invitation."""
        return False

    def authenticate(self, request: HttpRequest, **credentials: Any) -> Person | None:
        """Ask the backend, which knows an e-mail as user name."""
        if "email" in credentials:
            credentials["username"] = credentials["email"]
        person = super().authenticate(request, **credentials)
        return person if isinstance(person, Person) else None

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:  # noqa: ARG002
        """Tell the trail of an account that somebody tried it; an unknown e-mail leaves no trace."""
        with acting(AUTH):
            person = Person.objects.filter(email__iexact=str(credentials.get("email", "")).strip()).first()
        if person is not None:
            trail.record("login-failed", person)

    def reauthenticate(self, user: Person, password: str) -> bool:
        """Whether this is the password of who is logged in."""
        found = self.authenticate(current.request, email=user.email, password=password)
        return found is not None and found.pk == user.pk

    def post_login(self, request: HttpRequest, user: Person, **hooks: Any) -> Any:
        """Say who came in and how."""
        methods = sorted({str(record["method"]) for record in get_authentication_records(request, user)})
        trail.record("logged-in", user, methods=methods)
        return super().post_login(request, user, **hooks)

    def logout(self, request: HttpRequest) -> None:
        """Say who went."""
        if isinstance(request.user, Person):
            trail.record("logged-out", request.user)
        super().logout(request)

    def set_password(self, user: Person, password: str) -> None:
        """Set the password by operation, as the person whom the page proved."""
        match = getattr(current.request, "resolver_match", None)
        how = HOW.get(match.url_name if match else "", "changed")
        accounts.choose_password(new=password, how=how, actor=accounts.as_person(user.pk), now=timezone.now())
        with acting(accounts.as_person(user.pk)):
            user.refresh_from_db(fields=["password"])

    def is_safe_url(self, url: str) -> bool:
        """Only addresses of this very host are gone to after a log-in."""
        request = current.request
        return url_has_allowed_host_and_scheme(
            url, allowed_hosts={request.get_host()}, require_https=request.is_secure()
        )

    def get_login_redirect_url(self, request: HttpRequest) -> str:  # noqa: ARG002
        """The portal's home."""
        return str(settings.LOGIN_REDIRECT_URL)

    # --- mail ------------------------------------------------------------------------------------

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send a mail soon, with our name and address in it."""
        site = SimpleNamespace(name="Tenantry", domain=settings.TENANTRY_PUBLIC_URL)
        words = {"request": current.request, "email": email, "current_site": site, **context}
        mail.send(self.render_mail(template_prefix, email, words))

    def format_email_subject(self, subject: str) -> str:
        """Put the product's name first."""
        return f"Tenantry: {subject}"

    def get_reset_password_from_key_url(self, key: str) -> str:
        """Return the address of a reset link."""
        path = reverse("account_reset_password_from_key", kwargs={"uidb36": "UID", "key": "KEY"})
        return links.absolute(path.replace("UID-KEY", key))

    def send_notification_mail(
        self, template_prefix: str, user: Person, context: dict[str, Any] | None = None, email: str | None = None
    ) -> None:
        """Tell the person by mail and the trail by event what changed on an account."""
        happening = trail.TOLD_BY_MAIL.get(template_prefix)
        if happening is not None:
            trail.record(happening[0], user, **happening[1])
        if happening is not None and happening[0] == "factor-added":
            current.request.session[middleware.FACTOR_PROVEN] = True
        elif happening is not None and happening[0] == "factor-removed":
            current.request.session.pop(middleware.FACTOR_PROVEN, None)
        super().send_notification_mail(template_prefix, user, context, email or user.email)


class FactorAdapter(DefaultMFAAdapter):  # type: ignore[misc]  # the library has no types
    """Second factors: secrets sealed like all others, names that people recognise."""

    def encrypt(self, text: str) -> str:
        """Seal the secret of an authenticator app or of recovery codes."""
        return vault.seal(text, table="mfa_authenticator", column="data", row=_NO_ROW).hex()

    def decrypt(self, encrypted_text: str) -> str:
        """Open it again. Raises `VaultError`."""
        return vault.unseal(bytes.fromhex(encrypted_text), table="mfa_authenticator", column="data", row=_NO_ROW)

    def get_totp_issuer(self) -> str:
        """Return the name that an authenticator app shows."""
        return f"Tenantry {urlsplit(settings.TENANTRY_PUBLIC_URL).hostname}"

    def generate_authenticator_name(self, user: Person, type: str) -> str:  # noqa: A002, ARG002 - the library's names
        """Return a first name for a new key."""
        return _("My passkey")


class IdentityAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]  # the library has no types
    """Identity provider: only who is linked, or holds an open invitation, comes in. E-mails link nobody."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: Any) -> bool:  # noqa: ARG002
        """Nobody signs up."""
        return False

    def pre_social_login(self, request: HttpRequest, sociallogin: Any) -> None:
        """Link, let in or refuse an identity by issuer and subject; nothing else that it claims is kept."""
        sociallogin.account.extra_data = {}
        known = sociallogin.user if sociallogin.is_existing else None
        if sociallogin.state.get("process") == "connect":
            self._connect(request, sociallogin, known)
        if known is not None:
            return
        secret = links.pending(request)
        if not secret:
            raise ImmediateHttpResponse(render(request, "socialaccount/not_linked.html", status=403))
        name = links.pending(request, links.NAME_COOKIE)
        try:
            person_id = accounts.open_account(secret=secret, name=name, password="", actor=AUTH, now=timezone.now())
        except Conflict as error:
            raise ImmediateHttpResponse(links.closed_page(request, error)) from error
        with acting(AUTH):
            person = Person.objects.get(pk=person_id)
        self._link(sociallogin, person)

    def _connect(self, request: HttpRequest, sociallogin: Any, known: Person | None) -> None:
        """Answer the page of linked identities. The library would write the person's row; we do not."""
        person = request.user
        if not isinstance(person, Person):
            raise ImmediateHttpResponse(HttpResponseRedirect(reverse("account_login")))
        if is_reauthentication_required(request, app=""):
            self.add_problem(request, _("It took too long: prove once more that it is you, and link again."))
        elif known is not None and known.pk != person.pk:
            self.add_problem(request, _("This identity opens another account already."))
        elif known is None:
            self._link(sociallogin, person)
        raise ImmediateHttpResponse(HttpResponseRedirect(reverse("socialaccount_connections")))

    def add_problem(self, request: HttpRequest, text: str) -> None:
        """Show a sentence on the next page."""
        from django.contrib import messages

        messages.error(request, text)

    def _link(self, sociallogin: Any, person: Person) -> None:
        sociallogin.user = person
        sociallogin.account.user = person
        sociallogin.account.save()
        trail.record("identity-linked", person, provider=sociallogin.account.provider)
