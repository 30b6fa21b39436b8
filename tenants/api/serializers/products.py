"""Shapes of the three products: endpoints with revisions and keys, machines, namespaces."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from tenants import revision_diff
from tenants.api.serializers.base import In, Labels, ManagedBy, Moment, Name, Out, Query, absent, line, text
from tenants.api.serializers.capacity import CapacityIn, Power, ReconciledOut, UnitIn, UnitOut, reconciled
from tenants.api.serializers.moves import MoveOut
from tenants.key_limits import MOST_REQUESTS, MOST_TOKENS, KeyLimits
from tenants.machine_images import FIRST
from tenants.models import (
    Endpoint,
    EndpointKey,
    Machine,
    MachineConsole,
    Namespace,
    NamespaceCredential,
    Revision,
    Rollout,
    SshCertificate,
)
from tenants.operations.idling import LEAST_IDLE_S, LONGEST_IDLE_S, LONGEST_WAIT_S
from tenants.operations.machine_access import way_to
from tenants.operations.machine_consoles import Answer as ConsoleAnswer
from tenants.operations.machines import MAX_DISK_GIB, MAX_SSH_KEYS, SSH_KEY
from tenants.operations.namespace_access import Answer
from tenants.operations.rollouts import LONGEST_STEP_S, MOST_STEPS, live_of
from tenants.serving_arguments import ServingArguments
from tenants.specs import (
    MOST_MEMORY_GIB,
    MOST_VCPU,
    EndpointAsk,
    MachineAsk,
    NamespaceAsk,
    RevisionAsk,
    RolloutAsk,
    RolloutLimits,
    RolloutStep,
)
from tenants.ssh_ca import LONGEST_LINE, principal_of
from tenants.states import BudgetPeriod, IdleUnits, RolloutState, RolloutStrategy

MoneyIn = Annotated[
    str,
    StringConstraints(pattern=r"^([1-9][0-9]{0,8}(\.[0-9]{1,2})?|0\.[1-9][0-9]?|0\.0[1-9])$"),
    Field(description="Above 0, with at most 2 decimals, in the currency of the prices."),
]
Line80 = Annotated[str, StringConstraints(min_length=1, max_length=80)]


Image = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"),
    Field(description="Slug of an image: `/api/v1/machine-images` lists them.", json_schema_extra={"example": FIRST}),
]


class ArgumentsIn(ServingArguments):
    """Engine arguments: this list and no others."""


class RevisionIn(In):
    """What an endpoint serves."""

    model: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,58}[a-z0-9])?$", max_length=60)] = Field(
        description="Name of a served model."
    )
    arguments: ArgumentsIn = ArgumentsIn()
    runtime: Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")] = "vllm"

    def revision(self) -> RevisionAsk:
        """Return the domain's shape."""
        return RevisionAsk(self.model, self.arguments.model_dump(exclude_none=True), self.runtime)


class RolloutStepIn(In):
    """One step of a canary."""

    weight: Annotated[int, Field(ge=1, le=100, description="Percent of the requests that the new revision gets.")]
    seconds: Annotated[int, Field(ge=1, le=LONGEST_STEP_S)] | None = Field(
        None, description="How long; left out: until somebody promotes it."
    )


class RolloutLimitsIn(In):
    """What a new revision may cost its callers before its rollout is aborted by itself."""

    error_rate: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        0.05, description="Share of its requests that may fail; null: not looked at."
    )
    latency_ms: Annotated[int, Field(ge=1, le=60_000)] | None = Field(
        None, description="What 95 of 100 answers (of streams: first events) must keep to; null: not looked at."
    )
    min_requests: Annotated[int, Field(ge=1, le=100_000)] = Field(
        20, description="So many requests of a step are looked at before anything is concluded."
    )


