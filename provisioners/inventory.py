"""The inventory pass: one snapshot of a provider, applied to hosts, GPUs, holds, findings and what passes look at.

The snapshot is read outside any transaction; each host that differs is then written in a short transaction
of its own as the system, under the ledger's lock order (host, devices by number), from rows read again
under that lock. A snapshot with nothing new writes one timestamp. What a provider says may raise an alarm,
keep room out of the market and correct where a hold lies; it can never free a tenant's hold, and an
incomplete list concludes nothing from absence.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import connection
from django.db.models import F, Func, JSONField, Q, Value

from provisioners import (
    host_plan,
    inventory_changes,
    inventory_findings,
    inventory_hosts,
    inventory_isolation,
    inventory_objects,
    inventory_remarks,
    inventory_uses,
)
from provisioners.driver import (
    Capabilities,
    Driver,
    DriverError,
    ObservedHost,
    ObservedProvider,
    ObservedUse,
    TransientDriverError,
)
from tenants import desired, findings, ledger
from tenants.actor import SYSTEM, Actor
from tenants.findings import Seen
from tenants.models import GpuDevice, Hold, Host, MigDevice, Provider, Unit, UsageRecord
from tenants.operations import idle_layouts
from tenants.states import HoldKind, HostState, Reason
from tenants.transactions import acting, current_actor, operation

Clock = Callable[[], datetime]

SECOND_LOOK: Final = timedelta(seconds=1)
"""What counts only when seen twice is looked at again this soon."""
BUDGET_S: Final = 40.0
"""Writing hosts and accepting them pauses after so long: a large estate is taken in by several passes."""
DUPLICATES: Final = "duplicates-in-lists"
ISOLATION: Final = ("restored", "shaken")
"""What a provider's row remembers of rules that were put back: those that were told, when all was tried again."""
KINDS: Final = (
    inventory_hosts.KINDS
    | inventory_findings.KINDS
    | inventory_objects.KINDS
    | inventory_remarks.KINDS
    | inventory_isolation.KINDS
    | frozenset({DUPLICATES})
)
"""Findings that open and close with what snapshots show."""


class InTransaction(RuntimeError):
    """A provider was about to be called inside a transaction."""


@dataclass(slots=True)
class Summary:
    """What one pass did, for logs and tests."""

    superseded: bool = False
    """A newer snapshot was applied before; this one was dropped."""
    hosts_changed: int = 0
    holds_changed: int = 0
    findings_changed: bool = False
    nudged: int = 0
    plans_moved: int = 0
    more: bool = False
    """Its time was over before all hosts were written or accepted; another pass should follow at once."""
    carves_idle: bool = False
    """What nobody uses is carved by itself here."""
    again_s: float | None = None
    """So soon a provider wants to be asked again about a host that is being tried."""

    @property
    def idle(self) -> bool:
        """Whether there was nothing new."""
        return not (
            self.hosts_changed or self.holds_changed or self.findings_changed or self.nudged or self.plans_moved
        )


def run(
    provider_id: UUID, driver: Driver, now: datetime, *, clock: Clock | None = None, budget_s: float = BUDGET_S
) -> Summary:
    """Read one provider and make our rows agree with what it shows; pauses `budget_s` after the read.

    `now` is the time just before the read: whatever happened in our rows after it outranks the snapshot.
    `clock` gives the time of what is written (default: `now`). Raises what `driver.snapshot` raises, after
    noting that the provider is not healthy.
    """
    if connection.in_atomic_block or current_actor() is not None:
        msg = "a provider is never called inside a transaction"
        raise InTransaction(msg)
    try:
        seen = driver.snapshot()
    except DriverError:
        with acting(SYSTEM):
            Provider.objects.filter(pk=provider_id, healthy=True).update(healthy=False)
        raise
    until = time.monotonic() + budget_s
    summary = apply(provider_id, seen, now, clock=clock, until=until)
    if not summary.superseded:
        looked, summary.again_s = accept_hosts(provider_id, driver, clock or (lambda: now), until=until)
        summary.more |= not looked
        summary.nudged += inventory_objects.delete_wanted(provider_id, driver, clock or (lambda: now))
        summary.nudged += inventory_remarks.delete_wanted(provider_id, driver, clock or (lambda: now))
        if summary.carves_idle:
            summary.plans_moved += _carve_idle(provider_id, (clock or (lambda: now))())
        summary.plans_moved += host_plan.advance_all(provider_id, driver, clock or (lambda: now))
    return summary


