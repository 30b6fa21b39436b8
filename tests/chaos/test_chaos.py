"""A short form of the chaos scenarios on one stack; `python -m tests.chaos` has the long ones."""

from __future__ import annotations

import pytest

from tests.chaos import blackout, broker, database, facts, outage
from tests.chaos.stack import Stack


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_what_was_accepted_is_done_once_without_broker_without_postgresql_and_after_an_outage() -> None:
    # one test, so that a parallel run starts one stack only
    with Stack() as stack:
        without_broker = broker.run(stack, short=True)
        with_crashes = database.run(stack, times=2)
        after_outage = outage.run(stack, away_s=5.0)
        after_blackout = blackout.run(stack, away_s=5.0, settled_s=5.0)

    facts.insist([*without_broker, *with_crashes, *after_outage, *after_blackout])