class RolloutIn(In):
    """How another revision takes over."""

    strategy: RolloutStrategy = Field(
        RolloutStrategy.RECREATE, strict=False,
        description="canary: beside the old one, on a unit of its own; recreate: the old replicas stop first.",
    )  # fmt: skip
    steps: Annotated[list[RolloutStepIn], Field(max_length=MOST_STEPS)] = Field(
        [], description="Of a canary; none: it takes over as soon as it is ready."
    )
    limits: RolloutLimitsIn = RolloutLimitsIn()
    must_have_room: bool = Field(
        default=False, description="Refuse a canary without room for its unit, instead of making it a recreate."
    )

    def ask(self) -> RolloutAsk:
        """Return the domain's shape."""
        return RolloutAsk(
            self.strategy,
            tuple(RolloutStep(step.weight, step.seconds) for step in self.steps),
            RolloutLimits(self.limits.error_rate, self.limits.latency_ms, self.limits.min_requests),
            self.must_have_room,
        )


class EndpointReviseIn(RevisionIn):
    """What an endpoint serves next, and how it takes over."""

    rollout: RolloutIn = RolloutIn()


class RollbackIn(In):
    """Which earlier revision serves again, and how it takes over."""

    revision: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Its number; left out: the one that served before."
    )
    rollout: RolloutIn | None = Field(None, description="Left out: beside the present one, if there is room.")


class AbortIn(In):
    """Why a rollout is aborted."""

    reason: text(500) = ""  # type: ignore[valid-type]


class IdleIn(In):
    """When an endpoint goes to zero by itself, and how it wakes."""

    after_s: Annotated[int, Field(ge=LEAST_IDLE_S, le=LONGEST_IDLE_S)] | None = Field(
        None, description="Without a request for so long, in seconds; left out: never."
    )
    units: IdleUnits = Field(
        IdleUnits.KEEP, strict=False,
        description="keep: held and billed, it wakes as fast as its model loads; release: given back, waking queues.",
    )  # fmt: skip
    wait_s: Annotated[int, Field(ge=1, le=LONGEST_WAIT_S)] = Field(
        300, description="How long a request waits for it to wake before it is refused."
    )


class ProductIn(CapacityIn):
    """What every product has."""

    labels: Labels = {}
    description: text(500) = ""  # type: ignore[valid-type]
    managed_by: ManagedBy = "api"


class EndpointPut(ProductIn, RevisionIn):
    """A served model behind a URL (the name stands in the address)."""

    unit: UnitIn
    replicas: Annotated[int, Field(ge=1, le=32)] = 1

    def ask(self, name: str) -> EndpointAsk:
        """Return the domain's shape."""
        units = [self.unit] * self.replicas
        return EndpointAsk(name, self.revision(), self.capacity(units), self.labels, self.description)


class EndpointIn(EndpointPut):
    """A served model behind a URL."""

    name: Name


class MachinePut(ProductIn):
    """A GPU VM with SSH (the name stands in the address)."""

    unit: UnitIn
    image: Image
    disk_gib: Annotated[int, Field(ge=10, le=MAX_DISK_GIB)] = 100
    ssh_keys: Annotated[
        list[Annotated[str, StringConstraints(max_length=2000), Field(json_schema_extra={"pattern": SSH_KEY.pattern})]],
        Field(max_length=MAX_SSH_KEYS),
    ] = []

    def ask(self, name: str) -> MachineAsk:
        """Return the domain's shape."""
        return MachineAsk(
            name,
            self.capacity([self.unit]),
            self.image,
            self.disk_gib,
            tuple(self.ssh_keys),
            self.labels,
            self.description,
        )


class MachineIn(MachinePut):
    """A GPU VM with SSH."""

    name: Name


class SshCertificateIn(In):
    """The key that a certificate is for."""

    public_key: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_LINE)]


class PowerIn(In):
    """What a machine should be."""

    power: Power


class RebuildIn(In):
    """Of what a machine is made anew."""

    image: Image | None = Field(None, description="Left out: the one that it was made of.")


class ResizeIn(In):
    """What a machine is to have beside its GPUs; what is left out stays."""

    vcpu: Annotated[int, Field(ge=1, le=MOST_VCPU)] | None = None
    memory_gib: Annotated[int, Field(ge=1, le=MOST_MEMORY_GIB)] | None = None
    disk_gib: Annotated[int, Field(ge=10, le=MAX_DISK_GIB)] | None = Field(None, description="It can only grow.")