def _carve_idle(provider_id: UUID, now: datetime) -> bool:
    """Begin to carve what nobody uses for what waits; says whether there is something to carve."""
    with acting(SYSTEM):
        provider = Provider.objects.get(pk=provider_id)
    return idle_layouts.carve(provider=provider, actor=SYSTEM, now=now) is not None


def apply(
    provider_id: UUID,
    seen: ObservedProvider,
    now: datetime,
    *,
    clock: Clock | None = None,
    until: float = math.inf,
) -> Summary:
    """Write what a snapshot read at `now` shows, until `time.monotonic()` is `until`; the provider is not called."""
    with acting(SYSTEM):
        fresh = Provider.objects.filter(pk=provider_id, released_at__isnull=True).filter(
            Q(snapshot_at__isnull=True) | Q(snapshot_at__lte=now)
        )
        if not fresh.update(snapshot_at=now):
            return Summary(superseded=True)
        provider = Provider.objects.get(pk=provider_id)
        ledger.turn_dated(now=(clock or (lambda: now))())
    return _Pass(provider, seen, now, clock or (lambda: now), until).run()


@dataclass(frozen=True, slots=True)
class _Rows:
    """Our rows of some hosts, read at once."""

    hosts: Mapping[str, Host]
    devices: Mapping[UUID, list[GpuDevice]]
    holds: Mapping[UUID, list[Hold]]
    layouts: Mapping[UUID, frozenset[tuple[int, int, str]]]

    def known(self, host: Host) -> inventory_hosts.Known:
        held = {h.device_id for h in self.holds[host.pk] if h.kind == HoldKind.TENANT.value}
        return inventory_hosts.Known(host, self.devices[host.pk], self.layouts, held)


def _read(provider_id: UUID, only: UUID | None = None) -> _Rows:
    """Read hosts with devices, holds and layouts of a provider, or of one host; four queries."""
    hosts = Host.objects.filter(provider_id=provider_id)
    of: dict[str, Any] = {"host__provider_id": provider_id}
    if only is not None:
        hosts, of = hosts.filter(pk=only), {"host_id": only}
    devices: dict[UUID, list[GpuDevice]] = defaultdict(list)
    for device in GpuDevice.objects.filter(removed_at__isnull=True, **of).order_by("number"):
        devices[device.host_id].append(device)
    holds: dict[UUID, list[Hold]] = defaultdict(list)
    for hold in Hold.objects.filter(**of).order_by("device_number", "start", "pk"):
        holds[hold.host_id].append(hold)
    layouts: dict[UUID, set[tuple[int, int, str]]] = defaultdict(set)
    of_device = {f"device__{key}": value for key, value in of.items()}
    for mig in MigDevice.objects.filter(**of_device):
        layouts[mig.device_id].add((mig.start, mig.size, mig.profile))
    return _Rows(
        {host.provider_ref: host for host in hosts.order_by("pk")},
        devices,
        holds,
        {device: frozenset(windows) for device, windows in layouts.items()},
    )


