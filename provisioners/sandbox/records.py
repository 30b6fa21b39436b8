"""What a simulated estate consists of, as records of JSON types only.

Every record can be written to the store and read back with nothing lost, so a restarted server goes on
where it stopped. No rules here (`estate.py`, `physics.py`), no secret either: tokens stay in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

Window = list[Any]
"""[device, start, size, profile]: one taken window; profile "" for a whole GPU."""


@dataclass(slots=True)
class GpuRecord:
    """One physical GPU."""

    device: str
    host: str
    product: str
    index: int
    layout_change: str = "dynamic"
    """`dynamic`: windows appear as they are asked for; `on-idle`, `fixed`: only carved ones can be used."""
    mode: str = "empty"
    """`empty`, `mig`, `full`; what the GPU is carved for where the layout is not dynamic."""
    layout: list[list[Any]] = field(default_factory=list)
    """Carved windows [start, size, profile] where the layout is not dynamic."""
    healthy: bool = True
    message: str = ""


@dataclass(slots=True)
class HostRecord:
    """One host: a cluster's node or an ESXi host."""

    host: str
    name: str
    binding: str
    boundary_kinds: list[str]
    vcpu: int
    memory_gib: int
    healthy: bool = True
    message: str = ""
    in_maintenance: bool = False


@dataclass(slots=True)
class PartRecord:
    """What one step has made of an object."""

    have: str = ""
    changing: bool = False
    task: str = ""
    """Task at work on it; "" where the provider shows none (forgotten)."""
    gateway: str = ""
    """Uid of the gateway that this part is, if it is one."""
    unit: str = ""
    """Uid of the workload that this part belongs to, if any."""


@dataclass(slots=True)
class ObjectRecord:
    """One object with our mark: a boundary, endpoint, machine, or handed-over namespace."""

    uid: str
    kind: str
    tenant: str
    name: str
    created_at: float
    boundary: str = ""
    boundary_kind: str = ""
    parts: dict[str, PartRecord] = field(default_factory=dict)
    cut_off: bool = False
    limits: dict[str, int] = field(default_factory=dict)
    """GPU resources granted inside a namespace boundary."""
    model: str = ""
    published: bool = False
    """True once `serving.service` is there."""
    public_name: str = ""
    """Of an endpoint: whose name it answers by; several objects may, one of them has it."""
    named_at: float = 0.0
    """When it got that name last; 0 while it is not to have it."""
    name_port: int = 0
    """Where that name is listened for, on this machine."""


@dataclass(slots=True)
class WorkloadRecord:
    """One VM or pod: what runs a unit."""

    uid: str
    owner: str
    index: int
    name: str
    is_vm: bool
    host: str
    product: str
    profile: str
    gpu_count: int
    binding: str
    devices: list[str]
    starts: list[int]
    vcpu: int
    memory_gib: int
    running: bool = False
    """From the begin of power-on (windows, vCPU and memory are taken) to its end."""
    windows: list[Window] = field(default_factory=list)
    ready_at: float = 0.0
    report_at: float = 0.0
    reported: list[Window] | None = None
    """A wrong device report that stands in for the truth, if one was set."""
    serving: dict[str, Any] | None = None
    """Model server in it: model, source, commit, revision, tokens_s, ready_at."""
    cut_off: bool = False
    asleep: bool = False
    """A VM at zero: it runs, and no model server in it."""


@dataclass(slots=True)
class GatewayRecord:
    """One gateway: a real process where the estate runs them, else simulated."""

    uid: str
    owner: str
    unit: str
    control_plane_url: str
    simulated: bool
    wanted: bool = True
    running: bool = False
    enrolled: bool = False
    pid: int = 0
    port: int = 0
    started_with: str = ""
    """Control plane's URL that the process was started with, and whether with TLS; another needs another process."""
    tls: bool = False
    """Whether it listens with TLS."""
    message: str = ""
    restarts: int = 0

    @property
    def call(self) -> str:
        """Return what its process is to be started with (`started_with`)."""
        return f"{self.control_plane_url} tls" if self.tls else self.control_plane_url

    @property
    def base_url(self) -> str:
        """Return where its process listens."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"


@dataclass(slots=True)
class ModelRecord:
    """One real model server of a replica, where the estate runs them; its uid is the unit's."""

    uid: str
    owner: str
    call: str
    """Digest of what it was started for."""
    wanted: bool = True
    pid: int = 0
    """0 while none runs."""
    started: str = ""
    """Mark of the process's start: a pid alone is given out again."""
    port: int = 0
    ready: bool = False
    message: str = ""
    began_at: float = 0.0
    restarts: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    """What it said of itself when it was ready."""


