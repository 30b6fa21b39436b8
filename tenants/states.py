"""States, transition tables, roles, condition types and reasons. Pure: no Django, no clock.

A phase is only ever derived from conditions (`phase_of`). A human flow moves along `TRANSITIONS`
by a conditional update; zero rows updated means somebody else was faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Final, Literal


class Role(IntEnum):
    """Roles within a tenant; they go up the tree: an owner of the parent is an owner of the child."""

    VIEWER = 1
    MEMBER = 2
    OWNER = 3

    @property
    def word(self) -> str:
        """Lower-case name as the API writes it."""
        return self.name.lower()


ROLE_BY_WORD: Final = {role.word: role for role in Role}


class PlatformRole(StrEnum):
    """Roles over the whole platform."""

    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"


class TenantStatus(StrEnum):
    """Life of a tenant."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    CLOSING = "closing"
    CLOSED = "closed"


class SuspensionDepth(StrEnum):
    """How deep a suspension cuts; each includes the ones before it."""

    KEYS = "keys"
    NETWORK = "network"
    POWER = "power"


DEPTH_ORDER: Final = {SuspensionDepth.KEYS: 1, SuspensionDepth.NETWORK: 2, SuspensionDepth.POWER: 3}


class StockVisibility(StrEnum):
    """How exactly a tenant sees free stock."""

    EXACT = "exact"
    BANDS = "bands"
    YES_NO = "yes-no"


class HostState(StrEnum):
    """Life of a host; nothing is placed before `open`."""

    JOINING = "joining"
    ACCEPTED = "accepted"
    OPEN = "open"
    CORDONED = "cordoned"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"
    REMOVED = "removed"


class HoldKind(StrEnum):
    """Why a window is kept."""

    TENANT = "tenant"
    FOREIGN = "foreign"
    MAINTENANCE = "maintenance"
    FAULT = "fault"
    RESERVED = "reserved"


class Binding(StrEnum):
    """Who chooses the device (see design: binding); same words as `provisioners.driver.Binding`."""

    DEVICE = "device"
    GPU = "gpu"
    HOST = "host"


class BoundaryKind(StrEnum):
    """How a boundary isolates."""

    VM = "vm"
    NAMESPACE = "namespace"
    CLUSTER = "cluster"


class KeyScope(StrEnum):
    """What a key of an endpoint may ask for."""

    INFERENCE = "inference"
    """Everything that the endpoint answers."""
    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    MODELS = "models"
    """What is served, by name."""


class BudgetPeriod(StrEnum):
    """After what time a budget begins anew; all begin in UTC."""

    DAY = "day"
    WEEK = "week"
    """Begins on Monday."""
    MONTH = "month"


class Login(StrEnum):
    """How people get into machines."""

    CERTIFICATE = "certificate"
    """Signed for one key and one machine, for some minutes (`tenants.ssh_ca`)."""
    KEY = "key"
    """Put into the machine when it is made, and there for as long as it lives."""


class Tier(StrEnum):
    """How far apart neighbours are kept."""

    SHARED = "shared"
    EXCLUSIVE_GPU = "exclusive-gpu"
    DEDICATED_HOST = "dedicated-host"
    CONFIDENTIAL = "confidential"


class Priority(StrEnum):
    """Whether a running allocation may be taken back for another."""

    STANDARD = "standard"
    PREEMPTIBLE = "preemptible"


class ServiceClass(StrEnum):
    """What happens at the end of a term."""

    TRIAL = "trial"
    STANDARD = "standard"
    PRODUCTION = "production"


class OnShortage(StrEnum):
    """What to do when quota is short."""

    FAIL = "fail"
    REQUEST = "request"
    WAIT = "wait"


class ProductKind(StrEnum):
    """What owns an allocation: the three products, or the bare allocation itself."""

    ENDPOINT = "endpoint"
    MACHINE = "machine"
    NAMESPACE = "namespace"
    BARE = "bare"


class RolloutStrategy(StrEnum):
    """How another revision takes over."""

    RECREATE = "recreate"
    """The old replicas stop first; requests wait meanwhile, for as long as they may."""
    CANARY = "canary"
    """It runs beside the old one on a unit of its own and gets more and more of the requests."""


class RolloutState(StrEnum):
    """Life of a rollout; drawn in `tenants.rollouts`."""

    DRAINING = "draining"
    PREPARING = "preparing"
    STEPPING = "stepping"
    PROMOTING = "promoting"
    ABORTING = "aborting"
    DONE = "done"
    ABORTED = "aborted"