@dataclass(slots=True)
class _Pass:
    """One snapshot being applied."""

    provider: Provider
    seen: ObservedProvider
    now: datetime
    clock: Clock
    until: float = math.inf
    summary: Summary = field(default_factory=Summary)
    found: list[Seen] = field(default_factory=list)
    absent: set[UUID] = field(default_factory=set)
    hosts: dict[str, ObservedHost] = field(default_factory=dict)
    uses: dict[str, list[ObservedUse]] = field(default_factory=lambda: defaultdict(list))
    foreign_room: dict[str, tuple[int, int]] = field(default_factory=dict)
    shown_on: dict[str, str] = field(default_factory=dict)
    """GPU id → host that shows it."""
    rows_on: dict[str, str] = field(default_factory=dict)
    """GPU id → host of its live row."""
    absent_before: frozenset[UUID] = frozenset()

    def run(self) -> Summary:
        self._index()
        with acting(SYSTEM):
            rows = _read(self.provider.pk)
        self.rows_on = {
            device.provider_ref: ref for ref, host in rows.hosts.items() for device in rows.devices[host.pk]
        }
        with acting(SYSTEM):
            differing = [host for host in rows.hosts.values() if self._differs(host, rows)]
        for host in differing:
            if self._has_time():
                self._write(host)
        for ref in sorted(self.hosts.keys() - rows.hosts.keys()):
            if self._has_time():
                self._write(self._discovered(ref))
        objects = inventory_objects.compare(
            self.provider, self.seen, now=self.now, clock=self.clock, suspects=self._memory("suspects")
        )
        self.found += [*objects.findings, *inventory_isolation.findings_of(self.seen.restored or ())]
        self.summary.nudged += objects.nudged
        self._finish(objects.suspects)
        return self.summary

    def _has_time(self) -> bool:
        self.summary.more |= time.monotonic() >= self.until
        return not self.summary.more

    # --- the snapshot, indexed ---------------------------------------------------------------------

    def _index(self) -> None:
        doubles = 0
        for shown in self.seen.hosts:
            doubles += shown.host in self.hosts
            self.hosts[shown.host] = shown
        for shown in self.hosts.values():
            self.shown_on.update({gpu.device: shown.host for gpu in shown.gpus})
        unique = dict.fromkeys(self.seen.uses)
        doubles += len(self.seen.uses) - len(unique)
        doubles += len(self.seen.objects) - len(dict.fromkeys(self.seen.objects))
        for use in unique:
            if use.size > 0:
                self.uses[use.host].append(use)
            elif use.ref is None:
                vcpu, memory = self.foreign_room.get(use.host, (0, 0))
                self.foreign_room[use.host] = (vcpu + use.vcpu, memory + use.memory_gib)
        if doubles:
            self.found.append(
                Seen(
                    DUPLICATES, str(self.provider.pk), "The provider's lists show entries twice; each was counted once."
                )
            )
        self.absent_before = frozenset(UUID(word) for word in self._memory("absent"))

    def _memory(self, name: str) -> list[str]:
        """Return what the last snapshot left to be seen again before it counts."""
        return list(self.provider.observed.get(name, []))

    def around(self, ref: str) -> inventory_hosts.Around:
        return inventory_hosts.Around(
            self.foreign_room.get(ref, (0, 0)),
            self.shown_on,
            self.rows_on,
            self.seen.complete,
        )

    # --- one host ----------------------------------------------------------------------------------

    def _discovered(self, ref: str) -> Host:
        self.summary.hosts_changed += 1
        return _discover(provider=self.provider, seen=self.hosts[ref], actor=SYSTEM, now=self.clock())

    def _differs(self, host: Host, rows: _Rows) -> bool:
        """Compare without a lock; findings and absences are collected here when nothing is to be written."""
        ref = host.provider_ref
        if host.state == HostState.REMOVED.value:
            return False
        news = inventory_hosts.compare(rows.known(host), self.hosts.get(ref), self.around(ref))
        if news.any:
            return True
        changes = self.use_changes(host, rows)
        if changes.any:
            return True
        self._collect(news, changes)
        return False

    def _collect(self, news: inventory_hosts.News, changes: inventory_changes.Changes) -> None:
        self.found += [*news.findings, *changes.findings]
        self.absent |= changes.absent

    def use_changes(self, host: Host, rows: _Rows) -> inventory_changes.Changes:
        """Compare uses with holds, in the open transaction."""
        uses = self.uses.get(host.provider_ref, [])
        holding = {hold.unit_id for hold in rows.holds[host.pk]}
        loose = {use.unit for use in uses if use.unit is not None} - holding
        facts, left = _facts(loose, since=self.now) if loose else ({}, frozenset[UUID]())
        return inventory_uses.plan(
            host,
            rows.devices[host.pk],
            rows.holds[host.pk],
            uses,
            units=facts,
            left=left,
            absent_before=self.absent_before,
            complete=self.seen.complete and host.provider_ref in self.hosts,
        )

    def _write(self, host: Host) -> None:
        news, changes = _write_host(work=self, host=host, actor=SYSTEM)
        self._collect(news, changes)
        self.summary.hosts_changed += news.any
        self.summary.holds_changed += len(changes.drops) + len(changes.moves) + len(changes.puts)

    # --- the end -----------------------------------------------------------------------------------

    def _finish(self, suspects: Sequence[str]) -> None:
        """Findings, who may be placed on, and what is to be remembered."""
        fields: dict[str, Any] = {}
        described = describe(self.seen.capabilities)
        if self.provider.capabilities != described:
            fields["capabilities"] = described
        if not self.provider.healthy:
            fields["healthy"] = True
        self.summary.carves_idle = idle_layouts.is_on(self.provider)
        left_before = self._memory(inventory_remarks.MEMORY)
        told, left = inventory_remarks.compare(self.provider, self.seen, left_before, now=self.now)
        self.found += told
        memory = {"suspects": sorted(suspects), "absent": sorted(str(hold) for hold in self.absent)}
        again = any(set(memory[name]) - set(self._memory(name)) for name in memory)
        if left or left_before:
            memory[inventory_remarks.MEMORY] = left
        kinds, news = KINDS - inventory_remarks.unlooked(self.seen), set[str]()
        if self.seen.restored is None:
            kinds -= inventory_isolation.KINDS  # nobody could look: what was told stays
        else:
            words = inventory_isolation.words(self.seen.restored)
            known, tried = map(self._memory, ISOLATION)
            news = inventory_isolation.news(words, known, shaken=tried, now=self.clock())
            memory["restored"] = sorted(set(words) & {*known, *news})
            if news or tried:
                memory["shaken"] = [self.clock().isoformat()] if news else tried
        if {name: sorted(self._memory(name)) for name in memory} != memory:
            # Merged by the database: people may ask for a test meanwhile, which stands beside it.
            fields["observed"] = Func(
                F("observed"), Value(memory, JSONField()), template="%(expressions)s", arg_joiner=" || ",
                output_field=JSONField(),
            )  # fmt: skip
            if again:
                fields["due_at"] = self.clock() + SECOND_LOOK
        # Provider, hosts, boundaries, findings, and only then events: the order of locks of everybody else.
        with acting(SYSTEM):
            if fields:
                Provider.objects.filter(pk=self.provider.pk).update(**fields)
            ledger.refresh_placeable(self.provider.pk)
            # What stands about hosts that were not looked at to the end is not closed.
            complete = self.seen.complete and not self.summary.more
            pending = findings.compare(self.provider.pk, self.found, kinds=kinds, complete=complete, now=self.clock())
            if pending.hosts:
                list(Host.objects.select_for_update(no_key=True).filter(pk__in=pending.hosts).order_by("pk"))
            shaken = inventory_isolation.shake(self.provider.pk, self.clock()) if news else 0
            synced = findings.write(pending, now=self.clock())
            if synced.any:
                ledger.refresh_placeable(self.provider.pk)  # of the hosts that are locked
            if news:
                desired.happened(
                    self.provider, "provider.isolation-restored", actor=SYSTEM, at=self.clock(), nudge=False,
                    what=sorted(news)[:20], boundaries=shaken,
                )  # fmt: skip
        self.summary.findings_changed = synced.any