@dataclass(slots=True)
class StagedRecord:
    """The files of a served model in the estate's cache; simulated: nothing is loaded, bytes come as time passes."""

    uid: str
    """Of the served model."""
    source: str
    commit: str
    bytes_total: int
    began_at: float


@dataclass(slots=True)
class TaskRecord:
    """One asynchronous task of the provider."""

    uid: str
    owner: str
    tenant: str
    kind: str
    step: str
    key: str
    want: str
    undo: bool
    payload: dict[str, Any]
    started_at: float
    ends_at: float
    state: str = "running"
    error: dict[str, Any] | None = None
    forgotten: bool = False
    lost: bool = False
    """True if it will end without any effect."""
    reserved: bool = False
    """True if its begin took room that a failure gives back."""


@dataclass(slots=True)
class ForeignUse:
    """A pod or VM that is not ours, on a host's GPU windows, vCPU and memory."""

    name: str
    host: str
    windows: list[Window]
    vcpu: int = 0
    memory_gib: int = 0


@dataclass(slots=True)
class ForeignObject:
    """Something that is not ours and carries a name that we want."""

    name: str
    note: str = ""


@dataclass(slots=True)
class FaultRecord:
    """One fault to inject; see `faults.py` for the words."""

    uid: str
    match: str
    effect: str
    error: str = "transient"
    times: int = 1
    """How often it still strikes; -1 without end."""
    skip: int = 0
    """How many matching calls pass first."""
    seconds: float = 0.0
    after_effect: bool = False
    lying: bool = False
    detail: str = ""


@dataclass(slots=True)
class LogRecord:
    """One line of an object's log."""

    owner: str
    at: float
    text: str
    source: str


DEFAULT_DELAYS_S: Final[Mapping[str, float]] = {
    "namespace.create": 0.4,
    "namespace.gateway": 0.2,
    "folder.create": 0.4,
    "network.create": 0.4,
    "vm.clone": 2.0,
    "vm.power": 1.0,
    "serving.replica": 0.5,
    "layout.apply": 1.0,
}
"""Seconds a step's task takes; steps that are not named take `""`'s value."""


@dataclass(slots=True)
class Settings:
    """How an estate behaves; all of it can be changed while it runs."""

    delays_s: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_DELAYS_S))
    """Step (or `undo:<step>`, or `""` for all others) → seconds; 0 answers at once without a task."""
    boot_s: float = 1.0
    load_s: float = 1.5
    """From the start of a model server until it answers."""
    report_delay_s: float = 0.5
    """From power-on until the provider names the device, on `host`-bound hosts."""
    report_detail: str = "window"
    """`window`, `device` (no start) or `never`, on `host`-bound hosts."""
    policy: str = "first"
    """How the provider chooses a device: `first`, `spread`, `random`, `adversarial`."""
    seed: int = 1
    models: str = "stub"
    """`local` starts a real model server on this machine for each replica, `stub` answers in its place."""
    stage_bytes_s: float = 250e6
    """Bytes a second with which files of a model come into the cache."""
    gateways: str = "simulated"
    """`real` starts the gateway program as a process of its own, `simulated` does not."""
    names: bool = False
    """Whether each endpoint has an address of its own that follows it to other estates of this server (`names.py`)."""
    enforce_limits: bool = True
    """Whether a namespace refuses GPU pods above its own limits."""
    task_memory_s: float = 3600.0
    """How long ended tasks can be polled."""


RecordType = TypeVar("RecordType")


def as_row(record: Any) -> dict[str, Any]:
    """Return a record as JSON types."""
    return asdict(record)


def object_from_row(row: Mapping[str, Any]) -> ObjectRecord:
    """Return the object that `as_row` wrote."""
    fields = dict(row)
    fields["parts"] = {name: PartRecord(**part) for name, part in fields["parts"].items()}
    return ObjectRecord(**fields)
