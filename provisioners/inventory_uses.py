"""What a host's GPUs are really used for, against what the ledger holds there: which holds move, come and go.

Pure: rows and observations in, `Changes` out; `inventory.py` applies them under the host's lock. Rules, in
this order: reports of our units move or settle their holds (`host_binding`), never free one; every use that
nobody holds is kept out of the market by a foreign hold, ours or not; nobody is evicted; a foreign hold goes
only after two complete snapshots in a row without its use; free room of a bad GPU gets a fault hold.

Fault, maintenance and guessed foreign holds are *fillers*: they yield to what is really seen and come back on
what is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from provisioners import inventory_findings
from provisioners.driver import ObservedUse
from provisioners.inventory_changes import Changes, LooseUse, Put, UnitFact
from tenants import geometry, gpu_catalogue, host_binding
from tenants.findings import Seen
from tenants.host_plans import GUESS, MOVING, runs
from tenants.models import GpuDevice, Hold, Host
from tenants.states import Binding, HoldKind

FAULT_NOTE: Final = "faulty GPU"
FILLERS: Final = frozenset({HoldKind.FAULT.value, HoldKind.MAINTENANCE.value})


def plan(
    host: Host,
    devices: Sequence[GpuDevice],
    holds: Sequence[Hold],
    uses: Iterable[ObservedUse],
    *,
    units: Mapping[UUID, UnitFact],
    left: Collection[UUID] = (),
    absent_before: Collection[UUID] = (),
    complete: bool = True,
) -> Changes:
    """Compare what is seen on one host with its holds.

    `devices` are the host's live GPUs, `holds` all its holds, `units` the facts about units of ours seen here
    that hold nothing here, `left` those of them that left after the snapshot was taken, `absent_before` the
    `absent` of the last complete snapshot. Without `complete` nothing is concluded from absence.
    """
    work = _HostWork(host, devices, holds, units=units, left=frozenset(left))
    work.sort_uses(dict.fromkeys(uses), complete=complete)
    work.confirm()
    work.rebind(complete=complete)
    work.cover()
    work.guess()
    work.share_room()
    work.let_go(frozenset(absent_before), complete=complete)
    work.mark_faults()
    return work.changes()


@dataclass(slots=True)
class _HostWork:
    """The comparison in progress."""

    host: Host
    devices: Sequence[GpuDevice]
    holds: Sequence[Hold]
    units: Mapping[UUID, UnitFact]
    left: frozenset[UUID]
    reports: dict[UUID, host_binding.Report] = field(default_factory=dict)
    """Tenant hold → what was said of it."""
    loose: list[LooseUse] = field(default_factory=list)
    quiet: set[UUID] = field(default_factory=set)
    """Tenant holds whose unit does not run: where it will be is the host's choice again when it is switched on."""
    confirmed: set[UUID] = field(default_factory=set)
    """Foreign holds whose use is seen."""
    drops: dict[UUID, None] = field(default_factory=dict)
    moves: dict[UUID, dict[str, Any]] = field(default_factory=dict)
    puts: list[Put] = field(default_factory=list)
    guessed: list[tuple[LooseUse, Hold | Put]] = field(default_factory=list)
    """Uses whose place is not told, with what stands for them."""
    absent: set[UUID] = field(default_factory=set)
    findings: list[Seen] = field(default_factory=list)
    by_ref: dict[str, GpuDevice] = field(init=False)
    by_number: dict[int, GpuDevice] = field(init=False)
    tenant_holds: list[Hold] = field(init=False)
    at: dict[UUID, tuple[int, int]] = field(init=False)
    """Hold → (device number, start) as it will be."""
    room: dict[str, int] = field(init=False)
    """vCPU and memory of the host that is still free."""

    def __post_init__(self) -> None:
        self.by_ref = {device.provider_ref: device for device in self.devices}
        self.by_number = {device.number: device for device in self.devices}
        self.tenant_holds = [hold for hold in self.holds if hold.kind == HoldKind.TENANT.value]
        self.at = {hold.pk: (hold.device_number, hold.start) for hold in self.holds}
        self.room = {"vcpu": self.host.free_vcpu, "memory_gib": self.host.free_memory_gib}

    # --- whose use is it ---------------------------------------------------------------------------

    def sort_uses(self, uses: Iterable[ObservedUse], *, complete: bool) -> None:
        """Tell reports of units that hold here from uses that nobody holds, and from units that do not run."""
        of_unit: dict[UUID, list[Hold]] = defaultdict(list)
        for hold in sorted(self.tenant_holds, key=lambda h: (h.device_number, h.start)):
            if hold.unit_id is not None:
                of_unit[hold.unit_id].append(hold)
        seen: dict[UUID, list[ObservedUse]] = defaultdict(list)
        for use in uses:
            if use.size <= 0:
                continue
            if use.unit is not None and use.unit in of_unit:
                seen[use.unit].append(use)
            else:
                self.loose.append(LooseUse(use, self.by_ref.get(use.device)))
        for unit, found in seen.items():
            self._match(unit, of_unit[unit], found)
        if complete and self.host.binding != Binding.DEVICE.value:
            self.quiet = {hold.pk for unit, held in of_unit.items() if unit not in seen for hold in held}

    def _match(self, unit: UUID, holds: list[Hold], uses: list[ObservedUse]) -> None:
        """Pair the windows a unit is seen with and those it holds, the surest pairs first."""
        rest, left = list(holds), list(uses)
        for sure in (3, 2, 0):
            for use in list(left):
                hold = next((h for h in rest if h.profile == use.profile and self._likeness(h, use) >= sure), None)
                if hold is not None:
                    rest.remove(hold)
                    left.remove(use)
                    self._report(unit, hold, use)
        for use in left:
            self.loose.append(LooseUse(use, self.by_ref.get(use.device), duplicate=True))

    def _likeness(self, hold: Hold, use: ObservedUse) -> int:
        device = self.by_ref.get(use.device)
        if device is None or device.number != hold.device_number:
            return 0
        return 3 if use.start in {None, hold.start} else 2

    def _report(self, unit: UUID, hold: Hold, use: ObservedUse) -> None:
        if not use.device:
            return
        device = self.by_ref.get(use.device)
        elsewhere = device is None or device.number != hold.device_number
        binding = self.host.binding
        wrong = (elsewhere and binding != Binding.HOST.value) or (
            binding == Binding.DEVICE.value and use.start not in {None, hold.start}
        )
        if device is None or wrong:
            # The provider was told the device and did not honour it, or names one that we do not know: the hold
            # stays, and the window that is really used is kept from others.
            self.findings.append(inventory_findings.wrong_device(self.host, unit, use, device))
            if device is not None:
                self.loose.append(LooseUse(use, device))
            return
        self.reports[hold.pk] = host_binding.Report(str(hold.pk), device.number, use.start)

    # --- foreign holds that are seen ---------------------------------------------------------------

    def confirm(self) -> None:
        """Mark the foreign holds whose use is seen where they lie."""
        for loose in self.loose:
            if not loose.exact or loose.device is None:
                continue
            for hold in self._foreign(loose.notes, loose.device.number):
                mask = geometry.window_mask(hold.start, hold.size)
                if mask & ~loose.mask == 0:
                    self.confirmed.add(hold.pk)

    def _foreign(self, notes: Collection[str], number: int | None = None) -> Iterator[Hold]:
        for hold in self.holds:
            if (
                hold.kind == HoldKind.FOREIGN.value
                and hold.note in notes
                and hold.pk not in self.drops
                and number in {None, hold.device_number}
            ):
                yield hold

    # --- reports -----------------------------------------------------------------------------------

    def rebind(self, *, complete: bool) -> None:
        """Move and settle tenant holds as reported."""
        for product_id, group in self._groups():
            numbers = {device.number for device in group}
            held = [hold for hold in self.tenant_holds if hold.device_number in numbers]
            said = [self.reports[hold.pk] for hold in held if hold.pk in self.reports]
            if not any(self._news(hold) for hold in held):
                continue
            if all(self._agrees(hold) and not self._displaced(hold) for hold in held):
                windows = {str(hold.pk): self.at[hold.pk] for hold in held}
            else:
                answer = host_binding.explain_report(
                    product_id,
                    [self._open_gpu(device, complete=complete) for device in group],
                    [
                        host_binding.HeldUnit(str(h.pk), h.profile, h.device_number, h.start, exact=self.sure(h))
                        for h in held
                    ],
                    said,
                )
                if isinstance(answer, host_binding.Unexplained):
                    self._unexplained(product_id, group, answer)
                    continue
                windows = dict(answer.windows)
            for hold in held:
                self._move(hold, windows[str(hold.pk)])

    def _groups(self) -> Iterator[tuple[str, list[GpuDevice]]]:
        """GPUs among which the provider may choose: all of a product, or one by one where we name the GPU."""
        by_product: dict[str, list[GpuDevice]] = defaultdict(list)
        for device in self.devices:
            by_product[device.product].append(device)
        for product_id, group in sorted(by_product.items()):
            if self.host.binding == Binding.HOST.value:
                yield product_id, group
            else:
                yield from ((product_id, [device]) for device in group)

    def sure(self, hold: Hold) -> bool:
        """Whether a hold lies where it was reported, and its unit still runs there."""
        return hold.settled and hold.pk not in self.quiet

    def _news(self, hold: Hold) -> bool:
        if self._displaced(hold) or hold.settled is not self.sure(hold):
            return True
        return hold.pk in self.reports and (not self._agrees(hold) or (self.settles(hold) and not hold.settled))

    def _displaced(self, hold: Hold) -> bool:
        """Whether a hold that is only our guess lies where somebody else is seen."""
        if self.sure(hold):
            return False
        mask = geometry.window_mask(hold.start, hold.size)
        return any(
            loose.exact and loose.device is not None and loose.device.number == hold.device_number and loose.mask & mask
            for loose in self.loose
        )

    def _agrees(self, hold: Hold) -> bool:
        report = self.reports.get(hold.pk)
        return report is None or (report.device == hold.device_number and report.start in {None, hold.start})

    def settles(self, hold: Hold) -> bool:
        """Whether the report leaves no choice of where the hold lies."""
        report = self.reports.get(hold.pk)
        if report is None or report.device is None:
            return False
        device = self.by_number[report.device]
        return report.start is not None or len(geometry.legal_masks(device.product, hold.profile)) == 1

    def _open_gpu(self, device: GpuDevice, *, complete: bool) -> host_binding.Gpu:
        """Return what of a GPU units may have: all but what others are really seen to use."""
        taken = 0
        for hold in self.holds:
            if hold.device_number != device.number or hold.kind == HoldKind.TENANT.value or _yields(hold):
                continue
            if hold.kind != HoldKind.FOREIGN.value or hold.pk in self.confirmed or not complete:
                taken |= geometry.window_mask(hold.start, hold.size)
        for loose in self.loose:
            if loose.exact and loose.device is device:
                taken |= loose.mask
        return host_binding.Gpu(device.number, geometry.full_mask(device.product) & ~taken)

    def _unexplained(self, product_id: str, group: Sequence[GpuDevice], answer: host_binding.Unexplained) -> None:
        one = group[0] if len(group) == 1 and self.host.binding != Binding.HOST.value else None
        self.findings.append(inventory_findings.unexplained(self.host, product_id, one, answer))

    def _move(self, hold: Hold, to: tuple[int, int]) -> None:
        stays = to == self.at[hold.pk]
        settled = self.settles(hold) or (stays and self.sure(hold))
        if stays and settled == hold.settled:
            return
        self.moves[hold.pk] = {
            "hold": str(hold.pk),
            "device": str(self.by_number[to[0]].pk),
            "start": to[1],
            "settled": settled,
        }
        self.at[hold.pk] = to
        self._make_way(to[0], geometry.window_mask(to[1], hold.size))

    # --- uses that nobody holds --------------------------------------------------------------------

    def cover(self) -> None:
        """Put foreign holds over windows in use that nobody holds; what a tenant holds there is a finding."""
        for loose in self.loose:
            if loose.use.unit is not None:
                self._tell_stray(loose)
            if loose.exact and loose.device is not None and loose.use.unit not in self.left:
                self._cover_one(loose, loose.device)

    def _cover_one(self, loose: LooseUse, device: GpuDevice) -> None:
        want = loose.mask & geometry.full_mask(device.product)
        tenants = self._held(device.number, {HoldKind.TENANT.value, HoldKind.RESERVED.value})
        if want & tenants:
            self.findings.append(inventory_findings.foreign_on_hold(self.host, device, loose))
        old_guess = next(self._foreign({loose.note + GUESS}), None)
        if old_guess is not None:  # now its place is told
            self._drop(old_guess)
        have = self._mask_of(hold for hold in self._foreign(loose.notes, device.number) if hold.pk in self.confirmed)
        missing = want & ~have & ~tenants
        if missing:
            self._make_way(device.number, missing)
            missing &= ~self._held(device.number, None)
            for start, size in runs(missing):
                self.puts.append(Put(HoldKind.FOREIGN, device.pk, start, size, loose.note))

    def _tell_stray(self, loose: LooseUse) -> None:
        use = loose.use
        if use.unit is None or use.unit in self.left:
            return
        if loose.duplicate:
            self.findings.append(inventory_findings.duplicate_use(self.host, use.unit, use))
            return
        fact = self.units.get(use.unit)
        if fact is None or any(hold.note.startswith(MOVING) for hold in self._foreign(loose.notes)):
            return  # fact None: it holds here (a wrong device was told above), or nothing is known yet
        self.findings.append(inventory_findings.stray_use(self.host, use.unit, use, fact))

    def share_room(self) -> None:
        """Give the holds of each foreign use the vCPU and memory it takes, as far as the host has it."""
        wanted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        notes: dict[str, frozenset[str]] = {}
        for loose in self.loose:
            if loose.use.unit not in self.left:
                wanted[loose.note][0] += loose.use.vcpu
                wanted[loose.note][1] += loose.use.memory_gib
                notes[loose.note] = loose.notes | {loose.note + GUESS}
        for note, (vcpu, memory) in sorted(wanted.items()):
            mine = [hold for hold in self._foreign(notes[note]) if hold.pk in self.confirmed]
            have = (sum(hold.vcpu for hold in mine), sum(hold.memory_gib for hold in mine))
            can = (
                max(0, min(vcpu, have[0] + self.room["vcpu"])),
                max(0, min(memory, have[1] + self.room["memory_gib"])),
            )
            if can != (vcpu, memory):
                self.findings.append(inventory_findings.overcommitted(self.host, note, vcpu, memory))
            if can == have:
                continue
            for hold in mine:  # made anew, with another amount
                self._drop(hold)
                device = self.by_number[hold.device_number]
                self.puts.append(Put(HoldKind.FOREIGN, device.pk, hold.start, hold.size, hold.note))
            first = next((n for n, put in enumerate(self.puts) if put.note in notes[note]), None)
            if first is None:
                continue
            put = self.puts[first]
            self.puts[first] = Put(put.kind, put.device, put.start, put.size, put.note, *can)
            self.room["vcpu"] -= can[0]
            self.room["memory_gib"] -= can[1]

    def guess(self) -> None:
        """Give uses whose place is not told a legal window; without one nothing new goes to the host."""
        left = [
            loose
            for loose in self.loose
            if not loose.exact and loose.use.unit not in self.left and not self._keeps_guess(loose)
        ]
        homeless: list[LooseUse] = []
        for loose in left:
            place = self._legal_place(loose)
            if place is None:
                homeless.append(loose)
            else:
                self._guess_at(loose, *place)
        hopeless: set[tuple[str, GpuDevice | None]] = set()
        for loose in homeless:
            kind = (loose.use.profile, loose.device)
            if kind in hopeless or not self._repack(loose):
                hopeless.add(kind)  # the next of its kind would find no more room
                self.findings.append(inventory_findings.use_without_place(self.host, loose))

    def _keeps_guess(self, loose: LooseUse) -> bool:
        """Confirm the hold that stands for a use whose place is not told, if there is one."""
        # One that was exact before the provider fell silent will do as well.
        for hold in self._foreign({loose.note + GUESS, *loose.notes}, loose.device.number if loose.device else None):
            if hold.pk not in self.confirmed and hold.size == loose.use.size:
                self.confirmed.add(hold.pk)
                self.guessed.append((loose, hold))
                return True
        return False

    def _guess_at(self, loose: LooseUse, device: GpuDevice, start: int) -> None:
        put = Put(HoldKind.FOREIGN, device.pk, start, loose.use.size, loose.note + GUESS)
        self.puts.append(put)
        self.guessed.append((loose, put))

    def _repack(self, wanted: LooseUse) -> bool:
        """Move guesses, others' and our own, until one more use has a place; False where no packing has one."""
        for product_id in sorted({device.product for device in self.devices}):
            group = [device for device in self.devices if device.product == product_id]
            if not _fits_product(wanted, product_id) or (wanted.device is not None and wanted.device not in group):
                continue
            for keep in (True, False):  # a hold whose use was missing once makes way only if it must
                packing = _Packing(self, product_id, group, wanted, keep_unseen=keep)
                windows = packing.solve() if keep or self._has_unseen() else None
                if windows is not None:
                    self._take_over(packing, windows)
                    return True
        return False

    def _has_unseen(self) -> bool:
        return any(
            hold.kind == HoldKind.FOREIGN.value and hold.pk not in self.confirmed and hold.pk not in self.drops
            for hold in self.holds
        )

    def _take_over(self, packing: _Packing, windows: Mapping[str, tuple[int, int]]) -> None:
        for hold in packing.tenants:
            self._move(hold, windows[str(hold.pk)])
        for name, (loose, was) in packing.guesses.items():
            number, start = windows[name]
            device = self.by_number[number]
            if was is not None:
                if (packing.number_of(was), was.start) == (number, start):
                    continue
                self.guessed.remove((loose, was))
                if isinstance(was, Put):
                    self.puts.remove(was)
                else:
                    self._drop(was)
            self._make_way(number, geometry.window_mask(start, loose.use.size))
            self._guess_at(loose, device, start)

    def _legal_place(self, loose: LooseUse) -> tuple[GpuDevice, int] | None:
        """Return the window by the published ranking, fullest GPU first."""
        best: tuple[int, int, int] | None = None
        found: tuple[GpuDevice, int] | None = None
        for device in [loose.device] if loose.device is not None else self.devices:
            try:
                size = gpu_catalogue.profile(device.product, loose.use.profile).size
            except gpu_catalogue.UnknownProfile:
                continue
            free = geometry.full_mask(device.product) & ~self._held(device.number, None)
            start = geometry.best_start(device.product, loose.use.profile, free)
            if start is None or size != loose.use.size:
                continue
            rank = (free.bit_count(), geometry.loss(device.product, free, geometry.window_mask(start, size)), -start)
            if best is None or rank < best:
                best, found = rank, (device, start)
        return found

    def let_go(self, absent_before: frozenset[UUID], *, complete: bool) -> None:
        """Drop foreign holds whose use was missing twice; remember those missing once."""
        for hold in self.holds:
            if hold.kind != HoldKind.FOREIGN.value or hold.pk in self.confirmed or hold.pk in self.drops:
                continue
            if not complete:
                self.absent |= {hold.pk} & absent_before
            elif hold.pk in absent_before:
                self._drop(hold)
            else:
                self.absent.add(hold.pk)

    # --- faults ------------------------------------------------------------------------------------

    def mark_faults(self) -> None:
        """Keep the free part of a bad GPU out of the market, and give it back when the GPU is well again."""
        for device in self.devices:
            if device.healthy:
                for hold in self.holds:
                    if hold.device_number == device.number and hold.kind == HoldKind.FAULT.value:
                        self._drop(hold)
                continue
            free = geometry.full_mask(device.product) & ~self._held(device.number, None)
            for start, size in runs(free):
                self.puts.append(Put(HoldKind.FAULT, device.pk, start, size, FAULT_NOTE))

    # --- masks -------------------------------------------------------------------------------------

    def _held(self, number: int, kinds: Collection[str] | None) -> int:
        """Return the mask of a GPU that holds (of `kinds`, or any, dated ones too) will take after the changes."""
        taken = 0
        for hold in self.holds:
            device, start = self.at[hold.pk]
            if device == number and hold.pk not in self.drops and (kinds is None or hold.kind in kinds):
                taken |= geometry.window_mask(start, hold.size)
        if kinds is None:
            device_id = self.by_number[number].pk
            for put in self.puts:
                if put.device == device_id:
                    taken |= geometry.window_mask(put.start, put.size)
        return taken

    def _mask_of(self, holds: Iterable[Hold]) -> int:
        taken = 0
        for hold in holds:
            taken |= geometry.window_mask(hold.start, hold.size)
        return taken

    def _make_way(self, number: int, mask: int) -> None:
        """Drop what yields and what is not seen any more from a window that is really used."""
        for hold in self.holds:
            if hold.device_number != number or hold.kind == HoldKind.TENANT.value or hold.pk in self.confirmed:
                continue
            if geometry.window_mask(hold.start, hold.size) & mask and (
                _yields(hold) or hold.kind == HoldKind.FOREIGN.value
            ):
                self._drop(hold)

    def _drop(self, hold: Hold) -> None:
        if hold.pk not in self.drops:
            self.drops[hold.pk] = None
            self.room["vcpu"] += hold.vcpu
            self.room["memory_gib"] += hold.memory_gib

    def changes(self) -> Changes:
        """Return what was found out."""
        moves = tuple(self.moves[pk] for pk in sorted(self.moves))
        return Changes(
            tuple(self.drops), moves, tuple(self.puts), frozenset(self.absent - set(self.drops)), tuple(self.findings)
        )


