"""Pages of our links: an invitation, the first set-up, a recovery; and what an operator does to make one."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from allauth.account.adapter import get_adapter
from allauth.account.decorators import reauthentication_required
from allauth.account.utils import perform_login
from allauth.decorators import rate_limit
from allauth.mfa.base.views import IndexView
from allauth.usersessions.views import ListUserSessionsView
from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.mail import EmailMessage
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods

from frontend.accounts import links, mail, trail
from frontend.accounts.forms import FirstOperatorForm, NameForm, NewAccountForm, NewPasswordForm, RecoveryForm
from frontend.accounts.middleware import must_prove
from tenants import login as people_login
from tenants.actor import AUTH
from tenants.errors import Conflict, ControlPlaneError, Forbidden, InvalidSpec, NotVisible
from tenants.models import Person
from tenants.models.account import LinkKind
from tenants.operations import accounts
from tenants.states import PlatformRole
from tenants.transactions import acting, reading

FIELD_OF: Final = {"display_name": "display_name", "email": "email", "password": "password", "reason": "reason"}
"""Input of an operation → field of a form."""


@never_cache
@require_GET
@rate_limit(action="account_link")  # type: ignore[untyped-decorator]  # the library has no types
def enter(request: HttpRequest, secret: str) -> HttpResponseBase:  # noqa: ARG001 - a view
    """Take a link's secret out of the address into a cookie."""
    response = HttpResponseRedirect(reverse("account_link_open"))
    links.carry(response, secret)
    return response


@never_cache
@sensitive_post_parameters()
@require_http_methods(["GET", "POST"])
@rate_limit(action="account_link")  # type: ignore[untyped-decorator]  # the library has no types
def use(request: HttpRequest) -> HttpResponseBase:
    """Show what the browser's link is for, and do it."""
    secret = links.pending(request)
    try:
        link = accounts.look(secret, now=timezone.now())
    except NotVisible:
        return links.closed_page(request, state="unknown")
    if not link.is_open:
        return links.closed_page(request, state=link.state, kind=link.kind.value)
    try:
        if link.kind is LinkKind.RECOVERY:
            return _recover(request, secret, link)
        if link.kind is LinkKind.INVITATION and (link.account_there or request.user.is_authenticated):
            return _join(request, secret, link)
        return _open_account(request, secret, link)
    except Conflict as error:
        if error.specific_code != "link-closed":
            raise
        return links.closed_page(request, error, kind=link.kind.value)


def _open_account(request: HttpRequest, secret: str, link: accounts.Link) -> HttpResponseBase:
    first = link.kind is LinkKind.SET_UP
    form_class = FirstOperatorForm if first else NewAccountForm
    by_identity = request.method == "POST" and "identity" in request.POST and not first
    if by_identity:
        form: forms.Form = NameForm(request.POST)
        if form.is_valid():
            response = HttpResponseRedirect(reverse("account_link_identity"))
            links.carry(response, form.cleaned_data["display_name"], links.NAME_COOKIE)
            return response
    form = form_class(request.POST or None, person=Person(email=link.email))
    if request.method == "POST" and not by_identity and form.is_valid():
        given = form.cleaned_data
        try:
            person_id = accounts.open_account(
                secret=secret,
                name=given["display_name"],
                password=given["password"],
                email=given.get("email", ""),
                actor=AUTH,
                now=timezone.now(),
            )
        except (InvalidSpec, Conflict) as error:
            if getattr(error, "specific_code", "") == "link-closed" or not _at_its_field(form, error):
                raise
        else:
            return links.drop(_come_in(request, person_id, to=reverse("frontend:setup") if first else "/"))
    return render(
        request, "account/link_account.html", {"form": form, "link": link, "first": first}, status=_status(form)
    )


def _join(request: HttpRequest, secret: str, link: accounts.Link) -> HttpResponseBase:
    person = request.user if isinstance(request.user, Person) else None
    mine = person is not None and person.email.casefold() == link.email.casefold()
    if request.method == "POST" and person is not None and mine:
        accounts.join(secret=secret, actor=accounts.as_person(person.pk), now=timezone.now())
        messages.success(request, _("You are in: %(tenant)s.") % {"tenant": link.tenant_title})
        return links.drop(HttpResponseRedirect("/"))
    return render(request, "account/link_join.html", {"link": link, "person": person, "mine": mine})


def _recover(request: HttpRequest, secret: str, link: accounts.Link) -> HttpResponseBase:
    assert link.person_id is not None
    with acting(AUTH):
        person = Person.objects.get(pk=link.person_id)
    form = NewPasswordForm(request.POST or None, person=person)
    if request.method == "POST" and form.is_valid():
        accounts.finish_recovery(
            secret=secret,
            password=form.cleaned_data["password"],
            actor=accounts.as_person(person.pk),
            now=timezone.now(),
        )
        get_adapter(request).logout(request)
        _write_to(person.email, "account/email/recovered", {"person": person})
        messages.success(request, _("The new password is set. Log in with it."))
        return links.drop(HttpResponseRedirect(reverse("account_login")))
    return render(request, "account/link_recovery.html", {"form": form, "link": link}, status=_status(form))


