"""Rules that approve small quota requests by themselves. What a rule adds to one tenant in all is limited."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from django.db import IntegrityError, transaction

from tenants import desired
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec
from tenants.models import AutoApprovalRule, Tenant
from tenants.operations.guards import allow, clean_text, locked
from tenants.operations.payloads import read_limits
from tenants.states import RequestKind
from tenants.transactions import operation

LONGEST_S: Final = 5 * 366 * 86400


@operation
def create(
    *,
    name: str,
    limits: Mapping[str, Any],
    actor: Actor,
    now: datetime,
    tenant: Tenant | None = None,
    longest_s: int | None = None,
) -> AutoApprovalRule:
    """Add a rule: dimension → the most it adds to one tenant in all, for at most `longest_s`.

    Only for `tenant` and its children, or for any. Raises `InvalidSpec`, `Conflict` for a name that is taken.
    """
    allow(actor, None, "auto-approval-rules.create")
    row = AutoApprovalRule(
        name=clean_text(name, "name", most=80, least=1),
        kind=RequestKind.QUOTA.value,
        tenant=tenant,
        limits=_limits(limits),
        longest_s=_longest(longest_s),
        created_at=now,
    )
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError as error:
        raise Conflict(f"A rule {row.name} exists already.", code="name-taken") from error
    desired.created(
        row, "auto-approval-rule.created", actor=actor, at=now, limits=row.limits, longest_s=row.longest_s,
        nudge=False,
    )  # fmt: skip
    return row


@operation
def update(
    *,
    rule: AutoApprovalRule,
    actor: Actor,
    now: datetime,
    version: int | None = None,
    enabled: bool | None = None,
    limits: Mapping[str, Any] | None = None,
    longest_s: int | None = None,
    any_length: bool = False,
) -> AutoApprovalRule:
    """Change what is given, or switch the rule off; what it granted stands. Raises `InvalidSpec`.

    With `any_length` the rule covers lasting limits, too: there is no longest time any more.
    """
    allow(actor, None, "auto-approval-rules.update")
    row = locked(rule, version)
    if enabled is not None:
        row.enabled = enabled
    if limits is not None:
        row.limits = _limits(limits)
    if longest_s is not None or any_length:
        row.longest_s = _longest(longest_s)
    row.save(update_fields=["enabled", "limits", "longest_s"])
    desired.changed(
        row, "auto-approval-rule.changed", actor=actor, at=now, enabled=row.enabled, limits=row.limits,
        longest_s=row.longest_s,
    )  # fmt: skip
    return row


def _limits(limits: Mapping[str, Any]) -> dict[str, int]:
    checked = read_limits(limits, "limits", least=1)
    if not checked:
        raise InvalidSpec("A rule covers at least one dimension.", field="limits")
    return checked


def _longest(longest_s: int | None) -> int | None:
    if longest_s is not None and not 60 <= longest_s <= LONGEST_S:
        raise InvalidSpec(f"Give 60 to {LONGEST_S} seconds.", field="longest_s")
    return longest_s
