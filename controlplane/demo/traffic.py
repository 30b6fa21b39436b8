"""Usage of the demo's endpoints, hour by hour, reported as gateways report it. Invented, and no faster than the GPU.

A working day's curve, quieter at weekends, growing a little; the ceiling is the estimate of `tenants.fit`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from django.db.models import Q

from controlplane.demo import minutes
from controlplane.demo.cast import MODELS
from controlplane.demo.programme import Item
from tenants import endpoint_minutes, fit, models_catalogue
from tenants.actor import SYSTEM, Actor, Kind
from tenants.models import Endpoint, EndpointKey, GatewayReplica
from tenants.operations import agents
from tenants.operations.agents import UsageLine, UsageTotals
from tenants.pricing import PriceList, hour_of
from tenants.transactions import acting, reading

HOUR: Final = timedelta(hours=1)
BATCH_HOURS: Final = 24 * 5
"""Hours of one report; a real gateway reports within seconds."""
PROMPT_TOKENS: Final = 420
ANSWER_TOKENS: Final = 180
"""Of one request, on average."""
EPOCH: Final = datetime.fromtimestamp(0, UTC)
"""Any moment will do where no price is asked for."""


def report(
    endpoint: UUID,
    item: Item,
    *,
    since: datetime,
    until: datetime,
    dice: random.Random,
    closely_from: datetime | None = None,
) -> int:
    """Report what an endpoint served in a time of whole hours; return in how many hours not told of before.

    From `closely_from` on also by the minute, as charts show it. Nothing where it was not ready yet, or its gateway is
    gone: what that had not reported is lost, as ever.
    """
    with reading(SYSTEM):
        row = Endpoint.objects.get(pk=endpoint)
        key = EndpointKey.objects.filter(endpoint=row).order_by("created_at").first()
        own = Q(unit__allocation=row.allocation_id) | Q(unit=None, boundary=row.boundary_id)
        gateway = GatewayReplica.objects.filter(own).order_by("-removed_at", "created_at").first()
    if row.ready_at is None or key is None or gateway is None or gateway.removed_at is not None or not item.busy:
        return 0
    end = min(until, row.deletion_requested_at or until)
    start = max(row.ready_at, since)
    lines = list(_lines(row.pk, key.public_id, item, start, end, dice))
    actor = Actor(Kind.AGENT, gateway.pk, name=f"gateway {gateway.pk}")
    for first in range(0, len(lines), BATCH_HOURS):
        batch = lines[first : first + BATCH_HOURS]
        close = (
            minutes.spread(batch, since=start, until=end, shown_from=closely_from, dice=dice) if closely_from else []
        )
        totals = UsageTotals(
            uuid5(NAMESPACE_URL, f"demo:{row.pk}:{max(batch[0].hour, since).isoformat()}"),
            tuple(batch),
            {key.public_id: min(batch[-1].hour + HOUR, end)},
            tuple(close),
        )
        agents.count_usage(gateway=gateway.pk, totals=totals, actor=actor, now=min(batch[-1].hour + HOUR, end))
        if close:
            with acting(SYSTEM):
                endpoint_minutes.keep(gateway, minutes.looks(close, dice))
    is_told_in_part = bool(lines) and start == since and lines[0].hour < start
    return len(lines) - is_told_in_part


def _lines(
    endpoint: UUID, key: str, item: Item, start: datetime, end: datetime, dice: random.Random
) -> Iterator[UsageLine]:
    ceiling = _tokens_hour(item)
    hour = hour_of(start)
    while hour < end:
        part = (min(end, hour + HOUR) - max(start, hour)) / HOUR
        growth = 1 + (hour.timetuple().tm_yday % 30) / 60
        wish = item.busy * 0.05 * ceiling * _curve(hour) * growth * dice.uniform(0.7, 1.35) * part
        requests = int(min(wish, 0.9 * ceiling * part) / ANSWER_TOKENS)
        if requests:
            errors = sum(dice.random() < 0.002 for _ in range(min(requests, 2000)))
            answers = int(requests * ANSWER_TOKENS * dice.uniform(0.85, 1.15))
            prompts = int(requests * PROMPT_TOKENS * dice.uniform(0.8, 1.2))
            yield UsageLine(endpoint, key, 1, hour, requests, min(errors, requests), prompts, answers)
        hour += HOUR


def _curve(hour: datetime) -> float:
    """Return how busy an hour is: 0.15 at night, about 1 at two in the afternoon, a third of it at weekends."""
    day = 0.15 + 0.85 * max(0.0, math.sin(math.pi * (hour.hour - 6) / 15)) if 6 <= hour.hour <= 21 else 0.15
    return day * (0.35 if hour.weekday() >= 5 else 1.0)


def _tokens_hour(item: Item) -> int:
    """Return how many tokens an item's size could write in an hour: the fit's estimate for eight at once."""
    name = next(model.id for model in MODELS if model.name == item.model)
    found = fit.choose(
        models_catalogue.model(name), users=8, context_tokens=1024, products=[item.product], prices=PriceList(),
        at=EPOCH,
    )  # fmt: skip
    sizes = {(one.size.profile, one.size.count): one.estimated_tokens_s for one in found.offers}
    return sizes.get((item.profile, item.count), 40) * 3600
