"""What would happen if it were asked for now: fits, needs a decision, waits, or never; quota and price with it.

From the operation itself, run and rolled back (`plans.planned`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from django.utils.translation import gettext as _

from frontend.design.quota_bar import Above, QuotaLine
from frontend.kernel import plans, problems
from tenants import gpu_catalogue, pricing
from tenants.errors import ControlPlaneError
from tenants.models import Allocation, Request, Tenant
from tenants.operations import quotas
from tenants.operations.pricing import all_prices, currency
from tenants.quota import TenantLimits
from tenants.states import ConditionType, Phase, condition_of

NOW: Final = "now"
DECISION: Final = "decision"
WAIT: Final = "wait"
NEVER: Final = "never"


@dataclass(frozen=True, slots=True)
class Outlook:
    """The answer for one wish."""

    kind: str
    """`now`, `decision`, `wait` or `never`."""
    sentence: str
    detail: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    place: str = ""
    simulated: bool = False
    deciders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Price:
    """What a demand costs; None where nobody has set a price."""

    hour: Decimal | None
    to_the_end: Decimal | None
    currency: str

    @property
    def day(self) -> Decimal | None:
        """Return the price of a day."""
        return None if self.hour is None else self.hour * 24


def of(create: Callable[[], Any]) -> Outlook:
    """Return what `create` would do. Must run outside any read block."""
    try:
        return plans.planned(create, _look)
    except ControlPlaneError as error:
        return Outlook(NEVER, error.detail, fields=problems.at_fields(error))


def _look(result: Any) -> Outlook:
    row = getattr(result, "endpoint", result)
    allocation: Allocation = row.allocation
    boundary = row.boundary
    if row.phase == Phase.AWAITING_APPROVAL:
        found = condition_of(allocation.conditions, ConditionType.APPROVED)
        request = Request.objects.filter(allocation=allocation).prefetch_related("stages").first()
        stages = sorted(request.stages.all(), key=lambda stage: stage.order) if request is not None else []
        return Outlook(
            DECISION,
            _("Needs a decision: it goes beyond a limit."),
            detail=str(found["message"]) if found else "",
            deciders=tuple(decider(stage.decider) for stage in stages),
        )
    if row.phase == Phase.WAITING:
        found = condition_of(allocation.conditions, ConditionType.PLACED)
        message = str(found["message"]) if found else ""
        return Outlook(WAIT, _("Waits for room, first come, first served."), detail=message)
    simulated = bool(boundary is not None and boundary.provider.capabilities.get("simulated"))
    place = f"{boundary.provider.name}, {boundary.provider.site}" if boundary is not None else ""
    return Outlook(NOW, _("Fits now."), place=place, simulated=simulated)


def decider(word: str) -> str:
    """Return who decides, in words."""
    return {
        "tenant-owner": _("an owner of the tenant"),
        "parent-owner": _("an owner of the tenant above"),
        "platform-approver": _("a platform approver"),
    }.get(word, word)


def price(
    demand: Mapping[str, int],
    start: datetime,
    end: datetime,
    *,
    prices: pricing.PriceList | None = None,
    provider: str = "",
    site: str = "",
) -> Price:
    """Return what a demand costs by the hour and to its end, in the caller's read block."""
    known = prices if prices is not None else all_prices()
    try:
        hour = known.hourly(demand, start, provider=provider, site=site)
        total = known.cost(demand, start, max(start, end), provider=provider, site=site).total
    except pricing.NoPrice:
        return Price(None, None, currency())
    return Price(hour, total, currency())


def bars(tenant: Tenant, demand: Mapping[str, int]) -> list[QuotaLine]:
    """Return a quota line per GPU dimension of a demand: the tenant's own, those above beside it; in the read block."""
    wanted = [name for name in demand if name.startswith("gpu.") and name.endswith(".slices")]
    levels = quotas.position(tenant, wanted) if wanted else ()
    return [line_of(levels, dimension, requested=demand[dimension]) for dimension in wanted]


def line_of(levels: Sequence[TenantLimits], dimension: str, *, requested: int = 0) -> QuotaLine:
    """Return the quota line of one dimension from the limits of a tenant's path, root first."""
    own, above = levels[-1], levels[:-1]
    inherits = dimension in own.inherits
    return QuotaLine(
        label=product_of(dimension),
        unit="slot" if dimension.startswith("gpu.") else "",
        used=int(own.usage.held.get(dimension, 0)),
        pending=int(own.usage.pending.get(dimension, 0)),
        requested=requested,
        limit=None if inherits else _limit(own, dimension),
        above=tuple(
            Above(level.tenant, int(level.usage.of(dimension)), _limit(level, dimension))
            for level in above
            if dimension not in level.inherits
        ),
    )


def _limit(level: TenantLimits, dimension: str) -> int:
    return sum(int(each.amount) for each in level.limits if each.dimension == dimension)


def product_of(dimension: str) -> str:
    """Return the words for a dimension."""
    try:
        parsed = gpu_catalogue.parse_dimension(dimension)
    except gpu_catalogue.BadDimension:
        return dimension
    if isinstance(parsed, gpu_catalogue.GpuDimension):
        return parsed.product if parsed.profile is None else f"{parsed.product} {parsed.profile}"
    return gpu_catalogue.PLAIN_DIMENSIONS.get(str(parsed), str(parsed))
