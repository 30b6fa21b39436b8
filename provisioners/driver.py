"""The contract between the control plane and one kind of provider.

A driver is small, told everything, and knows nothing of Django, of our tables, or of other drivers.
It names the steps that make a spec true, starts one at a time without waiting for the provider's
work to end, and says what it sees. Deciding which step comes next is `plan.py`'s work and pure.

Invariants: refs and idempotency keys derive from our row's UUID, so repeating any step finds what an
earlier try left; *gone* is only ever a successful exact read; every call has a deadline; nothing but
`DriverError`s leaves a driver. Secrets travel as `Secret`, whose repr shows nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol
from uuid import NAMESPACE_URL, UUID, uuid5

MARK_DOMAIN: Final = "tenantry.internal"
"""Our mark on provider objects: labels `<domain>/uid`, `/tenant`, `/kind` (a custom attribute on vSphere)."""
FIELD_MANAGER: Final = "tenantry"


# --- errors ---------------------------------------------------------------------------------------


class DriverError(Exception):
    """Root of all that a driver raises; the class decides what happens next, never the text."""

    reason = "ProviderError"

    def __init__(self, detail: str, *, raw: str = "") -> None:
        """`detail` is safe to show to a tenant; `raw` is the provider's own text, for operators."""
        super().__init__(detail)
        self.detail = detail
        self.raw = raw

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep errors picklable across process borders."""
        return (_rebuild_error, (type(self), self.detail, self.raw, dict(self.__dict__)))


def _rebuild_error(kind: type[DriverError], detail: str, raw: str, state: dict[str, Any]) -> DriverError:
    error = kind(detail, raw=raw)
    error.__dict__.update(state)
    return error


class TransientDriverError(DriverError):
    """Try again later: connection lost, provider busy, time-out. The outcome may be unknown."""

    reason = "ProviderUnavailable"

    def __init__(self, detail: str, *, raw: str = "", retry_after_s: float | None = None) -> None:
        """`retry_after_s` is what the provider asked for, if it did."""
        super().__init__(detail, raw=raw)
        self.retry_after_s = retry_after_s


class NoCapacity(DriverError):
    """The provider has no room for it right now (for example refused at power-on)."""

    reason = "NoCapacity"


class NotSupported(DriverError):
    """The driver or the provider lacks the capability; stop until the spec changes."""

    reason = "NotSupported"


class DriverRejected(DriverError):
    """The provider refused the spec; stop until the spec changes."""

    reason = "Rejected"


class Conflicting(DriverError):
    """Something that is not ours carries our name; people must look."""

    reason = "NameTaken"


# --- small values ---------------------------------------------------------------------------------


class Secret:
    """A string that no log, repr, pickle or JSON dump shows; `reveal()` is the only way in."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Wrap `value`."""
        self._value = value

    def reveal(self) -> str:
        """Return the plain text; call it at the very edge only."""
        return self._value

    def __repr__(self) -> str:
        """Show nothing."""
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """Equal to a `Secret` of the same text."""
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        """Hash by digest, so the text is not kept in a dict's debug output."""
        return hash(("Secret", self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled: task arguments must never hold one."""
        msg = "a Secret is never serialised"
        raise TypeError(msg)


class Kind(StrEnum):
    """What a ref can point at on a provider."""

    BOUNDARY = "boundary"
    ENDPOINT = "endpoint"
    MACHINE = "machine"
    NAMESPACE = "namespace"
    LAYOUT = "layout"
    """The MIG layout of one GPU; has no row of ours: `layout_ref` derives the uid from host and device."""


class BoundaryKind(StrEnum):
    """How a boundary isolates; `cluster` is declared and answered with `NotSupported`."""

    VM = "vm"
    NAMESPACE = "namespace"
    CLUSTER = "cluster"


class Binding(StrEnum):
    """Who chooses the device of a window: we (`device`), we the GPU (`gpu`), or only the host (`host`)."""

    DEVICE = "device"
    GPU = "gpu"
    HOST = "host"


class Power(StrEnum):
    """Wanted or seen power of a workload."""

    ON = "on"
    OFF = "off"


class Presence(StrEnum):
    """State of one step's effect on the provider, as seen by an exact read."""

    ABSENT = "absent"
    PRESENT = "present"
    CHANGING = "changing"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ref:
    """Names one object of ours on one provider; everything in it derives from our row."""

    kind: Kind
    uid: UUID
    """Primary key of our row."""
    tenant_uid: UUID

    @property
    def name(self) -> str:
        """DNS-label name on the provider (at most 40 characters), from the id, never from a slug."""
        return f"tn-{_SHORT_KIND[self.kind]}-{self.uid.hex}"


_SHORT_KIND: Final[Mapping[Kind, str]] = {
    Kind.BOUNDARY: "bd",
    Kind.ENDPOINT: "ep",
    Kind.MACHINE: "vm",
    Kind.NAMESPACE: "ns",
    Kind.LAYOUT: "ly",
}


def layout_ref(host: str, device: str) -> Ref:
    """Return the ref of one GPU's MIG layout; it belongs to no tenant (the nil UUID)."""
    return Ref(Kind.LAYOUT, uuid5(NAMESPACE_URL, f"{MARK_DOMAIN}/layout/{host}/{device}"), UUID(int=0))


def intent_hash(value: object) -> str:
    """Return 16 hex digits that stand for `value` (JSON types, dataclass dicts; secrets excluded)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- specs: what should be true -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UnitSpec:
    """One unit of an allocation with its placement in the ledger."""

    uid: UUID
    index: int
    host: str
    """Provider's id of the host (from the snapshot)."""
    product: str
    """GPU product id as in the catalogue, `""` for a unit without a GPU."""
    profile: str
    """MIG profile name, `""` for whole GPUs."""
    gpu_count: int
    """Whole GPUs of this unit (0 with a profile or without a GPU)."""
    binding: Binding
    devices: tuple[str, ...]
    """Provider's stable ids of the GPUs; binding `device` and `gpu` must honour them, `host` ignores them."""
    starts: tuple[int, ...]
    """Window starts beside `devices`; only binding `device` honours them."""
    vcpu: int
    memory_gib: int
    role: str = "replica"
    """`replica`, `surge` or `machine`."""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """The gateway program to run: in a namespace boundary once, in a VM boundary once per endpoint VM."""

    uid: UUID
    """Row of the gateway replica; in a VM boundary equal to the unit's uid."""
    control_plane_url: str
    enrolment_token: Secret | None
    """One-time token; None once the replica has enrolled (then nothing is re-delivered)."""


@dataclass(frozen=True, slots=True)
class BoundarySpec:
    """What isolates one tenant on one provider."""

    ref: Ref
    kind: BoundaryKind
    tier: str
    generation: int
    gateway: GatewaySpec | None
    """Set for namespace boundaries."""
    vcpu: int
    memory_gib: int
    storage_gib: int
    gpu_resources: Mapping[str, int]
    """(`<product>.<profile>` or `<product>`) → count granted inside this boundary."""
    access: tuple[tuple[str, str], ...]
    """(opaque principal id, role) of people with direct access (namespace product)."""
    cut_off: bool = False
    """True while suspended at depth `network` or deeper."""


@dataclass(frozen=True, slots=True)
class ServingSpec:
    """One revision of a served model, rendered by a runtime into argv and environment."""

    revision_uid: UUID
    revision: int
    model: str
    """Name clients use (the endpoint's name)."""
    source: str
    """Repository id of the weights."""
    commit: str
    runtime: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    estimated_tokens_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Replicas of a served model inside a boundary."""

    ref: Ref
    boundary: Ref
    boundary_kind: BoundaryKind
    generation: int
    serving: ServingSpec
    units: tuple[UnitSpec, ...]
    gateways: tuple[GatewaySpec, ...]
    """One per unit in a `vm` boundary, empty in a namespace (the boundary's own gateway serves it)."""
    power: Power = Power.ON
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """One GPU VM with SSH."""

    ref: Ref
    boundary: Ref
    generation: int
    unit: UnitSpec
    image: str
    disk_gib: int
    ssh_keys: tuple[str, ...]
    power: Power = Power.ON
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class NamespaceSpec:
    """A namespace boundary handed to people: access objects on top of the boundary."""

    ref: Ref
    boundary: Ref
    generation: int
    units: tuple[UnitSpec, ...]
    access: tuple[tuple[str, str], ...]
    cut_off: bool = False


Spec = BoundarySpec | EndpointSpec | MachineSpec | NamespaceSpec


# --- steps ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One provider call or one batch of idempotent applies, that makes one part of a spec true.

    The same step with `undo=True` removes that part. Steps of an object form one ordered list: create
    and change walk it forwards, delete walks it backwards. An undo needs `ref` and `name` only, so parts
    that no spec asks for any more (a replica after scaling down) are removed by `removal_of`.
    """

    name: str
    """From the registry in `steps.py`, for example `vm.power`; units carry a suffix: `endpoint.replica[0]`."""
    key: str
    """Idempotency key: object uid + name + want; equal keys are the same intent."""
    want: str
    """`intent_hash` of what this step makes true; compared with `Part.have`."""
    limit_s: int
    """After this long without an end the handle counts as lost and the object is looked at again."""
    ref: Ref
    payload: Any
    """The spec or part of it; opaque to everybody but the driver; never logged."""
    undo: bool = False
    replaces: bool = False
    """True where a changed `want` needs undo before apply (a VM on another host), False where apply alters."""
    dormant: bool = False
    """True where it can be made only while its unit runs, and the unit is to be off: it may wait for that."""

    def undoing(self) -> Step:
        """Return the step that removes what this one makes."""
        return Step(
            self.name, f"{self.key}:undo", "", self.limit_s, self.ref, self.payload, undo=True, replaces=self.replaces
        )


def removal_of(ref: Ref, part: str, *, limit_s: int = 120) -> Step:
    """Return the undo of a part that was seen but belongs to no step of the spec; remove the last part first."""
    return Step(part, f"{ref.uid}:{part}::undo", "", limit_s, ref, None, undo=True)


@dataclass(frozen=True, slots=True)
class Handle:
    """A provider's running task, to be polled; stored as text in the intent row."""

    value: str


@dataclass(frozen=True, slots=True)
class Done:
    """The step's effect is there."""


@dataclass(frozen=True, slots=True)
class Poll:
    """State of a running handle; `unknown` (forgotten, lost) means: observe, never repeat blindly."""

    state: str
    """`running`, `done`, `failed` or `unknown`."""
    progress: float | None = None
    """0..1 where the provider tells."""
    error: DriverError | None = None


# --- observations ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """What an exact read shows of one step's effect."""

    step: str
    presence: Presence
    have: str = ""
    """`intent_hash` found on the object (annotation, attribute), `""` where none is readable."""
    handle: str = ""
    """A task the provider shows as running for this part, adopted after an unknown outcome."""
    message: str = ""
    ready: bool = True
    """False while the part exists but does not work yet (VM booting, replica loading its model)."""


@dataclass(frozen=True, slots=True)
class ObservedUnit:
    """Where a unit really runs."""

    uid: UUID
    host: str
    device: str
    """Provider's stable device id; `""` while it is not reported."""
    start: int | None
    profile: str
    exact: bool
    """False where the device was derived rather than reported."""
    index: int = 0
    """Which of the unit's GPUs, for units with several."""
    backend: str = ""
    """Base URL (ending in `/v1`) at which a gateway reaches this replica; `""` while it has none."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One object, read exactly. `parts`: one entry per step that exists at the provider, in the order of steps.

    An object that is not there has no parts at all: `exists` is False, and that is an exact read.
    """

    ref: Ref
    exists: bool
    parts: tuple[Part, ...] = ()
    units: tuple[ObservedUnit, ...] = ()
    address: str = ""
    """Base URL or host:port where it answers."""
    reachable_from: str = ""
    """`internet`, `tenant`, `cluster`, `lab` (loopback), `""` unknown."""
    model: str = ""
    revision: int | None = None
    power: Power | None = None
    blocked_by: str = ""
    """What stands in the way of deletion, in plain words (object and finalizer)."""
    simulated: bool = False

    def part(self, step: str) -> Part:
        """Return the part of `step`, absent if the provider shows none."""
        return next((p for p in self.parts if p.step == step), Part(step, Presence.ABSENT))


@dataclass(frozen=True, slots=True)
class ObservedGpu:
    """One physical GPU as the provider shows it."""

    device: str
    """Provider's stable id."""
    product: str
    index: int
    mode: str
    """`empty`, `mig`, `full` or `unknown`."""
    healthy: bool = True
    message: str = ""
    windows: tuple[tuple[int, int, str], ...] = ()
    """Carved MIG devices: (start, size, profile); empty where the provider does not report them."""
    layout_change: str = "fixed"
    """`fixed`, `on-idle` or `dynamic`."""


@dataclass(frozen=True, slots=True)
class ObservedHost:
    """One host with its GPUs."""

    host: str
    name: str
    binding: Binding
    vcpu: int
    memory_gib: int
    gpus: tuple[ObservedGpu, ...]
    healthy: bool = True
    message: str = ""
    in_maintenance: bool = False
    boundary_kinds: frozenset[BoundaryKind] = frozenset({BoundaryKind.VM, BoundaryKind.NAMESPACE})
    """Which boundaries may place workloads here: a cluster's node takes `namespace`, an ESXi host takes `vm`."""


@dataclass(frozen=True, slots=True)
class ObservedUse:
    """One use of GPU room, ours (`ref` and `unit` set) or foreign (both None)."""

    host: str
    device: str
    """`""` where the provider does not say which device."""
    start: int | None
    size: int
    profile: str
    """`""` for a whole GPU."""
    ref: Ref | None
    unit: UUID | None
    name: str
    """Name on the provider, for operators."""
    vcpu: int = 0
    memory_gib: int = 0


@dataclass(frozen=True, slots=True)
class ObservedObject:
    """One object with our mark found by the snapshot; unknown to us it is an orphan."""

    ref: Ref
    fingerprint: str
    """Changes whenever anything about the object that a pass cares for changes."""


@dataclass(frozen=True, slots=True)
class ObservedProvider:
    """A whole provider, read in a number of calls that does not grow with its objects."""

    hosts: tuple[ObservedHost, ...]
    uses: tuple[ObservedUse, ...]
    objects: tuple[ObservedObject, ...]
    capabilities: Capabilities
    complete: bool = True
    """False if any list was partial or stale; then absence means nothing and nothing is concluded from it."""
    version: str = ""
    """Provider's own version or time of the read, shown to operators."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the provider can do, found by asking it."""

    kind: str
    version: str
    boundary_kinds: frozenset[BoundaryKind]
    bindings: frozenset[Binding]
    features: Mapping[str, bool]
    """Named features (`isolate`, `power`, `layout-change`, `logs`, …) → available."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Feature → the one line that mends it."""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of an object's log."""

    at: str
    """RFC 3339, UTC."""
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Outcome of a host's acceptance run: one line per check."""

    passed: bool
    checks: tuple[tuple[str, bool, str], ...]
    """(name, passed, what was seen)."""


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """A wanted MIG layout of one GPU: the whole of it, not a difference."""

    host: str
    device: str
    windows: tuple[tuple[int, int, str], ...]


# --- the driver -----------------------------------------------------------------------------------


class Driver(Protocol):
    """Makes what a spec says exist on one provider, step by step.

    Steps are idempotent, start provider work without waiting for it (under 30 s), run outside any
    transaction and raise only `DriverError`s. Refs are made from our row's UUID.
    """

    def capabilities(self) -> Capabilities:
        """Ask the provider what it can do."""
        ...

    def snapshot(self) -> ObservedProvider:
        """Read the whole provider, foreign use and health included; calls do not grow with objects."""
        ...

    def observe(self, ref: Ref) -> Observed:
        """Read one object exactly; `exists=False` is a successful read that found nothing.

        Raises `TransientDriverError` when it cannot know: an error is never absence.
        """
        ...

    def steps(self, spec: Spec) -> Sequence[Step]:
        """Return the ordered steps of `spec`; pure. Raises `NotSupported`, `DriverRejected`."""
        ...

    def start(self, step: Step) -> Handle | Done:
        """Start one step (or its undo) and return at once."""
        ...

    def poll(self, handle: Handle) -> Poll:
        """Look at a running step."""
        ...

    def isolate(self, ref: Ref, *, cut_off: bool) -> Done:
        """Cut an object's network, keeping its memory, or restore it."""
        ...

    def power(self, ref: Ref, *, want: Power) -> Handle | Done:
        """Switch an object's power."""
        ...

    def evacuate(self, host: str) -> Sequence[ObservedUse]:
        """Stop the provider from placing anything on `host`; return what still uses it, foreign use included."""
        ...

    def restore(self, host: str) -> Done:
        """Undo `evacuate`."""
        ...

    def acceptance(self, host: str) -> Acceptance:
        """Run a small GPU workload per device of a host and say what was seen."""
        ...

    def layout_steps(self, change: LayoutChange) -> Sequence[Step]:
        """Return the steps that make one GPU's MIG layout; pure. Raises `NotSupported`."""
        ...

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        """Yield the newest `tail` log lines since an RFC 3339 time."""
        ...

    def close(self) -> None:
        """Give back sessions and connections."""
        ...
