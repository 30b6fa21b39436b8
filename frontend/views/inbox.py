"""The inbox of whoever may decide, the page of one decision with its forecast, and bulk decisions of equal requests.

Every decision goes through `requests.decide` with the version and the forecast that were shown: a worse outcome
changes nothing, and the page shows what got worse. One's own requests are listed with the reason why not. The admin
console shows the same pages in its own frame: another `Inbox`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from frontend.kernel import asks, lists, problems, words
from frontend.kernel.page import PageRequest, page
from frontend.views import deciding
from frontend.views.requests import read_number
from tenants import access
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.models import Request
from tenants.operations import requests
from tenants.transactions import reading


def _no_frame(request: PageRequest) -> dict[str, Any]:  # noqa: ARG001 - the portal's frame is the request's
    return {}


@dataclass(frozen=True, slots=True)
class Inbox:
    """The views of one place that decides; each still needs `page` around it."""

    to: deciding.Addresses
    templates: str
    """Folder of list.html, _table.html, decide.html and equal.html."""
    frame: Callable[[PageRequest], dict[str, Any]] = _no_frame
    """What its pages show around their content, beside the portal's own frame."""

    def listed(self, request: PageRequest) -> HttpResponse:
        """List what waits for the person's decision."""
        rows = deciding.waiting(request)
        form = request.GET.get("format", "")
        if form in {"csv", "json"}:
            return _exported(deciding.lines(request, rows[: lists.MOST_EXPORTED], self.to), form)
        template = "_table" if request.htmx else "list"
        return self._shown(request, template, deciding.inbox_values(request, rows, self.to))

    def show(self, request: PageRequest, key: str) -> HttpResponse:
        """Show one request with what approving it would do."""
        row = access.find(deciding.rows_of(request), key)
        return self._shown(request, "decide", deciding.decision_values(request, row, self.to))

    def decide(self, request: PageRequest, key: str) -> HttpResponse:
        """Approve, reduce, time-box or deny the version that was shown."""
        with reading(request.actor):
            row = access.find(deciding.rows_of(request), key)
        given = request.POST
        verdict = given.get("verdict", "")
        try:
            decision = requests.decide(
                request=row,
                version=read_number(given.get("version"), field="version"),
                verdict=verdict,
                granted=deciding.granted_of(row, given) if verdict == "reduce" else None,
                reason=given.get("reason", ""),
                expect_proof=deciding.proof_of(given.get("proof", "")) if verdict == "approve" else None,
                actor=request.actor,
                now=request.now,
            )
        except ControlPlaneError as error:
            if not isinstance(error, InvalidSpec | Conflict):
                raise
            return self._again(request, key, error)
        text = {
            "approve": _("Approved: %(what)s."),
            "reduce": _("Approved for less: %(what)s."),
            "deny": _("Denied: %(what)s."),
        }[decision.verdict]
        messages.success(request, text % {"what": asks.what(row)})
        with reading(request.actor):
            return HttpResponseRedirect(self._next(request, row))

    def comment(self, request: PageRequest, key: str) -> HttpResponse:
        """Ask the requester something, in the thread."""
        with reading(request.actor):
            row = access.find(deciding.rows_of(request), key)
        try:
            requests.comment(request=row, text=request.POST.get("text", ""), actor=request.actor, now=request.now)
        except InvalidSpec as error:
            return self._again(request, key, error)
        messages.success(request, _("Sent. The requester sees it in the request."))
        return HttpResponseRedirect(f"{self.to.page(row)}#thread")

    def equal(self, request: PageRequest) -> HttpResponse:
        """Show equal requests together, each with its own forecast, to approve them at once."""
        key = request.GET.get("key", "")
        rows = [row for row in deciding.waiting(request) if asks.equal_key(row) == key][: deciding.MOST_AT_ONCE]
        if not rows:
            messages.info(request, _("None of these waits any more."))
            return HttpResponseRedirect(self.to.inbox)
        return self._shown(request, "equal", deciding.equal_values(request, rows, self.to))

    def approve_equal(self, request: PageRequest) -> HttpResponse:
        """Approve the chosen ones of several equal requests, each by its own decision; what got worse stays."""
        taken = request.POST.getlist("take")[: deciding.MOST_AT_ONCE]
        with reading(request.actor):
            rows = sorted(deciding.rows_of(request).filter(short_id__in=taken), key=deciding.order)
        done, kept = deciding.approve_all(request, rows)
        if done:
            text = ngettext("%(n)d request approved.", "%(n)d requests approved.", len(done))
            messages.success(request, text % {"n": len(done)})
        for text in kept:
            messages.error(request, text)
        return HttpResponseRedirect(self.to.inbox)

    def _again(self, request: PageRequest, key: str, error: ControlPlaneError) -> HttpResponse:
        """Show the page once more with what was wrong, at its field, or with what got worse."""
        worse = [words.plain(text) for text in error.data.get("differences", [])]
        with reading(request.actor):
            row = access.find(deciding.rows_of(request), key)
            if error.specific_code == "decided":
                messages.warning(request, _("Somebody else decided this in the meantime."))
                return HttpResponseRedirect(self._next(request, row))
            errors: dict[str, str] = {}
            if not worse:
                found = problems.at_fields(error).items()
                errors = {deciding.form_field(name): words.plain(text) for name, text in found}
            values = deciding.decision_values(request, row, self.to, errors=errors, given=request.POST, worse=worse)
            return self._shown(request, "decide", values, status=problems.status_of(error))

    def _shown(self, request: PageRequest, name: str, values: dict[str, Any], *, status: int = 200) -> HttpResponse:
        return render(request, f"{self.templates}/{name}.html", {**self.frame(request), **values}, status=status)

    def _next(self, request: PageRequest, row: Request) -> str:
        """Return the next page of work: the next request after this one, else the oldest, else the inbox."""
        rest = [other for other in requests.inbox(request.actor, now=request.now) if other.pk != row.pk]
        later = [other for other in rest if deciding.order(other) > deciding.order(row)]
        return self.to.page((later or rest)[0]) if rest else self.to.inbox


def _exported(lines: list[deciding.Line], form: str) -> HttpResponse:
    columns = ["id", "asked_at", "who", "tenant", "what", "if_approved", "why", "cost_to_the_end", "currency"]
    body = [
        {
            "id": line.row.short_id,
            "asked_at": line.row.created_at,
            "who": line.who,
            "tenant": line.row.tenant.name if line.row.tenant is not None else "",
            "what": line.what,
            "if_approved": line.verdict.key,
            "why": line.verdict.sentence,
            "cost_to_the_end": line.cost.to_the_end if line.cost is not None else None,
            "currency": line.cost.currency if line.cost is not None else "",
        }
        for line in lines
    ]
    return lists.exported(body, columns, name="inbox", form=form)


PORTAL = Inbox(deciding.Addresses("frontend"), "frontend/pages/inbox")
listed = page("requests.inbox")(PORTAL.listed)
show = page("requests.proof")(PORTAL.show)
decide = page("requests.decide", methods=("POST",))(PORTAL.decide)
comment = page("requests.comment", methods=("POST",))(PORTAL.comment)
equal = page("requests.proof")(PORTAL.equal)
approve_equal = page("requests.decide", methods=("POST",))(PORTAL.approve_equal)
