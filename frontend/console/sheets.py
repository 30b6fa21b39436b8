"""Which columns, searches and filters the list of each table has. A table without a sheet gets telling columns.

Searches use what an index or a short scan answers; filters offer fixed words, so no list asks for its distinct values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from tenants import models
from tenants.states import (
    BoundaryKind,
    HoldKind,
    HostState,
    Phase,
    ProductKind,
    RequestKind,
    RequestState,
    TenantStatus,
)


@dataclass(frozen=True, slots=True)
class Sheet:
    """How the list of one table looks."""

    columns: tuple[str, ...]
    """Names of columns, `tenant__name` for one of another table."""
    search: tuple[str, ...] = ()
    filters: tuple[Any, ...] = ()
    order: tuple[str, ...] = ("-created_at", "-pk")


def words(field: str, title: str | Promise, values: type[Enum] | Sequence[str]) -> type[admin.SimpleListFilter]:
    """Return a filter of one column by fixed words."""
    known = [str(each.value) if isinstance(each, Enum) else str(each) for each in values]

    class Words(admin.SimpleListFilter):
        parameter_name = field

        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
            return [(each, each) for each in known]

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
            return queryset.filter(**{field: self.value()}) if self.value() in known else queryset

    Words.title = str(title) if isinstance(title, str) else title  # type: ignore[assignment]  # a lazy text is one
    return Words


def absent(field: str, title: str | Promise, yes: str | Promise, no: str | Promise) -> type[admin.SimpleListFilter]:
    """Return a filter by whether a moment has come: `open` while the column is empty, else `over`."""

    class Absent(admin.SimpleListFilter):
        parameter_name = f"{field}_is"

        def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:  # noqa: ARG002
            return [("open", yes), ("over", no)]

        def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
            if self.value() not in {"open", "over"}:
                return queryset
            return queryset.filter(**{f"{field}__isnull": self.value() == "open"})

    Absent.title = title  # type: ignore[assignment]  # a lazy text is one
    return Absent


class OfProvider(admin.SimpleListFilter):
    """Only what stands at one provider."""

    title = _("provider")
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        """Offer all providers: there are few."""
        return [(name, name) for name in models.Provider.objects.order_by("name").values_list("name", flat=True)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """Keep those of the chosen one."""
        return queryset.filter(provider__name=self.value()) if self.value() else queryset


OBJECTS: Final = ("allocation", "endpoint", "machine", "namespace", "request", "tenant", "host", "provider")
PHASE: Final = words("phase", _("phase"), Phase)
RELEASED: Final = absent("released_at", _("given back"), _("not yet"), _("given back"))
PRODUCT: Final = Sheet(
    ("name", "short_id", "tenant__name", "phase", "created_at"), ("name", "short_id"), (PHASE, RELEASED)
)
SHEETS: Final[Mapping[type[Model], Sheet]] = {
    models.Provider: Sheet(
        ("name", "kind", "site", "enabled", "healthy", "snapshot_at"),
        ("name", "site"),
        ("enabled", "healthy"),
        ("name",),
    ),
    models.Host: Sheet(
        ("name", "provider__name", "state", "gpu_product", "gpu_count", "empty_gpus", "healthy", "seen_at"),
        ("name", "short_id", "provider_ref"),
        (OfProvider, words("state", _("state"), HostState), "healthy"),
    ),
    models.GpuDevice: Sheet(
        ("short_id", "host__name", "index", "product", "slots", "mode", "healthy", "placeable"),
        ("short_id", "provider_ref", "host__name"),
        (OfProvider, "healthy", "placeable", absent("removed_at", _("removed"), _("no"), _("yes"))),
    ),
    models.Allocation: Sheet(
        ("name", "short_id", "tenant__name", "product_kind", "phase", "service_class", "expires_at", "created_at"),
        ("name", "short_id"),
        (PHASE, words("product_kind", _("what it is for"), ProductKind), RELEASED),
    ),
    models.Boundary: Sheet(
        ("short_id", "tenant__name", "provider__name", "kind", "tier", "phase", "created_at"),
        ("short_id",),
        (OfProvider, PHASE, words("kind", _("kind"), BoundaryKind)),
    ),
    models.Hold: Sheet(
        ("kind", "host__name", "device__index", "start", "size", "profile", "tenant__name", "settled", "during"),
        ("host__name", "tenant__name", "note"),
        (words("kind", _("kind"), HoldKind), "settled"),
        ("-pk",),
    ),
    models.Endpoint: PRODUCT,
    models.Machine: PRODUCT,
    models.Namespace: PRODUCT,
    models.ServedModel: Sheet(
        ("name", "repository", "quantisation", "licence", "enabled"), ("name", "repository"), ("enabled",), ("name",)
    ),
    models.Tenant: Sheet(
        ("name", "display_name", "short_id", "parent__name", "status", "created_at"),
        ("name", "display_name", "short_id"),
        (words("status", _("status"), TenantStatus),),
    ),
    models.Membership: Sheet(
        ("tenant__name", "person__email", "role", "created_at"), ("tenant__name", "person__email"), ()
    ),
    models.Person: Sheet(
        ("email", "display_name", "is_active", "left_at", "created_at"), ("email", "display_name"), ("is_active",)
    ),
    models.Request: Sheet(
        ("short_id", "kind", "state", "tenant__name", "created_at", "decided_at"),
        ("short_id", "tenant__name", "reason"),
        (words("state", _("state"), RequestState), words("kind", _("kind"), RequestKind)),
    ),
    models.Decision: Sheet(
        ("request__short_id", "verdict", "tenant__name", "rule__name", "created_at"),
        ("request__short_id", "tenant__name"),
        (words("verdict", _("verdict"), ("approve", "reduce", "deny")),),
    ),
    models.Quota: Sheet(("tenant__name", "dimension", "amount", "inherit", "until"), ("tenant__name", "dimension"), ()),
    models.Finding: Sheet(
        ("short_id", "kind", "provider__name", "host__name", "subject", "first_seen_at", "resolved_at"),
        ("short_id", "subject", "host__name"),
        (OfProvider, absent("resolved_at", _("resolved"), _("open"), _("resolved"))),
        ("-first_seen_at", "-pk"),
    ),
    models.HostPlan: Sheet(
        ("short_id", "host__name", "kind", "state", "starts_at", "ends_at"),
        ("short_id", "host__name"),
        (words("state", _("state"), ("running", "done", "cancelled")),),
    ),
    models.Event: Sheet(
        ("at", "kind", "object_kind", "object_id", "who"),
        ("kind__startswith", "object_id"),
        (words("object_kind", _("object"), OBJECTS),),
        ("-at", "-pk"),
    ),
    models.UsageRecord: Sheet(
        ("kind", "tenant__name", "provider__name", "profile", "size", "held_from", "held_to"),
        ("tenant__name",),
        (OfProvider, words("kind", _("kind"), HoldKind), absent("held_to", _("over"), _("still held"), _("over"))),
        ("-held_from", "-pk"),
    ),
    models.PriceList: Sheet(
        ("name", "provider__name", "site", "currency", "valid_from"), ("name",), (), ("-valid_from",)
    ),
    models.Webhook: Sheet(("name", "tenant__name", "url", "created_at", "disabled_at"), ("name", "tenant__name"), ()),
    models.ServiceAccount: Sheet(
        ("name", "tenant__name", "role", "expires_at", "disabled_at"), ("name", "tenant__name"), ()
    ),
    models.AutoApprovalRule: Sheet(("name", "kind", "tenant__name", "enabled", "created_at"), ("name",), ("enabled",)),
}
"""Table → how its list looks."""