class NamespacePut(ProductIn):
    """A namespace boundary handed to people (the name stands in the address)."""

    units: Annotated[list[UnitIn], Field(min_length=1, max_length=64)]
    gang: bool = True

    def ask(self, name: str) -> NamespaceAsk:
        """Return the domain's shape."""
        return NamespaceAsk(name, self.capacity(self.units, gang=self.gang), self.labels, self.description)


class NamespaceIn(NamespacePut):
    """A namespace boundary handed to people."""

    name: Name


class ProductOut(ReconciledOut):
    """What every product shows."""

    description: str
    labels: dict[str, str]
    managed_by: str
    owner: str | None
    """Id of the person who asked for it."""
    allocation: str
    boundary: str | None
    provider: str | None
    spec: dict[str, Any]
    """What was asked for: units, where, term, on_shortage."""
    units: list[UnitOut]
    expires_at: datetime | None
    observed: dict[str, Any]


def product(row: Endpoint | Machine | Namespace) -> dict[str, Any]:
    """Return the fields of `ProductOut`; tenant, allocation with units and hosts, boundary must be loaded."""
    return {
        **reconciled(row, row.tenant),
        "description": row.description,
        "labels": row.labels,
        "managed_by": row.managed_by,
        "owner": str(row.owner_id) if row.owner_id else None,
        "allocation": row.allocation.short_id,
        "boundary": row.boundary.short_id if row.boundary is not None else None,
        "provider": row.boundary.provider.name if row.boundary is not None else None,
        "spec": row.allocation.spec,
        "units": [UnitOut.of(unit) for unit in row.allocation.units.all() if unit.released_at is None],
        "expires_at": row.allocation.expires_at,
        "observed": row.observed,
    }


class RolloutOut(Out):
    """Another revision taking over."""

    id: str
    revision: int
    before: int
    strategy: RolloutStrategy
    state: RolloutState
    step: int | None
    """Number of the step that it is at, from 1; null outside of steps."""
    weight: int | None
    """Percent of the requests that the new revision gets at this step."""
    held: bool
    steps: list[dict[str, Any]]
    limits: dict[str, Any]
    note: str
    """Why it is no canary although one was asked for."""
    reason: str
    """Why it was aborted."""
    since: datetime
    """Since when it is in this state, or at this step."""
    author: str | None
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Rollout) -> RolloutOut:
        """Return a rollout; both revisions must be loaded."""
        stepping = row.state == RolloutState.STEPPING.value
        return cls(
            id=str(row.pk),
            revision=row.revision.number,
            before=row.before.number,
            strategy=RolloutStrategy(row.strategy),
            state=RolloutState(row.state),
            step=row.step + 1 if stepping else None,
            weight=row.steps[row.step]["weight"] if stepping else None,
            held=row.held_at is not None,
            steps=row.steps,
            limits=row.limits,
            note=row.note,
            reason=row.reason,
            since=row.since,
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
            ended_at=row.ended_at,
        )


class DiffQuery(Query):
    """Which two revisions; left out: the one that serves against the one before it."""

    before: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = absent("Number of the older one.")
    after: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = absent("Number of the newer one.")


class DifferenceOut(Out):
    """One field that two revisions do not have alike."""

    field: str
    before: Any
    after: Any


class DiffOut(Out):
    """What is different between two revisions."""

    before: int
    after: int
    differences: list[DifferenceOut]

    @classmethod
    def of(cls, before: Revision, after: Revision) -> DiffOut:
        """Return the difference; their models must be loaded."""
        found = [
            DifferenceOut(field=one.field, before=one.before, after=one.after)
            for one in revision_diff.between(before, after)
        ]
        return cls(before=before.number, after=after.number, differences=found)


