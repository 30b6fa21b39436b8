"""The plain admin console: everything can be read by platform roles, nothing is changed behind an operation.

Reads run in the read block that `login.AdminTransactionMiddleware` opens. The only actions are decisions of
requests, POSTs that call the same operation as every other interface. Secrets and their digests are left out.
"""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import UUID

from django.apps import apps
from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.urls import path, reverse
from django.utils import timezone

from tenants import access, login
from tenants.errors import ControlPlaneError, Unauthenticated
from tenants.models import FanoutCursor, IdempotencyRecord, NotificationMark, Outbox, Request
from tenants.operations import requests
from tenants.states import RequestState
from tenants.transactions import acting, current_actor

HIDDEN: Final = frozenset(
    {"password", "digest", "sealed", "token_digest", "credential_digest", "secret_sealed", "rendered"}
)
"""Columns that no page shows; binary columns never show either."""
LISTED: Final = (
    "short_id", "name", "tenant", "kind", "state", "status", "phase", "email", "display_name", "dimension", "amount",
    "role", "at", "created_at",
)  # fmt: skip
"""Columns of the lists, those that a table has."""
ROWS: Final = 50
LEFT_OUT: Final = frozenset({Outbox, IdempotencyRecord, FanoutCursor, NotificationMark})
"""Machinery that the web role may not read, or each caller his own only."""


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]  # one class for every table
    """Shows rows of one table and changes none."""

    actions = None
    list_per_page = ROWS
    show_full_result_count = False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Any platform role."""
        return bool(getattr(request.user, "is_staff", False))

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """Nobody: rows are made by operations."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody: rows are changed by operations."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody: rows end by operations."""
        return False

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:  # noqa: ARG002
        """Return the telling columns of this table; the key where it has none."""
        names = {field.name for field in shown_fields(self.model)}
        return tuple(name for name in LISTED if name in names) or ("pk",)

    def get_list_select_related(self, request: HttpRequest) -> tuple[str, ...]:
        """Read what the list names in one query."""
        return tuple(
            name
            for name in self.get_list_display(request)
            if name != "pk" and self.model._meta.get_field(name).is_relation
        )

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:  # noqa: ARG002
        """Return every column that may be shown."""
        return [field.name for field in shown_fields(self.model)]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """Return all of them."""
        return self.get_fields(request, obj)


class RequestAdmin(ReadOnlyAdmin):
    """Requests, with the proof of what an approval would do and the decision."""

    def get_urls(self) -> list[Any]:
        """Add the decision."""
        decide = self.admin_site.admin_view(self.decide_view)
        return [path("<uuid:pk>/decide/", decide, name="tenants_request_decide"), *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show a request with its proof; the decision only where this person may take it."""
        context = dict(extra_context or {})
        actor = current_actor()
        key = _key(object_id)
        row = Request.objects.select_related("tenant", "allocation").filter(pk=key).first() if key else None
        if actor is not None and row is not None and row.state == RequestState.SUBMITTED.value:
            context |= _proof_context(row, may_decide=requests.standing(actor, row, now=timezone.now()) is not None)
        return super().change_view(request, object_id, form_url, context)

    def decide_view(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """Decide a request by the operation; what it refuses is shown as a message."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        actor = login.session_actor(request)
        if actor is None:
            raise Unauthenticated
        try:
            with acting(actor):
                row = access.find(requests.visible(actor), pk)
            decision = requests.decide(
                request=row,
                version=_number(request.POST.get("version", "")),
                verdict=request.POST.get("verdict", ""),
                reason=request.POST.get("reason", ""),
                expect_proof=_object(request.POST.get("proof", "")),
                actor=actor,
                now=timezone.now(),
            )
            messages.success(request, f"Decided: {decision.verdict}.")
        except ControlPlaneError as error:
            messages.error(request, error.detail)
        return HttpResponseRedirect(reverse("admin:tenants_request_change", args=[pk]))


def _proof_context(row: Request, *, may_decide: bool) -> dict[str, Any]:
    actor = current_actor()
    assert actor is not None  # the caller has looked
    context: dict[str, Any] = {"proof": None, "proof_json": "", "proof_refused": ""}
    try:
        context["proof"] = requests.proof(request=row, actor=actor, now=timezone.now())
        context["proof_json"] = json.dumps(context["proof"])
    except ControlPlaneError as error:
        context["proof_refused"] = error.detail
    if may_decide:
        context["decide_url"] = reverse("admin:tenants_request_decide", args=[row.pk])
    return context


def _key(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def shown_fields(model: type[models.Model]) -> list[models.Field[Any, Any]]:
    """Return the columns of a table that may be shown."""
    return [
        field
        for field in model._meta.concrete_fields
        if field.name not in HIDDEN and not isinstance(field, models.BinaryField)
    ]


admin.site.unregister(Group)
admin.site.site_header = "Tenantry"
admin.site.site_title = "Tenantry"
admin.site.index_title = "What there is"
for _model in apps.get_app_config("tenants").get_models():
    if _model in LEFT_OUT:
        continue
    admin.site.register(_model, RequestAdmin if _model is Request else ReadOnlyAdmin)