ROLLOUT_FINAL: Final = frozenset({RolloutState.DONE, RolloutState.ABORTED})


class BenchmarkState(StrEnum):
    """Life of a benchmark: waiting → running → done, failed or cancelled."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


BENCHMARK_LIVE: Final = frozenset({BenchmarkState.WAITING, BenchmarkState.RUNNING})


class IdleUnits(StrEnum):
    """What becomes of the units of an endpoint at zero."""

    KEEP = "keep"
    """Held and billed: waking takes as long as the model loads."""
    RELEASE = "release"
    """Given back: waking queues for room like any other."""


class ModelTask(StrEnum):
    """What a served model does."""

    GENERATE = "generate"
    """Writes: chat and completions."""
    EMBED = "embed"
    """Turns texts into vectors: embeddings."""


class StageState(StrEnum):
    """Where the files of a model are on their way to a provider."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REMOVED = "removed"


STAGE_FINAL: Final = frozenset({StageState.DONE, StageState.FAILED, StageState.REMOVED})


class RequestKind(StrEnum):
    """What a tenant may ask people for."""

    QUOTA = "quota"
    TENANT = "tenant"
    JOIN = "join"
    WRITE_OFF = "write-off"
    MODEL = "model"
    EXCEPTION = "exception"
    LAYOUT = "layout"


class RequestState(StrEnum):
    """Life of a request."""

    SUBMITTED = "submitted"
    APPROVED = "approved"
    REDUCED = "reduced"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"


REQUEST_FINAL: Final = frozenset(RequestState) - {RequestState.SUBMITTED}

TRANSITIONS: Final[Mapping[type[StrEnum], Mapping[StrEnum, frozenset[StrEnum]]]] = {
    RequestState: {RequestState.SUBMITTED: REQUEST_FINAL},
    HostState: {
        HostState.JOINING: frozenset({HostState.ACCEPTED, HostState.REMOVED}),
        HostState.ACCEPTED: frozenset({HostState.OPEN, HostState.REMOVED}),
        HostState.OPEN: frozenset({HostState.CORDONED, HostState.DRAINING}),
        HostState.CORDONED: frozenset({HostState.OPEN, HostState.DRAINING, HostState.REMOVED}),
        HostState.DRAINING: frozenset({HostState.OPEN, HostState.CORDONED, HostState.MAINTENANCE}),
        HostState.MAINTENANCE: frozenset({HostState.ACCEPTED, HostState.OPEN, HostState.REMOVED}),
        HostState.REMOVED: frozenset(),
    },
    TenantStatus: {
        TenantStatus.ACTIVE: frozenset({TenantStatus.SUSPENDED, TenantStatus.CLOSING}),
        TenantStatus.SUSPENDED: frozenset({TenantStatus.ACTIVE, TenantStatus.CLOSING}),
        TenantStatus.CLOSING: frozenset({TenantStatus.CLOSED}),
        TenantStatus.CLOSED: frozenset(),
    },
}


class MoveState(StrEnum):
    """Where the move of an endpoint to another boundary is (`tenants.moves`)."""

    PREPARING = "preparing"
    BESIDE = "beside"
    CUTTING = "cutting"
    WATCHING = "watching"
    LEAVING = "leaving"
    UNDOING = "undoing"
    DONE = "done"
    UNDONE = "undone"


MOVE_FINAL: Final = frozenset({MoveState.DONE, MoveState.UNDONE})
MOVE_CUT: Final = frozenset({MoveState.CUTTING, MoveState.WATCHING, MoveState.LEAVING})
"""States in which the endpoint's name is at the new place."""


class Phase(StrEnum):
    """The only phases; one word for people."""

    AWAITING_APPROVAL = "AwaitingApproval"
    WAITING = "Waiting"
    PROVISIONING = "Provisioning"
    READY = "Ready"
    DEGRADED = "Degraded"
    SUSPENDED = "Suspended"
    EXPIRING = "Expiring"
    DELETING = "Deleting"
    RELEASED = "Released"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """What passes say about an object."""

    APPROVED = "Approved"
    PLACED = "Placed"
    BOUNDARY_READY = "BoundaryReady"
    PROVISIONED = "Provisioned"
    SERVING = "Serving"
    READY = "Ready"
    SUSPENDED = "Suspended"
    EXPIRING = "Expiring"
    DELETED = "Deleted"
    HEALTHY = "Healthy"


