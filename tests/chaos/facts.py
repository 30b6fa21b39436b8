"""What must hold after any disturbance, and the table that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.chaos.stack import ChaosFailed, Stack, until

SETTLED_S: Final = 120.0
PRODUCTS: Final = ("endpoint", "machine", "namespace")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    scenario: str
    what: str
    figure: str
    ok: bool


def once(stack: Stack, scenario: str) -> list[Row]:
    """Return rows on everything having been done exactly once: names, creation, first readiness, release."""
    rows = []
    for what, query in ONCE.items():
        count = stack.number(f"SELECT count(*) FROM ({query}) AS twice")
        rows.append(Row(scenario, what, str(count), count == 0))
    return rows


ONCE: Final = {
    "live allocations or endpoints with one name twice": """
        SELECT tenant_id, name FROM tenants_allocation WHERE released_at IS NULL GROUP BY 1, 2 HAVING count(*) > 1
        UNION ALL
        SELECT tenant_id, name FROM tenants_endpoint WHERE released_at IS NULL GROUP BY 1, 2 HAVING count(*) > 1""",
    "created, ready or given back twice": """
        SELECT object_id, kind FROM tenants_event
        WHERE kind ~ '[.](created|requested|first-ready|given-back|released)$'
        GROUP BY 1, 2 HAVING count(*) > 1""",
}


def clean(stack: Stack, scenario: str, *, empty: bool) -> list[Row]:
    """Return rows on the ledger, the event chains and, where nothing should be left, the simulated estates."""
    rows = []
    for command in ("ledger_audit", "audit_verify"):
        status, said = stack.command(command)
        rows.append(Row(scenario, f"{command}", said.splitlines()[-1][:90] if said else "no output", status == 0))
    if empty:
        left = stack.leftovers()
        rows.append(Row(scenario, "left at the simulated provider", str(left[:3] or 0), not left))
        holds = stack.number("SELECT count(*) FROM tenants_hold WHERE kind = 'tenant'")
        rows.append(Row(scenario, "holds left", str(holds), holds == 0))
    bugs = stack.words()
    rows.append(Row(scenario, "bugs in the logs", str(bugs[:2] or 0), not bugs))
    return rows


def all_released(stack: Stack, *, within_s: float = SETTLED_S) -> float:
    """Wait until nothing of the tenants is left; return how long it took."""
    query = (
        "SELECT (SELECT count(*) FROM tenants_endpoint WHERE released_at IS NULL)"
        " + (SELECT count(*) FROM tenants_allocation WHERE released_at IS NULL)"
        " + (SELECT count(*) FROM tenants_boundary WHERE released_at IS NULL)"
    )
    return until(lambda: stack.number(query) == 0, within_s=within_s, what="everything is released")


def show(rows: Sequence[Row]) -> int:
    """Print the table; return how many lines failed."""
    width = max((len(row.what) for row in rows), default=0)
    for row in rows:
        print(f"{'ok  ' if row.ok else 'FAIL'}  {row.scenario:<18} {row.what:<{width}}  {row.figure}", flush=True)
    failed = sum(not row.ok for row in rows)
    print(f"{len(rows)} checks, {failed} failed", flush=True)
    return failed


def insist(rows: Sequence[Row]) -> None:
    """Raise `ChaosFailed` naming the rows that failed."""
    bad = [f"{row.scenario}: {row.what}: {row.figure}" for row in rows if not row.ok]
    if bad:
        raise ChaosFailed("\n".join(bad))
