"""What a driver saw: one object exactly, or the whole provider in one snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from provisioners.driver.names import Binding, BoundaryKind, Power, Presence, Ref, Secret


class RemarkKind(StrEnum):
    """What others did that a driver remarks on; each is a kind of finding too."""

    CHANGED = "changed-by-others"
    """A part of ours is there and is not as our record says that we made it."""
    SNAPSHOTS = "snapshots-kept"
    """Snapshots of a machine of ours, which make its disks grow."""
    CARDS = "cards-changed"
    """A machine's network card is in another network, or has another MAC address."""
    RULES = "isolation-changed"
    """What keeps a boundary's network apart is another: its VLAN, the switches of its ports, its policies."""
    ACCESS = "access-changed"
    """Others than those we let in may reach a boundary's objects, or those may not."""
    FIELD_FIGHT = "field-fight"
    """Somebody takes a field back again and again; it was left to people."""
    FOREIGN = "foreign-object"
    """Something that is not ours lies where only ours should."""
    LEFT = "left-files"
    """Files on a datastore that are named like a machine of ours and that no machine has."""


SECURITY: Final = frozenset({RemarkKind.CARDS, RemarkKind.RULES, RemarkKind.ACCESS})
"""Kinds about what keeps tenants apart."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing that others did, on the part that it is about or, of no object of ours, in the snapshot."""

    kind: RemarkKind
    text: str
    """For people, without the object's own name."""
    subject: str = ""
    """Which of several of a kind; stable. In a snapshot unique within the provider."""
    uid: UUID | None = None
    """Whose it once was, where that is not the object looked at."""
    removable: bool = False
    """Whether `RemovesLeftovers.remove_left` can take it away for certain as ours."""


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
    remarks: tuple[Remark, ...] = ()
    """What others did to it, compared with what our own record on it says; told at every look while it is so."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What the program that serves a replica said of itself once it was ready; None for what it did not say."""

    program: str
    """Name and version."""
    runs_on: str = ""
    """What it really runs on, where that is not the unit's GPU."""
    kv_cache_tokens: int | None = None
    """Tokens that its cache has room for, over all requests."""
    kv_cache_bytes: int | None = None
    weights_bytes: int | None = None
    """Memory that the loaded weights take."""
    load_s: float | None = None
    """From its start until it was ready."""


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
    revision: int | None = None
    """Number of the revision that its replica runs, where it is told; while another one takes over they differ."""
    engine: EngineReport | None = None
    """What its model server says of itself; None where nobody asked a real one."""
    gateway: str = ""
    """Base URL (ending in `/v1`) of the gateway in its machine, by which those in the endpoint's other machines reach
    its replica; `""` where any gateway reaches `backend`."""


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
    asleep: bool = False
    """Whether none of its replicas runs although its machines do, as `EndpointSpec.asleep` wants it."""
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
    contradictions: tuple[str, ...] = ()
    """What the host says of its GPUs that cannot all be true, or that nobody should build on, in words for people."""


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
class Restored:
    """Something of the whole provider that isolates tenants, was changed by somebody else and put back by us."""

    name: str
    """How it is called at the provider, for operators."""
    at: datetime
    by: str = ""
    """Who had changed it, as far as the provider tells; `""` where it was gone."""
    fields: tuple[str, ...] = ()


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
    remarks: tuple[Remark, ...] = ()
    """What others did beside our objects."""
    looked_for: frozenset[RemarkKind] = frozenset()
    """Kinds of `remarks` that this snapshot looked for: only of these does absence mean anything."""
    restored: tuple[Restored, ...] | None = ()
    """What had to be put back within the last hour, told by each snapshot until then; None where nobody could look."""


@dataclass(frozen=True, slots=True)
class Lot:
    """One thing beside hosts and GPUs that a provider is made of, for operators to read."""

    kind: str
    """`datastore`, `switch`, `network`, `driver`."""
    name: str
    words: str = ""
    """What it is, in a few words."""
    free_gib: int | None = None
    size_gib: int | None = None
    problem: str = ""
    """What is to be mended, with how."""


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
    images: frozenset[str] | None = None
    """Slugs of the images of which machines can be made now; None: it does not say."""
    lots: tuple[Lot, ...] = ()
    """Datastores, networks and drivers, as far as it tells of them."""


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
class Console:
    """A way to the screen and keyboard of one machine, for one use within a short time."""

    address: Secret
    """`wss://…` with the ticket in it: whoever has it is let in."""
    expires_at: datetime
    fingerprint: str = ""
    """SHA-1 or SHA-256 of the certificate that the address shows, as the provider tells it."""
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Credential:
    """What lets one person into a boundary for a while."""

    token: Secret
    expires_at: datetime
    namespace: str
    """Where it lets one in."""
    kubeconfig: str
    """Runs a command for a token whenever one is needed; holds no secret."""
    static_kubeconfig: Secret
    """Holds the token, and ends with it."""


@dataclass(frozen=True, slots=True)
class IsolationCheck:
    """One check of a boundary's isolation."""

    key: str
    title: str
    outcome: str
    """`passed`, `failed`, `withheld` (not given on purpose) or `unknown` (it could not be tried)."""
    seen: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was tried against a boundary at one time, and what held."""

    ref: Ref
    at: datetime
    version: str
    """The provider's own version."""
    checks: tuple[IsolationCheck, ...]
    unshown: tuple[str, ...]
    """What no check can show, in sentences."""
    simulated: bool = False

    @property
    def passed(self) -> bool:
        """Whether nothing failed and everything could be tried."""
        return all(check.outcome in {"passed", "withheld"} for check in self.checks)


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """A wanted MIG layout of one GPU: the whole of it, not a difference."""

    host: str
    device: str
    windows: tuple[tuple[int, int, str], ...]
    beside: tuple[tuple[str, tuple[tuple[int, int, str], ...]], ...] = ()
    """(GPU, windows) of others on the host that are carved in the same go, where one go changes the whole host."""
    evict: bool = False
    """Whoever uses the GPUs was told and is to be evicted; otherwise only what nobody uses is carved."""