class EndpointOut(ProductOut):
    """A served model behind a URL."""

    address: str
    reachable_from: str
    model: str | None
    runtime: str | None
    arguments: dict[str, Any]
    revision: int | None
    slept_at: datetime | None
    """Since when it is to be at zero: no replica runs, and a request wakes it."""
    idle_after_s: int | None
    """Without a request for so long it goes to zero by itself; null: never."""
    idle_units: IdleUnits
    wake_wait_s: int
    rollout: RolloutOut | None
    """Another revision taking over now."""
    move: MoveOut | None
    """On its way to another boundary now."""
    key: str | None = Field(None, description="Plain text of the first key: only in the answer to its creation.")

    @classmethod
    def of(cls, row: Endpoint, *, key: str | None = None) -> EndpointOut:
        """Return an endpoint; revision with its model must be loaded too."""
        revision = row.revision
        live = getattr(row, "live_rollouts", None)  # loaded beside a list
        rolling = live_of(row) if live is None else next(iter(live), None)
        return cls(
            **product(row),
            address=row.address,
            reachable_from=row.reachable_from,
            model=revision.model.name if revision is not None else None,
            runtime=revision.runtime if revision is not None else None,
            arguments=revision.arguments if revision is not None else {},
            revision=revision.number if revision is not None else None,
            slept_at=row.slept_at,
            idle_after_s=row.idle_after_s,
            idle_units=IdleUnits(row.idle_units),
            wake_wait_s=row.wake_wait_s,
            rollout=None if rolling is None else RolloutOut.of(rolling),
            move=_moving(row),
            key=key,
        )


def _moving(row: Endpoint) -> MoveOut | None:
    """Return the move that an endpoint is in; only of one that moves anything is asked."""
    if row.moving_to_id is None:
        return None
    loaded = getattr(row, "live_moves", None)  # beside a list
    live = row.moves.filter(ended_at__isnull=True).select_related("stand_in") if loaded is None else loaded
    return next((MoveOut.of(one) for one in live), None)


class MachineOut(ProductOut):
    """A GPU VM with SSH."""

    image: str
    disk_gib: int
    ssh_keys: list[str]
    power: str
    address: str

    @classmethod
    def of(cls, row: Machine) -> MachineOut:
        """Return a machine."""
        return cls(
            **product(row),
            image=row.image,
            disk_gib=row.disk_gib,
            ssh_keys=row.ssh_keys,
            power=row.power,
            address=row.address,
        )


class SshCertificateOut(Out):
    """A certificate that opens one machine for some minutes, and how to get there."""

    id: str
    machine: str
    serial: str
    fingerprint: str = Field(description="Of the key that it is for.")
    principal: str = Field(description="What the machine looks for in it.")
    host: str
    port: int
    login: str = Field(description="Whom to log in as.")
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    certificate: str | None = Field(None, description="One line, for a file beside the private key: `…-cert.pub`.")

    @classmethod
    def of(cls, row: SshCertificate, *, certificate: str | None = None) -> SshCertificateOut:
        """Return a certificate; its machine must be loaded."""
        way = way_to(row.machine)
        return cls(
            id=str(row.pk),
            machine=row.machine.name,
            serial=str(row.serial),
            fingerprint=row.fingerprint,
            principal=principal_of(row.machine_id),
            host=way.host,
            port=way.port,
            login=way.login,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            certificate=certificate,
        )


class NamespaceOut(ProductOut):
    """A namespace boundary handed to people."""

    @classmethod
    def of(cls, row: Namespace) -> NamespaceOut:
        """Return a namespace."""
        return cls(**product(row))


class NamespaceCredentialIn(In):
    """What lets the caller into a namespace."""

    seconds: Annotated[int, Field(ge=60, le=3600, description="How long it is to last.")] = 3600