class Reason(StrEnum):
    """CamelCase reasons of conditions; each has a help text in `docs/reasons.md`."""

    DONE = "Done"
    AWAITING_DECISION = "AwaitingDecision"
    OVER_QUOTA = "OverQuota"
    NO_CAPACITY = "NoCapacity"
    HELD_BY_OTHERS = "HeldByOthers"
    POLICY_FORBIDS = "PolicyForbids"
    STEP_RUNNING = "StepRunning"
    STEP_OVERDUE = "StepOverdue"
    WAITING_FOR_BOUNDARY = "WaitingForBoundary"
    WAITING_FOR_PLACEMENT = "WaitingForPlacement"
    STARTING = "Starting"
    PROVIDER_UNAVAILABLE = "ProviderUnavailable"
    NOT_SUPPORTED = "NotSupported"
    REJECTED = "Rejected"
    DENIED = "Denied"
    NAME_TAKEN = "NameTaken"
    PROVIDER_ERROR = "ProviderError"
    INTERNAL_ERROR = "InternalError"
    BLOCKED = "Blocked"
    REPLACING = "Replacing"
    BY_OPERATOR = "ByOperator"
    BY_OWNER = "ByOwner"
    TERM_ENDED = "TermEnded"
    REVIEW_OVERDUE = "ReviewOverdue"
    GRACE = "Grace"
    UNHEALTHY = "Unhealthy"
    HOST_LOST = "HostLost"
    LOST = "Lost"
    ASLEEP = "Asleep"
    WAKING = "Waking"
    OVERLOADED = "Overloaded"
    WRITTEN_OFF = "WrittenOff"


STOPPING_REASONS: Final = frozenset({Reason.NOT_SUPPORTED, Reason.REJECTED})
"""A condition False for one of these stops the object until its spec changes: phase Failed."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: type, status True·False·Unknown, reason, message, when it last changed."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str
    last_transition_at: str
    """RFC 3339 UTC."""
    observed_generation: int

    def as_json(self) -> dict[str, Any]:
        """Return the shape stored and shown."""
        return {key: (str(value) if isinstance(value, StrEnum) else value) for key, value in asdict(self).items()}


def set_condition(
    conditions: Sequence[Mapping[str, Any]],
    kind: ConditionType,
    status: Literal["True", "False", "Unknown"],
    reason: Reason,
    message: str,
    *,
    now: datetime,
    generation: int,
) -> list[dict[str, Any]]:
    """Return `conditions` with one set; the transition time moves only when the status does."""
    old = next((c for c in conditions if c["type"] == kind), None)
    at = old["last_transition_at"] if old is not None and old["status"] == status else now.isoformat()
    new = Condition(kind, status, reason, message, at, generation).as_json()
    rest = [dict(c) for c in conditions if c["type"] != kind]
    return sorted([*rest, new], key=lambda c: str(c["type"]))


def condition_of(conditions: Sequence[Mapping[str, Any]], kind: ConditionType) -> Mapping[str, Any] | None:
    """Return the condition of a type, or None."""
    return next((c for c in conditions if c["type"] == kind), None)


def phase_of(  # noqa: PLR0911 - a decision table reads best flat
    conditions: Sequence[Mapping[str, Any]], *, deleting: bool, released: bool
) -> Phase:
    """Derive the phase; the order of the rules is their precedence."""
    status = {c["type"]: c["status"] for c in conditions}
    reason = {c["type"]: c["reason"] for c in conditions}
    if released:
        return Phase.RELEASED
    if deleting:
        return Phase.DELETING
    if status.get(ConditionType.APPROVED) == "False":
        return Phase.AWAITING_APPROVAL
    if status.get(ConditionType.SUSPENDED) == "True":
        return Phase.SUSPENDED
    if any(status[t] == "False" and reason[t] in STOPPING_REASONS for t in status):
        return Phase.FAILED
    if status.get(ConditionType.PLACED) == "False" and reason[ConditionType.PLACED] != Reason.ASLEEP:
        return Phase.WAITING
    if status.get(ConditionType.EXPIRING) == "True":
        return Phase.EXPIRING
    ready = condition_of(conditions, ConditionType.READY)
    if ready is not None and ready["status"] == "True":
        return Phase.DEGRADED if status.get(ConditionType.HEALTHY) == "False" else Phase.READY
    if ready is not None and ready["reason"] in {Reason.UNHEALTHY, Reason.HOST_LOST, Reason.LOST}:
        return Phase.DEGRADED
    return Phase.PROVISIONING
