"""The three products (endpoint, machine, namespace), served models, revisions, keys and gateway replicas."""

from __future__ import annotations

from typing import Any, ClassVar, Final
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from tenants.models.allocation import Allocation, Boundary
from tenants.models.fields import SlugField, WordField, choice_check, primary_key, short_id, slug_check
from tenants.models.reconciled import Reconciled, reconciled_constraints, reconciled_indexes
from tenants.states import (
    MOVE_FINAL,
    ROLLOUT_FINAL,
    BudgetPeriod,
    IdleUnits,
    KeyScope,
    ModelTask,
    MoveState,
    RolloutState,
    RolloutStrategy,
)

MODEL_SOURCE: Final = (
    r"^(hub|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*|nfs://[A-Za-z0-9.-]{1,120}(/[A-Za-z0-9._-]+)+)$"
)
"""Where weights are loaded from: the hub, or a mirror in which each lies at `<repository>/<commit>`."""


class ServedModel(models.Model):
    """A model of the catalogue, pinned to a commit by an operator, or a tenant's own, pinned by a decision."""

    id = primary_key()
    name = SlugField(unique=True, max_length=60)
    repository = models.CharField(max_length=200)
    commit = models.CharField(max_length=64)
    licence = models.CharField(max_length=80, blank=True, default="")
    gating = models.CharField(max_length=120, blank=True, default="", db_default="")
    """What its publisher asks for before the weights may be loaded; `""` for nothing."""
    source = models.CharField(max_length=200, default="hub", db_default="hub")
    """`MODEL_SOURCE`."""
    task = WordField(default=ModelTask.GENERATE, db_default=ModelTask.GENERATE.value)
    tenant = models.ForeignKey(
        "tenants.Tenant", null=True, blank=True, on_delete=models.PROTECT, related_name="own_models"
    )
    """Whose own it is, with those below; None: everybody's, as far as policies let them."""
    geometry = models.JSONField(default=dict)
    """What its `config.json` says (`tenants.model_configs`); {} where it was not checked."""
    config_digest = models.CharField(max_length=64, blank=True, default="", db_default="")
    """SHA-256 of the `config.json` that was checked."""
    quantisation = models.CharField(max_length=20, default="native")
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(condition=Q(commit__regex=r"^[0-9a-f]{40,64}$"), name="served_model_commit"),
            models.CheckConstraint(condition=Q(source__regex=MODEL_SOURCE), name="served_model_source"),
            choice_check("served_model_task", "task", ModelTask),
            models.CheckConstraint(
                condition=Q(config_digest="") | Q(config_digest__regex=r"^[0-9a-f]{64}$"), name="served_model_config"
            ),
        ]


class Product(Reconciled):
    """What the three products share: a tenant, a name, an allocation, a boundary."""

    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="%(class)ss")
    name = SlugField()
    description = models.CharField(max_length=500, blank=True, default="")
    labels = models.JSONField(default=dict, blank=True)
    managed_by = models.CharField(max_length=16, default="api")
    allocation = models.OneToOneField(Allocation, on_delete=models.PROTECT, related_name="%(class)s")
    boundary = models.ForeignKey(Boundary, null=True, blank=True, on_delete=models.PROTECT, related_name="%(class)ss")
    created_at = models.DateTimeField()
    owner = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    """The person who asked for it; handed over when he leaves."""
    version = models.PositiveIntegerField(default=1)

    class Meta:
        abstract = True


def _product_meta(prefix: str) -> tuple[list[Any], list[models.Index]]:
    return (
        [
            models.UniqueConstraint(
                fields=["tenant", "name"], condition=Q(released_at__isnull=True), name=f"{prefix}_name_live"
            ),
            slug_check(f"{prefix}_name"),
            *reconciled_constraints(prefix),
        ],
        [
            *reconciled_indexes(prefix),
            models.Index(fields=["tenant", "created_at", "id"], name=f"{prefix}_tenant_created"),
            models.Index(fields=["created_at", "id"], name=f"{prefix}_created"),
        ],
    )


_endpoint_constraints, _endpoint_indexes = _product_meta("endpoint")
_machine_constraints, _machine_indexes = _product_meta("machine")
_namespace_constraints, _namespace_indexes = _product_meta("namespace")


class ShownEndpoints(models.Manager["Endpoint"]):
    """Endpoints as people know them: no stand-ins of ones that move. `_base_manager` has all."""

    def get_queryset(self) -> models.QuerySet[Endpoint]:
        """Return those that stand in for nobody."""
        return super().get_queryset().filter(stands_in_for__isnull=True)


