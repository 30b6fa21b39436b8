"""The first wish of a request for a tenant: an endpoint that its approval starts, in the same transaction.

Stored in the request's payload as `wish: {"endpoint": {…}}`; anything else in `wish` is only for deciders to read.
What is started belongs to whoever asked. It gets no key here: its owner makes the first one and sees it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from django.db import transaction

from tenants import gpu_catalogue
from tenants.actor import Actor
from tenants.errors import Conflict, InvalidSpec, QuotaExceeded
from tenants.models import Endpoint, Tenant
from tenants.models.fields import slug_validator
from tenants.serving_arguments import checked_arguments
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, Term, UnitAsk
from tenants.states import OnShortage, ProductKind, Role, ServiceClass

FIELD: Final = "payload.wish.endpoint"
KEYS: Final = frozenset(
    {"name", "model", "arguments", "product", "profile", "count", "vcpu", "memory_gib", "days"}
)  # fmt: skip
NEEDED: Final = ("name", "model", "product", "vcpu", "memory_gib", "days")
MOST: Final[Mapping[str, int]] = {"count": 16, "vcpu": 1024, "memory_gib": 16384, "days": 1826}
TRIAL_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class Started:
    """What became of a wish: the endpoint, or why it could not be started."""

    endpoint: Endpoint | None
    why: str = ""


def stored(ask: EndpointAsk, *, days: int) -> dict[str, Any]:
    """Return the `wish` that asks for this endpoint for so many days; its one unit has a GPU."""
    (unit,) = ask.allocation.units
    assert unit.gpu is not None
    body = {
        "name": ask.name, "model": ask.revision.model, "arguments": dict(ask.revision.arguments),
        "product": unit.gpu.product, "profile": unit.gpu.profile, "count": unit.gpu.count,
        "vcpu": unit.vcpu, "memory_gib": unit.memory_gib, "days": days,
    }  # fmt: skip
    return {"endpoint": body}


def read(wish: Mapping[str, Any]) -> EndpointAsk | None:
    """Return the endpoint that a wish asks for, None where it only tells. Raises `InvalidSpec` naming the field."""
    body = wish.get("endpoint")
    if body is None:
        return None
    if not isinstance(body, Mapping):
        raise InvalidSpec("Give an object.", field=FIELD)
    unknown = sorted(str(key)[:40] for key in body if key not in KEYS)
    if unknown:
        raise InvalidSpec(f"A wish has no field {unknown[0]!r}.", field=f"{FIELD}.{unknown[0]}", code="unknown-field")
    for key in NEEDED:
        if key not in body:
            raise InvalidSpec("Say this too.", field=f"{FIELD}.{key}")
    name = _text(body, "name")
    if not slug_validator.regex.fullmatch(name):  # type: ignore[union-attr]  # compiled by us
        msg = "Use a DNS label: a-z, 0-9, '-', at most 40 characters, a letter first."
        raise InvalidSpec(msg, field=f"{FIELD}.name")
    days = _number(body, "days")
    kind = ServiceClass.TRIAL if days <= TRIAL_DAYS else ServiceClass.STANDARD
    unit = UnitAsk(_gpu(body), _number(body, "vcpu"), _number(body, "memory_gib"))
    arguments = body.get("arguments", {})
    if not isinstance(arguments, Mapping):
        raise InvalidSpec("Give an object.", field=f"{FIELD}.arguments")
    return EndpointAsk(
        name,
        RevisionAsk(_text(body, "model"), checked_arguments(arguments)),
        AllocationSpec((unit,), term=Term(days * 86400, service_class=kind), on_shortage=OnShortage.FAIL),
    )


def demand(ask: EndpointAsk) -> dict[str, int]:
    """Return dimension → amount that a tenant must be granted for a wish."""
    from tenants.operations.allocations import Ask, demand_of

    found = demand_of(Ask(ask.name, ask.allocation, ProductKind.ENDPOINT))
    counted = {dimension: amount for dimension, amount in found.items() if not gpu_catalogue.is_optional(dimension)}
    return {**counted, "boundaries": 1}


def start(
    ask: EndpointAsk, tenant: Tenant, requester: UUID, *, actor: Actor, now: datetime, until: datetime | None = None
) -> Started:
    """Make the endpoint for whoever asked, in the caller's transaction; `until` ends it earlier than it asks.

    The event names who decided and, as the accountable person, who asked. What cannot be started changes nothing
    and says why; a lack of room is none of it: then it waits.
    """
    from tenants.operations import endpoints

    if until is not None:
        ask = replace(ask, allocation=replace(ask.allocation, term=replace(ask.allocation.term, not_after=until)))
    in_his_place = replace(
        actor, person_id=requester, tenant_roles={tenant.pk: Role.OWNER}, platform_roles=frozenset(), only_tenant=None
    )
    try:
        with transaction.atomic():
            return Started(endpoints.make(tenant=tenant, ask=ask, actor=in_his_place, now=now, managed_by="portal"))
    except (Conflict, InvalidSpec, QuotaExceeded) as error:
        return Started(None, error.detail)


def _gpu(body: Mapping[str, Any]) -> GpuAsk:
    product, profile = _text(body, "product"), _text(body, "profile") if body.get("profile") else ""
    count = _number(body, "count") if "count" in body else 1
    try:
        gpu_catalogue.profile(gpu_catalogue.product(product), profile)
    except (gpu_catalogue.UnknownProduct, gpu_catalogue.UnknownProfile) as error:
        raise InvalidSpec(str(error), field=f"{FIELD}.product", code="unknown-product") from error
    if profile and count != 1:
        raise InvalidSpec("A part of a GPU is counted once.", field=f"{FIELD}.count")
    return GpuAsk(product, profile, count)


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body[key]
    if not isinstance(value, str) or not 1 <= len(value) <= 80 or not value.isprintable():
        raise InvalidSpec("Give one line of 1 to 80 characters.", field=f"{FIELD}.{key}")
    return value


def _number(body: Mapping[str, Any], key: str) -> int:
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST[key]:
        raise InvalidSpec(f"Give a whole number from 1 to {MOST[key]}.", field=f"{FIELD}.{key}")
    return value
