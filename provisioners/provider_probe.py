"""Answering a test that an operator asked for: what works at a provider, right by right, and what was found there.

The provider is called outside any transaction, switched on or off; only the answer is written, into `observed` of
its row. A test that passes also takes its inventory in, so that hosts and foreign use can be looked at before
anything is handed over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from provisioners import certificate_checks, inventory
from provisioners.driver import Driver, DriverError, ObservedProvider
from tenants import desired
from tenants.actor import SYSTEM, Actor
from tenants.models import Provider
from tenants.operations.providers import ASKED, TESTED
from tenants.transactions import operation

Clock = Callable[[], datetime]
RIGHT: Final = "right:"
"""What keys of `Capabilities.missing` begin with that name a right without which a provider cannot be used."""
MOST: Final = 500
"""Characters of one answer that are kept."""


@dataclass(slots=True)
class Check:
    """One thing that was tried."""

    name: str
    """`connect`, `capabilities`, `inventory`, `right:<words>` for a right, or `feature:<name>` for a gap."""
    passed: bool
    seen: str = ""
    """What was seen, or what would mend it."""
    raw: str = ""
    """The provider's own words."""
    needed: bool = True
    """Without it the provider cannot be used at all; a gap only takes something away."""
    field: str = ""
    """The setting or secret that would mend it (`config.ca_pem`, `secret.password`), `""` where none is known."""


@dataclass(slots=True)
class Tested:
    """What a test found."""

    checks: list[Check] = field(default_factory=list)
    snapshot: ObservedProvider | None = None

    @property
    def passed(self) -> bool:
        """Whether the provider can be used."""
        return all(check.passed for check in self.checks if check.needed)


def is_asked(provider: Provider) -> bool:
    """Whether somebody waits for a test."""
    return ASKED in provider.observed


def answer(provider: Provider, driver_of: Callable[[Provider], Driver], clock: Clock) -> bool:
    """Test a provider, take its inventory in if it passed, and store the answer; returns whether it passed."""
    began, started = clock(), time.monotonic()
    found = run(provider, driver_of)
    took_ms = round((time.monotonic() - started) * 1000)
    if found.passed and found.snapshot is not None:
        inventory.apply(provider.pk, found.snapshot, began, clock=clock)
    sentence, field = certificate_checks.gap(provider, now=clock())
    if sentence:
        found.checks.append(
            Check("feature:certificates", passed=False, seen=sentence[:MOST], needed=False, field=field)
        )
    _store(provider_id=provider.pk, found=found, took_ms=took_ms, actor=SYSTEM, now=clock())
    return found.passed


def run(provider: Provider, driver_of: Callable[[Provider], Driver]) -> Tested:
    """Call a provider and say what works; raises nothing of the provider's."""
    found = Tested()
    try:
        driver = driver_of(provider)
    except DriverError as error:
        found.checks.append(_failed("connect", error))
        return found
    try:
        able = driver.capabilities()
    except DriverError as error:
        found.checks.append(_failed("connect", error))
        return found
    found.checks.append(Check("connect", passed=True, seen=able.version))
    try:
        shown = driver.snapshot()
    except DriverError as error:
        found.checks.append(_failed("inventory", error))
        return found
    gpus = sum(len(host.gpus) for host in shown.hosts)
    words = ", ".join(
        f"{count} {noun}{'' if count == 1 else 's'}"
        for count, noun in ((len(shown.hosts), "host"), (gpus, "GPU"), (len(shown.uses), "use"))
    )
    if not shown.complete:
        words += "; a list was not complete: the account may not read all of it"
    found.checks.append(Check("inventory", passed=shown.complete, seen=words))
    found.checks += [
        Check(name, passed=False, seen=remedy[:MOST])
        if name.startswith(RIGHT)
        else Check(f"feature:{name}", passed=False, seen=remedy[:MOST], needed=False)
        for name, remedy in sorted(able.missing.items())
    ]
    found.snapshot = shown
    return found


def _failed(name: str, error: DriverError) -> Check:
    return Check(name, passed=False, seen=error.detail[:MOST], raw=error.raw[:MOST], field=error.field)


@operation
def _store(*, provider_id: UUID, found: Tested, took_ms: int, actor: Actor, now: datetime) -> None:
    row = Provider.objects.select_for_update(no_key=True).get(pk=provider_id)
    asked: dict[str, Any] = row.observed.get(ASKED, {})
    rest = {key: value for key, value in row.observed.items() if key != ASKED}
    row.observed = {
        **rest,
        TESTED: {
            "passed": found.passed,
            "at": now.isoformat(),
            "asked_by": asked.get("by", ""),
            "took_ms": took_ms,
            "checks": [asdict(check) for check in found.checks],
        },
    }
    row.save(update_fields=["observed"])
    desired.happened(row, "provider.tested", actor=actor, at=now, nudge=False, passed=found.passed)
