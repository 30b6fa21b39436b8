"""What a snapshot remarks on beside our objects: strangers among them, and what is left of those that have gone.

What is left counts once every look for it has shown it for an hour: a machine that is just being made looks the same,
and of one that was just removed the driver itself takes the rest away. Since when is kept in the provider's row, as
any worker's look may be the next. It is removed by a person's word only, and only where its id is that of an object of
ours at this provider that has gone, or where the driver knows for certain: files of a live object, of another
installation's or of nobody's are data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from provisioners.driver import (
    Driver,
    DriverError,
    ObservedProvider,
    Remark,
    RemarkKind,
    RemovesLeftovers,
    TransientDriverError,
)
from provisioners.inventory_objects import placed
from tenants import findings
from tenants.actor import SYSTEM
from tenants.findings import LEFT_FILES, Seen
from tenants.models import Endpoint, Finding, Machine, Provider
from tenants.transactions import acting

Clock = Callable[[], datetime]

KINDS: Final = frozenset({str(RemarkKind.FOREIGN), LEFT_FILES})
MEMORY: Final = "left"
"""Where a provider's row remembers what the last look for leftovers showed: `<since when> <what>`."""
GRACE: Final = timedelta(hours=1)
"""So long the making of a machine may leave files that no machine has, and so long whoever removed one clears up."""


def unlooked(seen: ObservedProvider) -> frozenset[str]:
    """Return the kinds of which absence means nothing in this snapshot."""
    return KINDS - {str(kind) for kind in seen.looked_for}


def compare(
    provider: Provider, seen: ObservedProvider, before: Sequence[str], *, now: datetime
) -> tuple[list[Seen], list[str]]:
    """Return what is to be told, and what to remember of leftovers. `now`: when the snapshot was begun."""
    told: list[Seen] = []
    since = _remembered(before)
    left = list(before)
    if RemarkKind.LEFT in seen.looked_for:
        subjects = {one.subject for one in seen.remarks if one.kind is RemarkKind.LEFT}
        left = sorted(f"{since.get(subject, now).isoformat()} {subject}" for subject in subjects)
    for one in seen.remarks:
        if one.kind is RemarkKind.FOREIGN:
            told.append(Seen(str(one.kind), one.subject, f"{one.text}.", data={"boundary": str(one.uid or "")}))
        elif one.kind is RemarkKind.LEFT and now - since.get(one.subject, now) >= GRACE:
            told.append(_left(provider, one))
    return told, left


def _remembered(before: Sequence[str]) -> dict[str, datetime]:
    """Return leftover → since when each look has shown it; what an older version wrote counts from now on."""
    found = {}
    for entry in before:
        text, _, subject = entry.partition(" ")
        try:
            found[subject] = datetime.fromisoformat(text)
        except ValueError:
            continue
    return found


def _left(provider: Provider, one: Remark) -> Seen:
    whose, removable = "", one.removable
    if one.uid is not None:
        with acting(SYSTEM):
            rows: list[Any] = [
                placed(model._base_manager.all()).filter(place=one.uid).select_related("boundary").first()
                for model in (Machine, Endpoint)
            ]
        row = next((row for row in rows if row is not None), None)
        is_here = row is not None and row.boundary is not None and row.boundary.provider_id == provider.pk
        removable = is_here and row is not None and row.released_at is not None
        if removable:
            whose = "; that one was ours and has gone"
        elif is_here:
            whose = "; that one is ours and still wanted: it may be its data"
        else:
            whose = "; nothing here has its id: it may be another installation's"
    data = {"left": one.subject, "uid": str(one.uid or ""), "removable": removable}
    return Seen(LEFT_FILES, f"{one.subject} of {provider.name}", f"{one.text}{whose}.", data=data)


def delete_wanted(provider_id: UUID, driver: Driver, clock: Clock) -> int:
    """Have leftovers removed that an operator gave up; returns how many have gone. The driver looks once more."""
    with acting(SYSTEM):
        rows = Finding.objects.filter(provider_id=provider_id, kind=LEFT_FILES, resolved_at__isnull=True)
        wanted = list(rows.filter(data__action="delete").exclude(data__has_key="ignored").order_by("pk"))
    if not wanted or not isinstance(driver, RemovesLeftovers):
        return 0
    return sum(_delete(row, driver, clock) for row in wanted)


def _delete(finding: Finding, driver: RemovesLeftovers, clock: Clock) -> bool:
    if not finding.data.get("removable"):
        return False  # whose it is was found out since it was asked for
    try:
        gone = driver.remove_left(finding.data["left"])
    except TransientDriverError:
        return False
    except DriverError as error:
        with acting(SYSTEM):
            row = Finding.objects.select_for_update(no_key=True).get(pk=finding.pk)
            row.data = {**row.data, "trouble": f"{error.reason}: {error.detail}"[:300]}
            row.save(update_fields=["data"])
        return False
    if gone:
        with acting(SYSTEM):
            findings.close(finding, "deleted at the provider", now=clock())
    return gone