class Endpoint(Product):
    """A served model behind a URL inside a boundary."""

    id = primary_key()
    short_id = short_id("ep")
    revision = models.ForeignKey(
        "tenants.Revision", null=True, on_delete=models.PROTECT, related_name="+", db_constraint=True
    )
    """The revision that should serve."""
    address = models.CharField(max_length=300, blank=True, default="")
    reachable_from = models.CharField(max_length=20, blank=True, default="")
    slept_at = models.DateTimeField(null=True, blank=True)
    """Since when it is to be at zero: no replica runs, and a request wakes it. Null: it is to run."""
    woken_at = models.DateTimeField(null=True, blank=True)
    """When it was woken last; its idle time counts from then at the earliest."""
    idle_after_s = models.PositiveIntegerField(null=True, blank=True)
    """Without a request for so long it goes to zero by itself; null: never."""
    idle_units = WordField(default=IdleUnits.KEEP, db_default=IdleUnits.KEEP.value)
    wake_wait_s = models.PositiveIntegerField(default=300, db_default=300)
    """How long a request waits for it to wake before it is refused."""
    seat = models.UUIDField(null=True, blank=True)
    """Id of its object at its provider; null: its own. A move makes another object, which it takes over."""
    stands_in_for = models.ForeignKey("self", null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    """Set for the other place of an endpoint that moves, and for its former one until nothing of that is left."""
    moving_to = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    """The place that it moves to, as long as a move is on its way."""

    objects = ShownEndpoints()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            *_endpoint_constraints,
            models.UniqueConstraint(Coalesce("seat", "id"), name="endpoint_seat"),
            models.CheckConstraint(
                condition=Q(stands_in_for__isnull=True) | Q(moving_to__isnull=True), name="endpoint_stands_still"
            ),
            choice_check("endpoint_idle_units", "idle_units", IdleUnits),
            models.CheckConstraint(
                condition=Q(idle_after_s__isnull=True) | Q(idle_after_s__gte=60), name="endpoint_idle_after"
            ),
            models.CheckConstraint(condition=Q(wake_wait_s__gte=1, wake_wait_s__lte=3600), name="endpoint_wake_wait"),
        ]
        indexes = _endpoint_indexes

    @property
    def served_id(self) -> UUID:
        """Return the endpoint whose requests this place answers: itself, or the one that it stands in for."""
        found: UUID = self.stands_in_for_id or self.pk
        return found

    @property
    def served(self) -> Endpoint:
        """Return that endpoint."""
        return self.stands_in_for or self


class Revision(models.Model):
    """What an endpoint serves; immutable once written."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()
    model = models.ForeignKey(ServedModel, on_delete=models.PROTECT, related_name="+")
    runtime = SlugField(default="vllm")
    arguments = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField()
    author = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    hop_key_sealed = models.BinaryField(null=True, blank=True)
    """What gateways show to its model servers (`tenants.hop_keys`); null for revisions older than such keys."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["endpoint", "number"], name="revision_number"),
        ]


class Rollout(models.Model):
    """Another revision taking over at one endpoint, from the asking to its end; see `tenants.rollouts`."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="rollouts")
    before = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="+")
    """The revision that served when it began, and does again when it is aborted."""
    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="+")
    strategy = WordField()
    note = models.CharField(max_length=500, blank=True, default="")
    """Why it is no canary although one was asked for."""
    steps = models.JSONField(default=list)
    """[{weight, seconds}]; seconds null: until somebody promotes."""
    limits = models.JSONField(default=dict)
    """`tenants.specs.RolloutLimits`."""
    state = WordField()
    since = models.DateTimeField()
    """When it came into its state, or its step, or began to wait for what it waits for."""
    step = models.PositiveSmallIntegerField(default=0)
    held_at = models.DateTimeField(null=True, blank=True)
    """Since when somebody keeps it at its step."""
    surge = models.UUIDField(null=True, blank=True)
    """The unit that was claimed for it."""
    on_new = models.JSONField(default=list)
    """Ids of the units that are to run the new revision."""
    draining = models.UUIDField(null=True, blank=True)
    """The unit that gets no requests any more and ends those that it has."""
    leaving = models.UUIDField(null=True, blank=True)
    """The unit that is to stop for good and is given back then."""
    unready_since = models.DateTimeField(null=True, blank=True)
    """Since when the new revision's replica does not work, while it should."""
    baseline = models.JSONField(default=dict)
    """Gateway → its counts of the new revision when the step began."""
    reason = models.CharField(max_length=500, blank=True, default="")
    """Why it was aborted."""
    author = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["endpoint"], condition=Q(ended_at__isnull=True), name="rollout_one_at_once"
            ),
            choice_check("rollout_strategy", "strategy", RolloutStrategy),
            choice_check("rollout_state", "state", RolloutState),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=False, state__in=sorted(ROLLOUT_FINAL))
                | (Q(ended_at__isnull=True) & ~Q(state__in=sorted(ROLLOUT_FINAL))),
                name="rollout_ended",
            ),
            models.CheckConstraint(
                condition=Q(strategy=RolloutStrategy.RECREATE.value, surge__isnull=True)
                | Q(strategy=RolloutStrategy.CANARY.value, surge__isnull=False),
                name="rollout_surge",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["endpoint", "created_at", "id"], name="rollout_endpoint"),
        ]


