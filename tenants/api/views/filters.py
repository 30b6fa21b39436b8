"""Filters that lists share."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

from django.db.models import Q, QuerySet

from tenants import access
from tenants.api.serializers.base import LABEL_KEY, LABEL_VALUE, LabelledQuery
from tenants.api.views.base import Call
from tenants.errors import InvalidSpec

_KEY: Final = re.compile(LABEL_KEY)
_VALUE: Final = re.compile(LABEL_VALUE)


def labelled(rows: QuerySet[Any], call: Call, *, provider: str = "boundary__provider") -> QuerySet[Any]:
    """Return rows filtered by name, labels, `managed_by`, phase, provider, tenant and life."""
    query: LabelledQuery = call.query
    if query.name:
        rows = rows.filter(name=query.name)
    if query.managed_by:
        rows = rows.filter(managed_by=query.managed_by)
    for label in query.label:
        key, equals, value = label.partition("=")
        if not _KEY.match(key) or not _VALUE.match(value):
            raise InvalidSpec("A label is key or key=value.", field="label")
        rows = rows.filter(labels__contains={key: value}) if equals else rows.filter(labels__has_key=key)
    return lived(rows, call, provider=provider)


def lived(rows: QuerySet[Any], call: Call, *, provider: str = "boundary__provider") -> QuerySet[Any]:
    """Return rows filtered by phase, life, provider and tenant."""
    query: Any = call.query
    if query.phase is not None:
        rows = rows.filter(phase=query.phase.value)
    if query.live is not None:
        rows = rows.filter(released_at__isnull=query.live)
    if query.provider:
        rows = rows.filter(named(query.provider, provider))
    return of_tenant(rows, call)


def of_tenant(rows: QuerySet[Any], call: Call, *, tenant: str = "tenant") -> QuerySet[Any]:
    """Return rows of the tenant that the query names, if the caller sees it; nothing otherwise."""
    word = call.query.tenant
    if not word or call.tenant is not None:
        return rows
    return rows.filter(**{f"{tenant}__in": access.tenants(call.actor).filter(named(word, ""))})


def named(word: str, relation: str) -> Q:
    """Return the condition that a related object has this name, short id or id."""
    prefix = f"{relation}__" if relation else ""
    try:
        return Q(**{f"{prefix}pk": UUID(word)})
    except ValueError:
        return Q(**{f"{prefix}name": word}) | Q(**{f"{prefix}short_id": word})