def _come_in(request: HttpRequest, person_id: UUID, *, to: str) -> HttpResponseBase:
    """Log in who just made his account, with a new session: the first operator goes on to the set-up."""
    with acting(AUTH):
        person = Person.objects.get(pk=person_id)
    response: HttpResponseBase = perform_login(request, person, redirect_url=to)
    return response


@never_cache
@require_GET
def identity(request: HttpRequest) -> HttpResponseBase:
    """Ask to go on to the identity provider, for an invitation without a password."""
    if not links.pending(request, links.NAME_COOKIE):
        return HttpResponseRedirect(reverse("account_link_open"))
    return render(request, "account/link_identity.html")


class FactorsView(IndexView):  # type: ignore[misc]  # the library has no types
    """The library's page of second factors, which also says when one is required."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add whether this person must set one up before the portal opens."""
        return {**super().get_context_data(**kwargs), "second_factor_required": must_prove(self.request)}


# --- recovery by an operator ----------------------------------------------------------------------------


class SessionsView(ListUserSessionsView):  # type: ignore[misc]  # the library has no types
    """The library's page of sessions, with its deed in the trail."""

    def form_valid(self, form: forms.Form) -> HttpResponseBase:
        """Log out the other sessions and say so."""
        response: HttpResponseBase = super().form_valid(form)
        trail.record("sessions-ended", self.request.user)
        return response


@never_cache
@login_required
@reauthentication_required  # type: ignore[untyped-decorator]  # the library has no types
@require_http_methods(["GET", "POST"])
def recover(request: HttpRequest, person: UUID) -> HttpResponseBase:
    """Make a recovery link for a person. It goes to him by mail; only where no mail is set up is it shown, once."""
    actor = people_login.session_actor(request)
    if actor is None or not actor.has(PlatformRole.OPERATOR):
        raise Http404
    with reading(actor):
        found = Person.objects.filter(pk=person).first()
    if found is None:
        raise Http404
    form = RecoveryForm(request.POST or None)
    page: dict[str, Any] = {"form": form, "person": found, "mail": mail.is_set_up()}
    if request.method == "POST" and form.is_valid():
        try:
            made = accounts.recover(person=found, actor=actor, now=timezone.now(), **form.cleaned_data)
        except (InvalidSpec, Conflict, Forbidden) as error:
            _at_its_field(form, error, anywhere=True)
        else:
            address = links.url_of(made.secret)
            if mail.is_set_up():
                _write_to(found.email, "account/email/recovery", {"person": found, "url": address})
            page |= {"made": made.row, "address": "" if mail.is_set_up() else address}
    return render(request, "account/recover.html", page, status=_status(form))


def send_invitation(made: accounts.NewLink, *, tenant: str, inviter: str) -> str:
    """Mail an invitation; return its address, for who invites to hand over where no mail is set up, else `""`."""
    address = links.url_of(made.secret)
    if not mail.is_set_up():
        return address
    _write_to(made.row.email, "account/email/invitation", {"url": address, "tenant": tenant, "inviter": inviter})
    return ""


def not_offered(request: HttpRequest, **_path: Any) -> HttpResponseBase:
    """Answer pages of the library that this product does not have: accounts come by invitation."""
    return render(request, "account/signup_closed.html", status=404)


def to_log_in(request: HttpRequest) -> HttpResponse:
    """Send the admin console's own log-in to ours, which asks for the second factor."""
    query = request.GET.urlencode()
    return HttpResponseRedirect(reverse("account_login") + (f"?{query}" if query else ""))


# --- plain ------------------------------------------------------------------------------------------------


def _write_to(email: str, template: str, words: dict[str, Any]) -> None:
    subject = " ".join(render_to_string(f"{template}_subject.txt", words).split())
    body = render_to_string(f"{template}_message.txt", words).strip()
    mail.send(EmailMessage(f"Tenantry: {subject}", body, to=[email]))


def _at_its_field(form: forms.Form, error: ControlPlaneError, *, anywhere: bool = False) -> bool:
    """Put a refusal at its field; False when the form has none for it."""
    field = FIELD_OF.get(error.field or "")
    if field in form.fields:
        form.add_error(field, error.detail)
        return True
    if anywhere:
        form.add_error(None, error.detail)
    return anywhere


def _status(form: forms.Form) -> int:
    return 422 if form.is_bound and not form.is_valid() else 200