def describe(capabilities: Capabilities) -> dict[str, Any]:
    """Return a provider's capabilities as its row stores them."""
    return {
        "kind": capabilities.kind,
        "version": capabilities.version,
        "boundary_kinds": sorted(str(kind) for kind in capabilities.boundary_kinds),
        "bindings": sorted(str(binding) for binding in capabilities.bindings),
        "features": dict(sorted(capabilities.features.items())),
        "missing": dict(sorted(capabilities.missing.items())),
        "simulated": capabilities.simulated,
        **({"lots": [asdict(lot) for lot in capabilities.lots]} if capabilities.lots else {}),
        **({} if capabilities.images is None else {"images": sorted(capabilities.images)}),
    }


def _facts(units: set[UUID], *, since: datetime) -> tuple[dict[UUID, inventory_changes.UnitFact], frozenset[UUID]]:
    """Return what our rows say of units, and which of them gave room back after the snapshot was begun."""
    facts = {unit: inventory_changes.UnitFact(live=False) for unit in units}
    for row in Unit.objects.filter(pk__in=units).select_related("host"):
        facts[row.pk] = inventory_changes.UnitFact(row.released_at is None, row.host.name if row.host else "")
    left = UsageRecord.objects.filter(unit_id__in=units, held_to__gte=since).values_list("unit_id", flat=True)
    return facts, frozenset(unit for unit in left if unit is not None)


