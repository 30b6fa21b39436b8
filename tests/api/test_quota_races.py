"""Racers that come through HTTP: whole requests, with tokens, idempotency keys and problems, at the same time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from django.db import transaction
from django.db.models import Sum

from tenants.models import Allocation, QuotaCharge
from tenants.operations import allocations
from tests import factories
from tests.domain.test_races import DIMENSIONS, RACERS, RACES, ROUNDS, estate, limited, race

pytestmark = pytest.mark.usefixtures("db")


@pytest.mark.slow
@pytest.mark.parametrize(("dimension", "on_parent"), RACES)
def test_eight_racers_through_the_api_never_go_beyond_a_quota(
    api: Any, dimension: str, on_parent: bool, now: datetime
) -> None:
    estate()
    profile, vcpu, memory, each = DIMENSIONS[dimension]
    parent = factories.tenant()
    children = [factories.tenant(parent=parent), factories.tenant(parent=parent)]
    limited(parent, dimension, 5 * each if on_parent else 1_000_000)
    for child in children:
        limited(child, dimension, 1_000_000 if on_parent else 5 * each)
    people = [factories.member(child) for child in children]
    callers = [[api(person) for _ in range(RACERS)] for person in people]
    unit = {"gpu": {"product": "H100-80GB", "profile": profile}, "vcpu": vcpu, "memory_gib": memory}

    for turn in range(ROUNDS):
        sides = [n % 2 if on_parent else 0 for n in range(RACERS)]
        answers = race(
            [
                lambda n=n, side=side, turn=turn: callers[side][n].post(
                    f"tenants/{children[side].name}/allocations",
                    {"name": f"r{turn}-{n}", "units": [unit], "on_shortage": "fail"},
                )
                for n, side in enumerate(sides)
            ]
        )

        assert sorted(answer.status for answer in answers) == [201] * 5 + [409] * 3, answers
        assert {answer.body["code"] for answer in answers if answer.status == 409} == {"quota-exceeded"}
        assert QuotaCharge.objects.filter(dimension=dimension).aggregate(s=Sum("amount"))["s"] == 5 * each
        for row in Allocation.objects.filter(released_at=None).select_related("tenant"):
            side = children.index(row.tenant)
            allocations.release(allocation=row, actor=factories.actor(people[side]), now=now)
            with transaction.atomic():
                allocations.finish(row, now=now)
