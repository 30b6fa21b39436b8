"""Tables of the console: lists and rows that are read and never written, whatever the role.

Every row is changed by an operation; the console has none but decisions (`frontend.console.decisions`). Secrets and
their digests are left out of lists and rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from django.contrib.admin.utils import unquote
from django.core.exceptions import ValidationError
from django.core.paginator import Paginator
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.text import capfirst
from unfold.admin import ModelAdmin
from unfold.views import ChangeList

from frontend.console import events
from frontend.console.cells import cell
from frontend.console.sheets import SHEETS, Sheet
from tenants.models import Event, Person, Request
from tenants.states import RequestState

HIDDEN: Final = frozenset(
    {"password", "digest", "sealed", "token_digest", "credential_digest", "secret_sealed", "rendered"}
)
"""Columns that no page shows; binary columns never show either."""
TELLING: Final = (
    "short_id", "name", "tenant", "kind", "state", "status", "phase", "email", "display_name", "dimension", "amount",
    "role", "at", "created_at",
)  # fmt: skip
"""Columns of the list of a table without a sheet, those that it has."""
NAMING: Final = ("name", "email", "short_id", "public_id", "number")
"""Columns by which a row is called, the first that it has."""
ROWS: Final = 25
MOST_COUNTED: Final = 10_000
"""Rows that a list counts: beyond, it says so many and pages no further; a search or a filter finds the rest."""
EVENTS: Final = 20


def shown_fields(model: type[models.Model]) -> list[models.Field[Any, Any]]:
    """Return the columns of a table that may be shown."""
    return [
        field
        for field in model._meta.concrete_fields
        if field.name not in HIDDEN and not isinstance(field, models.BinaryField)
    ]


def name_of(row: models.Model) -> str:
    """Return what a row is called: rows of ours have no `str()`."""
    given = next((str(getattr(row, name)) for name in NAMING if getattr(row, name, None)), "")
    return given or str(row.pk)[:13]


class BoundedPaginator(Paginator):  # type: ignore[type-arg]  # pages of any table
    """Counts no further than it must: the cost of a list does not grow with its table."""

    @cached_property
    def count(self) -> int:
        """Return how many rows there are, at most `MOST_COUNTED`."""
        rows: Any = self.object_list
        return int(rows.order_by()[:MOST_COUNTED].count())


class Rows(ChangeList):  # type: ignore[misc]  # the package has no types
    """One list: it says how many rows it shows, and does not count the others for it."""

    def get_results(self, request: HttpRequest) -> None:
        """Find the rows of this page."""
        super().get_results(request)
        self.full_result_count = self.result_count


@dataclass(frozen=True, slots=True)
class Fact:
    """One column of a row as its page shows it."""

    label: str
    text: str
    kind: str = ""
    """`json`, `moment`, `yes`, `no` or `""` for plain text."""
    url: str = ""
    moment: Any = None


class Table(ModelAdmin):  # type: ignore[misc]  # the package has no types
    """Shows rows of one table and changes none."""

    actions = None
    list_per_page = ROWS
    list_max_show_all = ROWS
    show_full_result_count = False
    show_facets = 0
    paginator = BoundedPaginator
    list_filter_submit = False
    compressed_fields = True

    @property
    def sheet(self) -> Sheet | None:
        """Return how the list looks, None for a table without a sheet."""
        return SHEETS.get(self.model)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Any platform role."""
        return bool(getattr(request.user, "is_staff", False))

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Any platform role."""
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """Nobody: rows are made by operations."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody: rows are changed by operations."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Nobody: rows end by operations."""
        return False

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the list's columns."""
        if self.sheet is not None:
            return self.sheet.columns
        names = {field.name for field in shown_fields(self.model) if not field.is_relation}
        return tuple(name for name in TELLING if name in names) or ("pk",)

    def get_list_display(self, request: HttpRequest) -> tuple[Any, ...]:  # noqa: ARG002
        """Return the cells of the list."""
        return tuple("pk" if name == "pk" else cell(self.model, name) for name in self.columns)

    def get_list_select_related(self, request: HttpRequest) -> tuple[str, ...] | bool:  # noqa: ARG002
        """Read what the list names of other tables in the same query."""
        found = {name.rpartition("__")[0] for name in self.columns if "__" in name}
        return tuple(sorted(found)) or False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:  # noqa: ARG002
        """Return the class of the list."""
        return Rows

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        """Return the rows; events with the name of who did it."""
        rows: models.QuerySet[Any] = super().get_queryset(request)
        if self.model is Event:
            name = Person.objects.filter(pk=models.OuterRef("person_id")).values("display_name")[:1]
            rows = rows.annotate(who=models.Subquery(name))
        return rows

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:  # noqa: ARG002
        """Return what the search looks through."""
        return self.sheet.search if self.sheet is not None else ()

    def get_list_filter(self, request: HttpRequest) -> tuple[Any, ...]:  # noqa: ARG002
        """Return the filters."""
        return self.sheet.filters if self.sheet is not None else ()

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:  # noqa: ARG002
        """Return the order: newest first where a table has a time."""
        if self.sheet is not None:
            names = {field.name for field in self.model._meta.concrete_fields} | {"pk"}
            return tuple(name for name in self.sheet.order if name.lstrip("-") in names) or ("-pk",)
        return ("-pk",)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",  # noqa: ARG002 - Django's signature
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one row: every column that may be shown, and the last events about it."""
        row = self.get_object(request, unquote(object_id))
        if row is None or not self.has_view_permission(request):
            raise Http404
        facts = [self._fact(row, field) for field in shown_fields(self.model)]
        values = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"{capfirst(self.opts.verbose_name)} {name_of(row)}",
            "row": row,
            "facts": [fact for fact in facts if fact.kind != "json"],
            "documents": [fact for fact in facts if fact.kind == "json"],
            "decide_url": _decide_url(row),
            "events": events.lines(self._events(row)),
            "event_columns": events.columns(),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "console/row.html", values)

    def history_view(
        self,
        request: HttpRequest,  # noqa: ARG002
        object_id: str,
        extra_context: dict[str, Any] | None = None,  # noqa: ARG002 - Django's signature
    ) -> HttpResponse:
        """Go to the row: its page has its events, which are the history here."""
        meta = self.opts
        return HttpResponseRedirect(reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[object_id]))

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:  # noqa: ARG002
        """Return one row with the rows that it names, in one query; None for one that is not there."""
        relations = [field.name for field in shown_fields(self.model) if field.is_relation]
        rows = self.model._default_manager.select_related(*relations) if relations else self.model._default_manager
        try:
            key = self.model._meta.pk.to_python(object_id)
        except ValidationError:
            return None
        return rows.filter(pk=key).first()

    def _events(self, row: models.Model) -> list[Event]:
        if not isinstance(row._meta.pk, models.UUIDField):
            return []
        return list(Event.objects.filter(object_id=row.pk).order_by("-seq")[:EVENTS])

    def _fact(self, row: models.Model, field: models.Field[Any, Any]) -> Fact:
        label = capfirst(str(field.verbose_name))
        if field.is_relation:
            other = getattr(row, field.name)
            return Fact(label, name_of(other), url=_address(other)) if other is not None else Fact(label, "--")
        value = getattr(row, field.attname)
        if value is None or value == "":
            return Fact(label, "--")
        if isinstance(field, models.BooleanField):
            return Fact(label, "", "yes" if value else "no")
        if isinstance(field, models.DateTimeField):
            return Fact(label, "", "moment", moment=value)
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return Fact(label, ", ".join(value) or "--")
        if isinstance(value, dict | list):
            if not value:
                return Fact(label, "--")
            return Fact(label, json.dumps(value, indent=2, default=str, ensure_ascii=False), "json")
        return Fact(label, str(value))


def _decide_url(row: models.Model) -> str:
    """Return where an open request is decided; `""` for anything else."""
    if isinstance(row, Request) and row.state == RequestState.SUBMITTED.value:
        return reverse("admin:decide", kwargs={"key": row.short_id})
    return ""


def _address(row: models.Model) -> str:
    """Return the page of a row in the console; `""` where its table has none."""
    meta = row._meta
    try:
        return reverse(f"admin:{meta.app_label}_{meta.model_name}_change", args=[row.pk])
    except NoReverseMatch:
        return ""
