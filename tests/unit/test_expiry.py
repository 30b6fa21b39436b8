"""What time does to an allocation, as a table over a term."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from provisioners.expiry import InGrace, Life, Reclaim, ReviewOverdue, Running, Step, Warn, step
from tenants.states import ServiceClass

START = datetime(2026, 6, 1, tzinfo=UTC)
END = START + timedelta(days=30)


def life(service_class: ServiceClass = ServiceClass.STANDARD, warned: int | None = None, days: int = 30) -> Life:
    return Life(service_class, START, START + timedelta(days=days), warned, None)


def before(days: float) -> datetime:
    return END - timedelta(days=days)


@pytest.mark.parametrize(
    ("now", "warned", "expected"),
    [
        (before(20), None, Running(before(14))),
        (before(14), None, Warn(14, before(7))),
        (before(13), 14, Running(before(7))),
        (before(6), 14, Warn(7, before(1))),
        (before(0.5), 7, Warn(1, END)),
        (before(0.5), None, Warn(1, END)),
        (before(0.5), 1, Running(END)),
        (END, 1, InGrace(END + timedelta(days=7))),
        (END + timedelta(days=7), 1, Reclaim()),
    ],
)
def test_a_standard_term_is_warned_kept_and_reclaimed(now: datetime, warned: int | None, expected: Step) -> None:
    assert step(life(warned=warned), now) == expected


def test_trial_has_a_day_of_grace() -> None:
    assert step(life(ServiceClass.TRIAL), END + timedelta(hours=23)) == InGrace(END + timedelta(days=1))
    assert step(life(ServiceClass.TRIAL), END + timedelta(days=1)) == Reclaim()


def test_production_is_never_reclaimed_and_says_so_again_each_week() -> None:
    assert step(life(ServiceClass.PRODUCTION), END) == ReviewOverdue(0, END + timedelta(days=7))
    years = END + timedelta(days=7 * 60)
    assert step(life(ServiceClass.PRODUCTION), years) == ReviewOverdue(60, years + timedelta(days=7))


def test_a_term_shorter_than_a_warning_is_not_warned_at_its_start() -> None:
    assert step(life(days=5), START) == Running(START + timedelta(days=4))


def test_what_never_was_ready_has_no_end() -> None:
    assert step(Life(ServiceClass.STANDARD, None, None, None, None), END) == Running(None)
