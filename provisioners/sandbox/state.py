"""The records of one estate, with the two indexes that physics needs and a list of what has changed.

Rules live elsewhere; this keeps three promises: every change made through `put` and `drop` reaches the
store, what occupies a GPU and a host is known without a search, and a state read from rows equals the
one that was written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from provisioners.sandbox.records import (
    FaultRecord,
    ForeignObject,
    ForeignUse,
    GatewayRecord,
    GpuRecord,
    HostRecord,
    LogRecord,
    ModelRecord,
    ObjectRecord,
    Settings,
    StagedRecord,
    TaskRecord,
    WorkloadRecord,
    as_row,
    object_from_row,
)

Row = tuple[str, str]
"""(table, key) of one record."""
LOG_LINES_KEPT: Final = 400


@dataclass(slots=True)
class Load:
    """vCPU and memory in use on a host."""

    vcpu: int = 0
    memory_gib: int = 0


@dataclass(slots=True)
class State:
    """All records of one estate; change them only between `load` and `take_changes`, through `put` and `drop`."""

    hosts: dict[str, HostRecord] = field(default_factory=dict)
    gpus: dict[str, GpuRecord] = field(default_factory=dict)
    objects: dict[str, ObjectRecord] = field(default_factory=dict)
    workloads: dict[str, WorkloadRecord] = field(default_factory=dict)
    gateways: dict[str, GatewayRecord] = field(default_factory=dict)
    models: dict[str, ModelRecord] = field(default_factory=dict)
    staged: dict[str, StagedRecord] = field(default_factory=dict)
    tasks: dict[str, TaskRecord] = field(default_factory=dict)
    foreign_uses: dict[str, ForeignUse] = field(default_factory=dict)
    foreign_objects: dict[str, ForeignObject] = field(default_factory=dict)
    faults: dict[str, FaultRecord] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    counters: dict[str, int] = field(default_factory=lambda: {"next": 0, "draw": 0})
    captured: dict[str, Any] = field(default_factory=dict)
    """Older answers that stale lists repeat: fault uid → snapshot as JSON."""
    logs: list[LogRecord] = field(default_factory=list)
    """Newest lines only; not kept across restarts."""
    changed: set[Row] = field(default_factory=set)
    occupied: dict[str, dict[str, list[tuple[int, int, str]]]] = field(default_factory=lambda: defaultdict(dict))
    """device → holder (`unit:<uid>`, `foreign:<name>`) → [(start, size, profile)]."""
    loads: dict[str, Load] = field(default_factory=lambda: defaultdict(Load))
    gpus_of: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    owned: dict[Row, set[str]] = field(default_factory=lambda: defaultdict(set))
    """(`workloads`, object uid) → uids of its workloads; (`objects`, boundary uid) → uids of what is inside."""

    # --- writing ---------------------------------------------------------------------------------

    def put(self, table: str, key: str, record: Any) -> None:
        """Store a new or changed record."""
        self._table(table)[key] = record
        self.changed.add((table, key))
        owner = _owner_of(record)
        if owner:
            self.owned[table, owner].add(key)

    def touch(self, table: str, key: str) -> None:
        """Note that a record was changed in place."""
        self.changed.add((table, key))

    def drop(self, table: str, key: str) -> None:
        """Remove a record; nothing happens if there is none."""
        record = self._table(table).pop(key, None)
        if record is None:
            return
        self.changed.add((table, key))
        owner = _owner_of(record)
        if owner:
            self.owned[table, owner].discard(key)
            if not self.owned[table, owner]:
                del self.owned[table, owner]

    def next_id(self, prefix: str) -> str:
        """Return an id never given before in this estate, also after a restart."""
        self.counters["next"] += 1
        self.changed.add(("counters", ""))
        return f"{prefix}-{self.counters['next']}"

    def log(self, owner: str, at: float, text: str, source: str = "sandbox") -> None:
        """Add a line to an object's log."""
        self.logs.append(LogRecord(owner, at, text, source))
        if len(self.logs) > 2 * LOG_LINES_KEPT:
            del self.logs[:-LOG_LINES_KEPT]

    # --- what is in use --------------------------------------------------------------------------

    def occupy(self, holder: str, host: str, windows: Iterable[list[Any]], vcpu: int, memory_gib: int) -> None:
        """Count windows, vCPU and memory as in use by `holder`; the caller has checked that they are free."""
        for device, start, size, profile in windows:
            self.occupied[device].setdefault(holder, []).append((start, size, profile))
        load = self.loads[host]
        load.vcpu += vcpu
        load.memory_gib += memory_gib

    def vacate(self, holder: str, host: str, windows: Iterable[list[Any]], vcpu: int, memory_gib: int) -> None:
        """Undo `occupy`."""
        for window in windows:
            self.occupied[window[0]].pop(holder, None)
        load = self.loads[host]
        load.vcpu -= vcpu
        load.memory_gib -= memory_gib

    def workloads_of(self, owner: str) -> list[WorkloadRecord]:
        """Return the workloads of one object by unit index."""
        found = [self.workloads[uid] for uid in self.owned.get(("workloads", owner), ())]
        return sorted(found, key=lambda workload: workload.index)

    def objects_in(self, boundary: str) -> list[ObjectRecord]:
        """Return the objects inside a boundary by name."""
        found = [self.objects[uid] for uid in self.owned.get(("objects", boundary), ())]
        return sorted(found, key=lambda inside: inside.name)

    # --- rows ------------------------------------------------------------------------------------

    def take_changes(self) -> dict[Row, dict[str, Any] | None]:
        """Return every record changed since the last call as JSON (None: it is gone), and forget the list."""
        rows: dict[Row, dict[str, Any] | None] = {}
        for table, key in self.changed:
            rows[table, key] = self._row(table, key)
        self.changed.clear()
        return rows

    def _row(self, table: str, key: str) -> dict[str, Any] | None:
        if table == "settings":
            return as_row(self.settings)
        if table == "counters":
            return dict(self.counters)
        record = self._table(table).get(key)
        if table == "captured":
            return record
        return None if record is None else as_row(record)

    def _table(self, table: str) -> dict[str, Any]:
        records: dict[str, Any] = getattr(self, table)
        return records

    def index(self) -> None:
        """Rebuild what is in use from the records; after reading rows or seeding hosts."""
        self.occupied.clear()
        self.loads.clear()
        self.gpus_of.clear()
        self.owned.clear()
        for table in ("workloads", "objects"):
            for uid, record in self._table(table).items():
                owner = _owner_of(record)
                if owner:
                    self.owned[table, owner].add(uid)
        for gpu in sorted(self.gpus.values(), key=lambda gpu: (gpu.host, gpu.index)):
            self.gpus_of[gpu.host].append(gpu.device)
        for workload in self.workloads.values():
            if workload.running:
                self.occupy(f"unit:{workload.uid}", workload.host, workload.windows, workload.vcpu, workload.memory_gib)
        for use in self.foreign_uses.values():
            self.occupy(f"foreign:{use.name}", use.host, use.windows, use.vcpu, use.memory_gib)


def _owner_of(record: object) -> str:
    if isinstance(record, WorkloadRecord):
        return record.owner
    return record.boundary if isinstance(record, ObjectRecord) else ""


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "hosts": lambda row: HostRecord(**row),
    "gpus": lambda row: GpuRecord(**row),
    "objects": object_from_row,
    "workloads": lambda row: WorkloadRecord(**row),
    "gateways": lambda row: GatewayRecord(**row),
    "models": lambda row: ModelRecord(**row),
    "staged": lambda row: StagedRecord(**row),
    "tasks": lambda row: TaskRecord(**row),
    "foreign_uses": lambda row: ForeignUse(**row),
    "foreign_objects": lambda row: ForeignObject(**row),
    "faults": lambda row: FaultRecord(**row),
    "captured": dict,
}


def state_from_rows(rows: Iterable[tuple[str, str, Mapping[str, Any]]]) -> State:
    """Return the state that `take_changes` wrote row by row."""
    state = State()
    for table, key, row in rows:
        if table == "settings":
            state.settings = Settings(**row)
        elif table == "counters":
            state.counters = dict(row)
        else:
            getattr(state, table)[key] = _READERS[table](row)
    state.index()
    return state