class CredentialOut(Out):
    """What lets the caller into a namespace: asked for, and answered by a worker some hundred milliseconds later."""

    id: str
    namespace: str
    state: Literal["asked", "made", "refused"]
    error: str
    expires_at: datetime | None
    token: str | None = Field(None, description="For the cluster's API server; shows to the person who asked only.")
    kubeconfig: str | None = Field(None, description="Asks `tenantry kube-credential` for a token; holds no secret.")
    static_kubeconfig: str | None = Field(None, description="Holds the token, and ends with it.")

    @classmethod
    def of(cls, row: NamespaceCredential, answer: Answer | None) -> CredentialOut:
        """Return a credential; its namespace must be loaded."""
        return cls(
            id=str(row.pk),
            namespace=row.namespace.name,
            state="made" if answer is not None else "refused" if row.answered_at is not None else "asked",
            error=row.error,
            expires_at=row.expires_at,
            token=None if answer is None else answer.token,
            kubeconfig=None if answer is None else answer.kubeconfig,
            static_kubeconfig=None if answer is None else answer.static_kubeconfig,
        )


class ConsoleOut(Out):
    """A way to a machine's screen: asked for, and answered by a worker some hundred milliseconds later."""

    id: str
    machine: str
    state: Literal["asked", "made", "refused"]
    error: str
    expires_at: datetime | None
    address: str | None = Field(
        None, description="A WebSocket (webmks) for one use: whoever has it is let in. Shows to who asked only."
    )
    fingerprint: str | None = Field(None, description="Of the certificate at the address.")
    simulated: bool

    @classmethod
    def of(cls, row: MachineConsole, answer: ConsoleAnswer | None) -> ConsoleOut:
        """Return a console; its machine must be loaded."""
        return cls(
            id=str(row.pk),
            machine=row.machine.name,
            state="made" if answer is not None else "refused" if row.answered_at is not None else "asked",
            error=row.error,
            expires_at=row.expires_at,
            address=None if answer is None else answer.address,
            fingerprint=None if answer is None else answer.fingerprint,
            simulated=row.simulated,
        )


class RevisionOut(Out):
    """What an endpoint serves; immutable."""

    id: str
    number: int
    model: str
    runtime: str
    arguments: dict[str, Any]
    author: str | None
    created_at: datetime

    @classmethod
    def of(cls, row: Revision) -> RevisionOut:
        """Return a revision; its model must be loaded."""
        return cls(
            id=str(row.pk),
            number=row.number,
            model=row.model.name,
            runtime=row.runtime,
            arguments=row.arguments,
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
        )


class KeyLimitsIn(In):
    """What a key may use; what is left out is not limited."""

    requests_per_minute: Annotated[int, Field(ge=1, le=MOST_REQUESTS)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    budget_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    budget_money: MoneyIn | None = None
    budget_period: BudgetPeriod = BudgetPeriod.MONTH

    def limits(self) -> KeyLimits:
        """Return the limits."""
        return KeyLimits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            budget_tokens=self.budget_tokens,
            budget_money=Decimal(self.budget_money) if self.budget_money is not None else None,
            budget_period=self.budget_period.value,
        )


class KeyIn(KeyLimitsIn):
    """A new key."""

    name: line(most=80)  # type: ignore[valid-type]
    expires_at: Moment | None = None


class RollIn(In):
    """How long the old key goes on."""

    overlap_s: Annotated[int, Field(ge=0, le=30 * 86400)] = 86400


class KeyOut(Out):
    """A key; its plain text only in the answer that makes it."""

    id: str
    name: str
    author: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    budget_tokens: int | None
    budget_money: str | None = Field(description="In the currency of the prices, with 2 digits after the point.")
    budget_period: BudgetPeriod
    key: str | None = Field(None, description="Plain text: only in the answer to its creation.")

    @classmethod
    def of(cls, row: EndpointKey, *, key: str | None = None) -> KeyOut:
        """Return a key; its successor must be loaded."""
        return cls(
            id=row.public_id,
            name=row.name,
            author=str(row.author_id) if row.author_id else None,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            replaced_by=row.replaced_by.public_id if row.replaced_by is not None else None,
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
            budget_tokens=row.budget_tokens,
            budget_money=None if row.budget_money is None else f"{row.budget_money:.2f}",
            budget_period=BudgetPeriod(row.budget_period),
            key=key,
        )