class Move(models.Model):
    """One endpoint on its way to another boundary, from the asking to its end; see `tenants.moves`."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="moves")
    stand_in = models.ForeignKey(Endpoint, null=True, on_delete=models.SET_NULL, related_name="+")
    """The new place; once the endpoint has taken that over, its former one."""
    source = models.JSONField(default=dict)
    """{kind, provider, site}."""
    target = models.JSONField(default=dict)
    """The same, as far as it was asked for; all of it once it has room there."""
    by_hand = models.BooleanField(default=False)
    watch_s = models.PositiveIntegerField(default=300)
    state = WordField()
    since = models.DateTimeField()
    cut_at = models.DateTimeField(null=True, blank=True)
    """When its name went over."""
    unready_since = models.DateTimeField(null=True, blank=True)
    """Since when it does not work there, while it should."""
    reason = models.CharField(max_length=500, blank=True, default="")
    """Why it was undone."""
    author = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["endpoint"], condition=Q(ended_at__isnull=True), name="move_one_at_once"),
            choice_check("move_state", "state", MoveState),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=False, state__in=sorted(word.value for word in MOVE_FINAL))
                | (Q(ended_at__isnull=True) & ~Q(state__in=sorted(word.value for word in MOVE_FINAL))),
                name="move_ended",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["endpoint", "created_at", "id"], name="move_endpoint"),
        ]


def everything() -> list[str]:
    """Return the scopes of a key for which nobody said any."""
    return [KeyScope.INFERENCE.value]


class EndpointKey(models.Model):
    """Hash of a key clients use against an endpoint."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="keys")
    public_id = models.CharField(max_length=16, unique=True)
    digest = models.CharField(max_length=64)
    """SHA-256, hex."""
    name = models.CharField(max_length=80)
    scopes = ArrayField(WordField(), default=everything, db_default=[KeyScope.INFERENCE.value])
    """What it may ask for, in the order of `KeyScope`."""
    author = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    replaced_by = models.ForeignKey("self", null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    lineage = models.CharField(max_length=16, blank=True, default="", db_default="")
    """Public id of the first key of those that were rolled into this one: they share limits. `""`: its own."""
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveBigIntegerField(null=True, blank=True)
    budget_tokens = models.PositiveBigIntegerField(null=True, blank=True)
    """In each period."""
    budget_money = models.DecimalField(max_digits=12, decimal_places=2, null=True, blank=True)
    """What its tokens may cost in each period, in the currency of all prices."""
    budget_period = WordField(default=BudgetPeriod.MONTH, db_default="month")

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(condition=Q(digest__regex=r"^[0-9a-f]{64}$"), name="endpoint_key_digest"),
            choice_check("endpoint_key_period", "budget_period", BudgetPeriod),
            models.CheckConstraint(
                condition=Q(scopes__contained_by=[scope.value for scope in KeyScope]) & Q(scopes__len__gt=0),
                name="endpoint_key_scopes",
            ),
            models.CheckConstraint(
                condition=(Q(requests_per_minute__isnull=True) | Q(requests_per_minute__gt=0))
                & (Q(tokens_per_minute__isnull=True) | Q(tokens_per_minute__gt=0))
                & (Q(budget_tokens__isnull=True) | Q(budget_tokens__gt=0))
                & (Q(budget_money__isnull=True) | Q(budget_money__gt=0)),
                name="endpoint_key_limits",
            ),
        ]

    @property
    def limits_id(self) -> str:
        """Return whose limits hold for it: its own, or those of the key that it was rolled from."""
        return str(self.lineage or self.public_id)


