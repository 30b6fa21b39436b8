"""Findings: what does not fit together and needs a person. One open row per (kind, subject).

Passes say with `sync` all that they see at once: new findings open, known ones move `last_seen_at`, those no
longer seen close by themselves. Plain functions inside the caller's transaction. An ignored finding stays
open and silent as long as it is seen, so that the same thing is not reported again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from tenants import desired
from tenants.actor import SYSTEM
from tenants.models import Finding

ORPHAN: Final = "orphan"
"""An object with our mark that belongs to no live row; an operator may have it deleted."""
STRAY_USE: Final = "stray-use"
"""A unit of ours that runs where it holds nothing; an operator may have its window adopted."""
LEFT_FILES: Final = "left-files"
"""Files that are left of a machine; an operator may have them deleted where that machine was ours and has gone."""
STEP_OVERDUE: Final = "step-overdue"
"""A step whose task at the provider does not end."""
WRONG_DEVICE: Final = "wrong-device"
"""A unit runs on another GPU than the one we named; an operator may let its window follow."""
HOST_MISSING: Final = "host-missing"
GPU_MISSING: Final = "gpu-missing"
"""Hardware that is not shown any more; an operator may take it out here."""
PRODUCT_CHANGED: Final = "gpu-product-changed"
BINDING_CHANGED: Final = "host-binding-changed"
"""Hardware that is another than when it was taken in; an operator may take it as it is now."""
AGAIN: Final = "again"
"""In a finding's data: how often it was opened again."""
SEEN_EVERY: Final = timedelta(minutes=1)
"""`last_seen_at` is moved no oftener: a provider with old findings is still an idle one."""
NOT_SHOWN: Final = "no longer seen"


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing found now."""

    kind: str
    subject: str
    """Stable key; at most 300 characters."""
    detail: str
    host: UUID | None = None
    device: UUID | None = None
    blocks_placement: bool = False
    """Nothing new is placed on the device (or the host, without one) while it is open."""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Synced:
    """What a sync changed."""

    opened: int = 0
    changed: int = 0
    closed: int = 0
    new: tuple[Seen, ...] = ()
    """What opened."""

    @property
    def any(self) -> bool:
        """Whether a row that placement or people look at changed."""
        return bool(self.opened or self.changed or self.closed)


@dataclass(frozen=True, slots=True)
class Pending:
    """What differs between the open findings and what is seen; nothing of it is written yet."""

    provider: UUID
    opening: tuple[Seen, ...] = ()
    changing: Mapping[UUID, Seen] = field(default_factory=dict)
    still_seen: tuple[UUID, ...] = ()
    closing: tuple[UUID, ...] = ()
    hosts: frozenset[UUID] = frozenset()
    """What of the estate it is about: locked before it is written, because hosts come before findings."""


def compare(
    provider: UUID,
    seen: Iterable[Seen],
    *,
    kinds: frozenset[str],
    complete: bool,
    now: datetime,
    keep: int = 500,
    prefix: str = "",
) -> Pending:
    """Return what differs between the open findings of a provider and what is seen. Parameters as of `sync`."""
    wanted = {(item.kind, item.subject[:300]): item for item in seen}
    known = {
        (row.kind, row.subject): row
        for row in Finding.objects.filter(
            provider_id=provider, kind__in=kinds, subject__startswith=prefix, resolved_at__isnull=True
        )
    }
    opening: list[Seen] = []
    changing: dict[UUID, Seen] = {}
    stale: list[UUID] = []
    hosts: set[UUID | None] = set()
    for key, item in sorted(wanted.items()):
        row = known.get(key)
        if row is None:
            if len(opening) < keep:
                opening.append(item)
                hosts.add(item.host)
        elif _differs(row, item):
            changing[row.pk] = item
            hosts |= {row.host_id, item.host}
        elif now - row.last_seen_at >= SEEN_EVERY:
            stale.append(row.pk)
    gone = [row for key, row in sorted(known.items()) if key not in wanted] if complete else []
    hosts.update(row.host_id for row in gone)
    return Pending(
        provider,
        tuple(opening),
        changing,
        tuple(stale),
        tuple(row.pk for row in gone),
        frozenset(host for host in hosts if host is not None),
    )


def write(pending: Pending, *, now: datetime, resolution: str = NOT_SHOWN, within: timedelta | None = None) -> Synced:
    """Write what `compare` found; what somebody settled meanwhile is left so.

    All rows are locked before the first event: whoever resolves one has it locked before his event too.
    """
    touched = {*pending.changing, *pending.closing}
    rows = {
        row.pk: row
        for row in Finding.objects.select_for_update(no_key=True)
        .filter(pk__in=touched, resolved_at__isnull=True)
        .order_by("pk")
    } if touched else {}  # fmt: skip
    if pending.still_seen:
        Finding.objects.filter(pk__in=pending.still_seen).update(last_seen_at=now)
    new = []
    for item in pending.opening:
        if within is None or not _opened_again(pending.provider, item, now=now, since=now - within):
            _open(pending.provider, item, now=now)
            new.append(item)
    changed = closed = 0
    for pk, item in pending.changing.items():
        if (row := rows.get(pk)) is not None:
            _change(row, item, now=now)
            changed += 1
    for pk in pending.closing:
        if (row := rows.get(pk)) is not None:
            closed += close(row, resolution, now=now)
    return Synced(len(pending.opening), changed, closed, tuple(new))


def sync(
    provider: UUID,
    seen: Iterable[Seen],
    *,
    kinds: frozenset[str],
    complete: bool,
    now: datetime,
    keep: int = 500,
    prefix: str = "",
    resolution: str = NOT_SHOWN,
    within: timedelta | None = None,
) -> Synced:
    """Bring the open findings of `kinds` of a provider, and of subjects with `prefix`, in line with what is seen.

    Without `complete` nothing is closed: absence then means nothing. At most `keep` new ones open at once; a
    provider that has gone mad fills no table. One that was settled less than `within` ago is opened again without
    a word, as it was left: what comes and goes is one finding.
    """
    pending = compare(provider, seen, kinds=kinds, complete=complete, now=now, keep=keep, prefix=prefix)
    return write(pending, now=now, resolution=resolution, within=within)


def close(row: Finding, resolution: str, *, now: datetime) -> bool:
    """Resolve an open finding; False when somebody else did."""
    moved = Finding.objects.filter(pk=row.pk, resolved_at__isnull=True).update(
        resolved_at=now, resolution=resolution[:500], version=row.version + 1
    )
    if moved:
        row.resolved_at, row.resolution = now, resolution[:500]
        if AGAIN not in row.data:
            desired.happened(row, "finding.closed", actor=SYSTEM, at=now, nudge=False, resolution=resolution[:200])
    return bool(moved)


def ignored(row: Finding) -> bool:
    """Whether a person said that this one is known and all right."""
    return "ignored" in row.data


def _opened_again(provider: UUID, item: Seen, *, now: datetime, since: datetime) -> bool:
    """Open the newest row of a subject that was settled since; False without one."""
    rows = Finding.objects.filter(provider_id=provider, kind=item.kind, subject=item.subject[:300])
    row = rows.filter(resolved_at__gte=since).order_by("-resolved_at").first()
    if row is None:
        return False
    row.resolved_at, row.resolution = None, ""
    row.data = {**row.data, AGAIN: int(row.data.get(AGAIN, 0)) + 1}
    row.save(update_fields=["resolved_at", "resolution", "data"])
    _change(row, item, now=now)
    return True


def _open(provider: UUID, item: Seen, *, now: datetime) -> None:
    row = Finding.objects.create(
        kind=item.kind,
        provider_id=provider,
        host_id=item.host,
        device_id=item.device,
        subject=item.subject[:300],
        detail=item.detail[:1000],
        data=dict(item.data),
        blocks_placement=item.blocks_placement,
        first_seen_at=now,
        last_seen_at=now,
    )
    desired.happened(row, "finding.opened", actor=SYSTEM, at=now, nudge=False, finding=item.kind, detail=row.detail)


def _differs(row: Finding, item: Seen) -> bool:
    blocks = item.blocks_placement and not ignored(row)
    return (
        row.detail != item.detail[:1000]
        or row.blocks_placement != blocks
        or row.host_id != item.host
        or row.device_id != item.device
    )


def _change(row: Finding, item: Seen, *, now: datetime) -> None:
    row.detail, row.host_id, row.device_id = item.detail[:1000], item.host, item.device
    row.blocks_placement = item.blocks_placement and not ignored(row)
    row.data = {**item.data, **{key: row.data[key] for key in ("ignored", "action", AGAIN) if key in row.data}}
    row.last_seen_at, row.version = now, row.version + 1
    row.save(
        update_fields=["detail", "host", "device", "blocks_placement", "data", "last_seen_at", "version"],
    )