def _fits_product(loose: LooseUse, product_id: str) -> bool:
    try:
        return gpu_catalogue.profile(product_id, loose.use.profile).size == loose.use.size
    except gpu_catalogue.UnknownProfile:
        return False


class _Packing:
    """All guesses on the GPUs of one product, others' and our own, with one use more that has no place yet."""

    def __init__(
        self, work: _HostWork, product_id: str, group: list[GpuDevice], wanted: LooseUse, *, keep_unseen: bool
    ) -> None:
        self.work, self.product_id, self.group, self.keep_unseen = work, product_id, group, keep_unseen
        self.number = {device.pk: device.number for device in group}
        self.tenants = [hold for hold in work.tenant_holds if work.at[hold.pk][0] in set(self.number.values())]
        known = [(loose, was) for loose, was in work.guessed if self.number_of(was) in set(self.number.values())]
        self.guesses: dict[str, tuple[LooseUse, Hold | Put | None]] = {
            f"guess {at}": pair for at, pair in enumerate(p for p in known if _fits_product(p[0], product_id))
        }
        self.guesses["wanted"] = (wanted, None)

    def number_of(self, was: Hold | Put) -> int:
        """Return the number of the GPU that stands for a use now; -1 for another product's."""
        if isinstance(was, Hold):
            return self.work.at[was.pk][0]
        return self.number.get(was.device, host_binding.NOWHERE)

    def solve(self) -> Mapping[str, tuple[int, int]] | None:
        """Return (GPU number, start) of every tenant hold and guess, or None where there is no such packing."""
        work = self.work
        units, reports = [], []
        for hold in self.tenants:
            number, start = work.at[hold.pk]
            exact = work.host.binding == Binding.DEVICE.value or work.settles(hold) or work.sure(hold)
            units.append(host_binding.HeldUnit(str(hold.pk), hold.profile, number, start, exact=exact))
            if not exact and work.host.binding != Binding.HOST.value:
                reports.append(host_binding.Report(str(hold.pk), number))
            elif not exact and hold.pk in work.reports:
                reports.append(work.reports[hold.pk])
        for name, (loose, was) in self.guesses.items():
            at = (host_binding.NOWHERE, 0) if was is None else (self.number_of(was), was.start)
            units.append(host_binding.HeldUnit(name, loose.use.profile, *at))
            if loose.device is not None:
                reports.append(host_binding.Report(name, loose.device.number))
        gpus = [host_binding.Gpu(device.number, self._open(device)) for device in self.group]
        answer = host_binding.explain_report(self.product_id, gpus, units, reports)
        return None if isinstance(answer, host_binding.Unexplained) else answer.windows

    def _open(self, device: GpuDevice) -> int:
        """Return what of a GPU is neither really seen in use by others nor reserved."""
        movable = {id(was) for _, was in self.guesses.values()}
        taken = 0
        for hold in self.work.holds:
            if hold.kind == HoldKind.TENANT.value or hold.pk in self.work.drops or id(hold) in movable:
                continue
            if hold.device_number != device.number or hold.kind in FILLERS:
                continue
            if hold.kind == HoldKind.FOREIGN.value and hold.pk not in self.work.confirmed and not self.keep_unseen:
                continue
            taken |= geometry.window_mask(hold.start, hold.size)
        for put in self.work.puts:
            if put.device == device.pk and id(put) not in movable:
                taken |= geometry.window_mask(put.start, put.size)
        for loose in self.work.loose:
            if loose.exact and loose.device is device:
                taken |= loose.mask
        return geometry.full_mask(device.product) & ~taken


def _yields(hold: Hold) -> bool:
    return hold.kind in FILLERS or (hold.kind == HoldKind.FOREIGN.value and hold.note.endswith(GUESS))