class Machine(Product):
    """A GPU VM with SSH."""

    id = primary_key()
    short_id = short_id("vm")
    image = models.CharField(max_length=120)
    disk_gib = models.PositiveIntegerField()
    ssh_keys = models.JSONField(default=list)
    power = models.CharField(max_length=8, default="on")
    build = models.PositiveIntegerField(default=1)
    """How often it was asked for: raised to have it made anew with another disk."""
    kept = models.CharField(max_length=64, blank=True, default="")
    """Want of the clone that was last seen working: gone although nothing else is wanted, it is lost, not remade."""
    resizes = models.PositiveIntegerField(default=0, db_default=0)
    """How often it got another size; its former ones are the `UnitSize`s of its unit, in this order."""
    fitted = models.PositiveIntegerField(default=0, db_default=0)
    """The last of its sizes that was seen to be so at its provider: 0 is the one that it was made with."""
    address = models.CharField(max_length=300, blank=True, default="")
    ssh_authority = models.ForeignKey(
        "tenants.SshAuthority", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    """Whose certificates it takes, from the day it was made (`tenants.ssh_ca`); null for older machines: none."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            *_machine_constraints,
            models.CheckConstraint(condition=Q(power__in=["on", "off"]), name="machine_power"),
            models.CheckConstraint(condition=Q(fitted__lte=F("resizes")), name="machine_fitted"),
        ]
        indexes = _machine_indexes


class Namespace(Product):
    """A namespace boundary handed to people with a kubeconfig."""

    id = primary_key()
    short_id = short_id("ns")

    class Meta:
        constraints = _namespace_constraints
        indexes = _namespace_indexes


class GatewayReplica(models.Model):
    """One gateway process: of a namespace boundary, or of one endpoint VM. The principal `agent`."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    boundary = models.ForeignKey(Boundary, on_delete=models.CASCADE, related_name="gateways")
    unit = models.OneToOneField("tenants.Unit", null=True, blank=True, on_delete=models.CASCADE, related_name="gateway")
    """Set for a gateway inside an endpoint VM."""
    token_sealed = models.BinaryField(null=True, blank=True)
    """The one-time enrolment token, envelope-encrypted until it is used or replaced."""
    token_digest = models.CharField(max_length=64, blank=True, default="")
    token_expires_at = models.DateTimeField(null=True, blank=True)
    credential_digest = models.CharField(max_length=64, blank=True, default="")
    enrolled_at = models.DateTimeField(null=True, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    config_version = models.BigIntegerField(default=0)
    """Version of the configuration it should have; bumped whenever anything in it changes."""
    rendered_version = models.BigIntegerField(default=0)
    """Version that `rendered` is; one version has one content for good, also across upgrades of ours."""
    rendered = models.TextField(blank=True, default="")
    """The configuration as last rendered (`provisioners.gateway.protocol.ConfigDocument`, JSON, not signed)."""
    lease_serial = models.BigIntegerField(default=0, db_default=0)
    """Of the last word about its parts of budgets; one that comes later and is older is not heard."""
    reported_version = models.BigIntegerField(default=0)
    report = models.JSONField(default=dict, blank=True)
    removed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["boundary"],
                condition=Q(unit__isnull=True, removed_at__isnull=True),
                name="gateway_one_per_namespace",
            ),
        ]


class GatewayUsage(models.Model):
    """One batch of usage as a gateway sent it; its id makes a repeated batch count once."""

    id = models.UUIDField(primary_key=True)
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    gateway = models.ForeignKey(GatewayReplica, on_delete=models.CASCADE, related_name="+")
    endpoint_id = models.UUIDField(null=True)
    requests = models.PositiveIntegerField()
    prompt_tokens = models.PositiveBigIntegerField()
    completion_tokens = models.PositiveBigIntegerField()
    errors = models.PositiveIntegerField(default=0)
    body = models.JSONField(default=dict)
    received_at = models.DateTimeField()


class EndpointUsage(models.Model):
    """What one key used of one revision of an endpoint in one hour: sums of batches, each counted once."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint_id = models.UUIDField()
    """No foreign key: late usage of an endpoint that is gone counts too."""
    key_id = models.CharField(max_length=64, blank=True, default="")
    """Public id of the key; `""` for one that is not known any more."""
    revision = models.PositiveIntegerField(default=0)
    """Number of the revision that answered; 0 where none did."""
    hour = models.DateTimeField()
    requests = models.BigIntegerField()
    errors = models.BigIntegerField()
    prompt_tokens = models.BigIntegerField()
    completion_tokens = models.BigIntegerField()
    duration_ms = models.BigIntegerField(default=0, db_default=0)
    """Of all requests together."""
    ttft_ms = models.BigIntegerField(default=0, db_default=0)
    """Request to first event, of all streams together."""
    between_us = models.BigIntegerField(default=0, db_default=0)
    """First to last token, of all streams together."""
    gaps = models.BigIntegerField(default=0, db_default=0)
    """Pairs of neighbouring tokens in that time."""
    ttft_counts = ArrayField(models.BigIntegerField(), default=list, db_default=[])
    """Histogram by `tenants.usage_times.TTFT_BOUNDS_MS`; empty: no stream."""
    between_counts = ArrayField(models.BigIntegerField(), default=list, db_default=[])
    """Histogram of streams' mean times between tokens, by `tenants.usage_times.BETWEEN_BOUNDS_US`."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["endpoint_id", "key_id", "revision", "hour", "tenant"], name="endpoint_usage_unique"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "hour"], name="endpoint_usage_tenant"),
        ]