@operation
def _discover(*, provider: Provider, seen: ObservedHost, actor: Actor, now: datetime) -> Host:
    """Make the row of a host that is new; nothing is placed on it before people open it."""
    host, made = Host.objects.get_or_create(
        provider=provider,
        provider_ref=seen.host,
        defaults={
            "name": seen.name[:200],
            "state": HostState.JOINING.value,
            "binding": str(seen.binding),
            "boundary_kinds": sorted(str(kind) for kind in seen.boundary_kinds),
            "healthy": seen.healthy,
            "message": seen.message[:500],
            "total_vcpu": seen.vcpu,
            "total_memory_gib": seen.memory_gib,
            "free_vcpu": seen.vcpu,
            "free_memory_gib": seen.memory_gib,
            "seen_at": now,
            "created_at": now,
        },
    )
    if made:
        desired.created(host, "host.discovered", actor=actor, at=now, gpus=len(seen.gpus), provider=provider.pk)
    return host


@operation
def _write_host(*, work: _Pass, host: Host, actor: Actor) -> tuple[inventory_hosts.News, inventory_changes.Changes]:
    """Write all that differs on one host, from rows read again under its lock."""
    Host.objects.select_for_update(no_key=True).get(pk=host.pk)
    now = work.clock()
    rows = _read(work.provider.pk, host.pk)
    fresh = rows.hosts[host.provider_ref]
    seen = work.hosts.get(host.provider_ref)
    events: list[tuple[str, dict[str, Any]]] = []
    news = inventory_hosts.compare(rows.known(fresh), seen, work.around(host.provider_ref))
    if news.any:
        _write_news(fresh, news, rows, events, now=now)
        rows = _read(work.provider.pk, host.pk)
        fresh = rows.hosts[host.provider_ref]
    changes = work.use_changes(fresh, rows)
    for hold in changes.drops:
        ledger.drop(hold, now=now)
    if changes.moves:
        moved = ledger.rebind(fresh.pk, changes.moves, now=now)
        events.append(("host.rebound", {"reported": len(changes.moves), "moved": moved}))
    for put in changes.puts:
        ledger.put(
            put.kind, put.device, put.start, put.size, from_at=now, to_at=None, note=put.note, now=now,
            vcpu=put.vcpu, memory_gib=put.memory_gib,
        )  # fmt: skip
    if changes.drops or changes.puts:
        events.append(("host.uses-changed", {"dropped": len(changes.drops), "put": len(changes.puts)}))
    _tell_holders(fresh, news, rows, now=now)
    for kind, data in events:
        desired.happened(fresh, kind, actor=actor, at=now, nudge=False, **data)
    return news, changes


def _write_news(
    host: Host, news: inventory_hosts.News, rows: _Rows, events: list[tuple[str, dict[str, Any]]], *, now: datetime
) -> None:
    """Write what differs of a host and its GPUs."""
    if news.fields:
        Host.objects.filter(pk=host.pk).update(**news.fields, seen_at=now, version=F("version") + 1)
        events.append(("host.changed", {"fields": sorted(news.fields)}))
    refs = {device.pk: device.provider_ref for device in rows.devices[host.pk]}
    made = {gpu.device: inventory_hosts.new_device(host, gpu, now=now) for gpu in news.new_gpus}
    for old in (*news.replaced, *news.removed):
        # First off the list, so that the new one may have its id or its index; its holds follow below.
        GpuDevice.objects.filter(pk=old).update(removed_at=now, placeable=False)
    for ref, device in made.items():
        device.save(force_insert=True)
        events.append(("host.gpu-added", {"device": ref, "product": device.product}))
    for old, heir in news.replaced.items():
        moves = [
            {"hold": str(h.pk), "device": str(made[heir].pk), "start": h.start, "settled": h.settled}
            for h in rows.holds[host.pk]
            if h.device_id == old and h.kind == HoldKind.TENANT.value
        ]
        if moves:
            ledger.rebind(host.pk, moves, now=now)
        events.append(("host.gpu-replaced", {"device": refs[old], "by": heir, "holds": len(moves)}))
    for old in (*news.replaced, *news.removed):
        for hold in rows.holds[host.pk]:
            if hold.device_id == old and hold.kind != HoldKind.TENANT.value:
                ledger.drop(hold.pk, now=now)
    events += [("host.gpu-removed", {"device": refs[old]}) for old in news.removed]
    for device_id, fields in news.gpu_fields.items():
        GpuDevice.objects.filter(pk=device_id).update(**fields)
        if "healthy" in fields:
            word = "host.gpu-recovered" if fields["healthy"] else "host.gpu-faulty"
            events.append((word, {"device": refs[device_id], "message": fields.get("message", "")}))
    for device_id, windows in news.layouts.items():
        MigDevice.objects.filter(device_id=device_id).delete()
        MigDevice.objects.bulk_create(
            MigDevice(device_id=device_id, profile=profile, start=start, size=size, seen_at=now)
            for start, size, profile in windows
        )
    ledger.recount(host.pk, now=now)


