"""When periods of budgets begin. Pure; gateways have the same in their protocol, and one test holds both together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tenants.states import BudgetPeriod


def start_of(period: BudgetPeriod, at: datetime) -> datetime:
    """Return when the period began, in UTC, that holds a moment (aware)."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is BudgetPeriod.DAY:
        return day
    return day - timedelta(days=day.weekday()) if period is BudgetPeriod.WEEK else day.replace(day=1)


def end_of(period: BudgetPeriod, at: datetime) -> datetime:
    """Return when the period ends that holds a moment."""
    start = start_of(period, at)
    days = {BudgetPeriod.DAY: 1, BudgetPeriod.WEEK: 7}.get(period)
    return start + timedelta(days=days) if days else (start + timedelta(days=32)).replace(day=1)