def _tell_holders(host: Host, news: inventory_hosts.News, rows: _Rows, *, now: datetime) -> None:
    """Say to whoever holds room here what happened under him: hardware gone bad, well again, or replaced.

    After a replacement a workload has to be made anew on the other GPU, which its owner's pass sees.
    """
    held = [hold for hold in rows.holds[host.pk] if hold.unit_id is not None]
    if "healthy" in news.fields:
        units = [hold.unit_id for hold in held if hold.unit_id is not None]
        if news.fields["healthy"]:
            inventory_objects.nudge_units(units, now=now)
        else:
            inventory_objects.tell_unhealthy(units, Reason.HOST_LOST, "Its host is not available.", now=now)
    renewed = [device.pk for device in rows.devices[host.pk] if device.provider_ref in set(news.replaced.values())]
    renewed += [pk for pk, fields in news.gpu_fields.items() if fields.get("healthy") is True]
    inventory_objects.nudge_units([h.unit_id for h in held if h.unit_id and h.device_id in renewed], now=now)
    for pk, fields in news.gpu_fields.items():
        if fields.get("healthy") is False:
            units = [hold.unit_id for hold in held if hold.unit_id is not None and hold.device_id == pk]
            inventory_objects.tell_unhealthy(units, Reason.UNHEALTHY, "A GPU that it uses is faulty.", now=now)


# --- acceptance -------------------------------------------------------------------------------------


def accept_hosts(
    provider_id: UUID, driver: Driver, clock: Clock, *, until: float = math.inf
) -> tuple[bool, float | None]:
    """Run the acceptance that operators have asked for; the host is accepted only if every check passed.

    Returns whether all were looked at before `time.monotonic()` was `until`, and the shortest time after which the
    provider wants to be asked again.
    """
    soon: list[float] = []
    with acting(SYSTEM):
        wanted = list(
            Host.objects.filter(
                provider_id=provider_id,
                state__in=[HostState.JOINING.value, HostState.MAINTENANCE.value],
                acceptance__has_key="requested_at",
                healthy=True,
            ).order_by("pk")
        )
    for host in wanted:
        if time.monotonic() >= until:
            return False, min(soon, default=None)
        try:
            answer = driver.acceptance(host.provider_ref)
        except TransientDriverError as error:
            if error.retry_after_s is not None:
                soon.append(error.retry_after_s)
            continue  # asked again with the next snapshot
        except DriverError as error:
            verdict = {"passed": False, "checks": [], "message": error.detail}
        else:
            verdict = {
                "passed": answer.passed,
                "checks": [{"name": name, "passed": ok, "seen": text} for name, ok, text in answer.checks],
            }
        _judge(host=host, verdict=verdict, actor=SYSTEM, now=clock())
    return True, min(soon, default=None)


@operation
def _judge(*, host: Host, verdict: dict[str, Any], actor: Actor, now: datetime) -> bool:
    """Store an acceptance's outcome and, if it passed, move the host on."""
    row = Host.objects.select_for_update(no_key=True).get(pk=host.pk)
    if row.acceptance.get("requested_at") != host.acceptance["requested_at"]:
        return False
    passed = bool(verdict["passed"])
    row.acceptance = {**verdict, "at": now.isoformat(), "asked_by": row.acceptance.get("requested_by")}
    if passed and row.state in {HostState.JOINING.value, HostState.MAINTENANCE.value}:
        row.state = HostState.ACCEPTED.value
    row.save(update_fields=["acceptance", "state"])
    desired.changed(row, "host.accepted" if passed else "host.acceptance-failed", actor=actor, at=now, **verdict)
    return True
