"""Providers, hosts, GPU devices: what exists, and the masks and counters of the fast path.

`GpuDevice.free`, `Host.free_vcpu`, `Host.free_memory_gib` and `Host.empty_gpus` are written only by the
ledger's SQL functions, `GpuDevice.layout` and `Host.carved_gpus` only by triggers; `ledger audit` compares
them with the rows they come from.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Func, Q, Value

from tenants.models.fields import SlugField, WordField, choice_check, primary_key, short_id, slug_check
from tenants.models.reconciled import Reconciled, reconciled_constraints, reconciled_indexes
from tenants.states import Binding, HostState


class Provider(Reconciled):
    """One vCenter, one Kubernetes cluster or one sandbox estate."""

    id = primary_key()
    short_id = short_id("pr")
    name = SlugField(unique=True)
    kind = SlugField()
    """A slug compared with `provisioners.registry` at start; the domain knows no driver."""
    site = SlugField()
    config = models.JSONField(default=dict, blank=True)
    capabilities = models.JSONField(default=dict, blank=True)
    enabled = models.BooleanField(default=True)
    healthy = models.BooleanField(default=False)
    breaker_open_until = models.DateTimeField(null=True, blank=True)
    breaker_failures = models.PositiveIntegerField(default=0)
    snapshot_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [slug_check("provider_name"), *reconciled_constraints("provider")]
        indexes: ClassVar[list[models.Index]] = [*reconciled_indexes("provider")]

    def __str__(self) -> str:
        """Return the name."""
        return str(self.name)


class ProviderCredential(models.Model):
    """One envelope-encrypted secret of a provider."""

    id = primary_key()
    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="credentials")
    name = SlugField()
    sealed = models.BinaryField()
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["provider", "name"], name="provider_credential_unique"),
        ]


class Host(models.Model):
    """A hypervisor host or a node; nothing is placed on it before it is open."""

    id = primary_key()
    short_id = short_id("ho")
    provider = models.ForeignKey(Provider, on_delete=models.PROTECT, related_name="hosts")
    provider_ref = models.CharField(max_length=200)
    name = models.CharField(max_length=200)
    state = WordField(default=HostState.JOINING)
    binding = WordField()
    boundary_kinds = ArrayField(models.CharField(max_length=16), default=list, blank=True)
    """Which boundaries may place workloads here (a node takes `namespace`, an ESXi host `vm`); empty = any."""
    gpu_product = models.CharField(max_length=40, blank=True, default="")
    """Product of its GPUs when they are all alike, else `""`; whole-GPU groups are found by it."""
    healthy = models.BooleanField(default=True)
    message = models.CharField(max_length=500, blank=True, default="")
    placeable = models.BooleanField(default=False)
    """Open, healthy, provider enabled, no blocking finding; kept by `ledger_refresh_placeable`."""
    total_vcpu = models.IntegerField()
    total_memory_gib = models.IntegerField()
    free_vcpu = models.IntegerField()
    free_memory_gib = models.IntegerField()
    gpu_count = models.IntegerField(default=0)
    empty_gpus = models.IntegerField(default=0)
    carved_gpus = models.IntegerField(default=0, db_default=0)
    """GPUs that are never given out whole: of a fixed layout, and carved or of unknown mode; kept by triggers."""
    unsettled = models.IntegerField(default=0)
    """Holds whose device the provider has not reported yet (binding `host` and `gpu`)."""
    dedicated_tenant = models.ForeignKey(
        "tenants.Tenant", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    acceptance = models.JSONField(default=dict, blank=True)
    seen_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["provider", "provider_ref"], name="host_ref_unique"),
            choice_check("host_state", "state", HostState),
            choice_check("host_binding", "binding", Binding),
            models.CheckConstraint(condition=Q(free_vcpu__gte=0), name="host_free_vcpu"),
            models.CheckConstraint(condition=Q(free_memory_gib__gte=0), name="host_free_memory"),
            models.CheckConstraint(condition=Q(unsettled__gte=0), name="host_unsettled"),
            models.CheckConstraint(condition=Q(carved_gpus__gte=0), name="host_carved_gpus"),
            models.CheckConstraint(
                condition=Q(empty_gpus__gte=0) & Q(empty_gpus__lte=F("gpu_count")), name="host_empty_gpus"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                fields=["gpu_product", "empty_gpus", "id"],
                condition=Q(placeable=True, gpu_count__gt=F("carved_gpus")),
                name="host_whole_gpus",
            ),
            models.Index(fields=["created_at", "id"], name="host_created"),
        ]

    def __str__(self) -> str:
        """Return the name."""
        return self.name


class GpuDevice(models.Model):
    """One physical GPU. Its number comes from a sequence and is never used again."""

    id = primary_key()
    short_id = short_id("gp")
    number = models.BigIntegerField(
        unique=True,
        editable=False,
        db_default=Func(Value("gpu_device_number"), function="nextval", output_field=models.BigIntegerField()),
    )
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="devices")
    provider = models.ForeignKey(Provider, on_delete=models.PROTECT, related_name="+")
    provider_ref = models.CharField(max_length=200)
    """The provider's stable id of the GPU."""
    index = models.SmallIntegerField()
    product = models.CharField(max_length=40)
    slots = models.SmallIntegerField()
    free = models.IntegerField()
    """Bit i set: slot i is free now."""
    media_free = models.BooleanField(default=True)
    mode = WordField(default="unknown")
    layout_change = WordField(default="fixed")
    layout = models.TextField(blank=True, default="", db_default="", editable=False)
    """What is carved, `profile@start` by start with spaces between; kept by a trigger from its MIG devices."""
    healthy = models.BooleanField(default=True)
    message = models.CharField(max_length=500, blank=True, default="")
    placeable = models.BooleanField(default=False)
    windows_trusted = models.BooleanField(default=True)
    """False until the provider has reported a matching layout (products with unverified placements)."""
    unsettled = models.IntegerField(default=0)
    """Holds on this GPU whose start the provider has not reported (binding `gpu`)."""
    removed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["provider", "provider_ref"], condition=Q(removed_at__isnull=True), name="gpu_device_ref_unique"
            ),
            models.CheckConstraint(condition=Q(slots__gte=1) & Q(slots__lte=16), name="gpu_device_slots"),
            models.CheckConstraint(condition=Q(free__gte=0), name="gpu_device_free"),
            models.CheckConstraint(condition=Q(unsettled__gte=0), name="gpu_device_unsettled"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            # The `+ 0` keeps the planner from walking the index on the number instead: its statistics of masks are
            # always out of date.
            models.Index(
                F("product"),
                F("free"),
                F("number") + Value(0),
                condition=Q(placeable=True) & ~Q(layout_change="fixed"),
                name="gpu_device_claim",
            ),
            # The others: where something is carved, or nothing is and they are sold whole.
            models.Index(
                F("provider"),
                F("product"),
                F("layout"),
                F("free"),
                F("number") + Value(0),
                condition=Q(placeable=True, layout_change="fixed", free__gt=0)
                & (~Q(layout="") | ~Q(mode__in=["mig", "unknown"])),
                name="gpu_device_fixed",
            ),
            # What is neither wholly free nor wholly taken, and what is closed: hosts count the others.
            models.Index(
                fields=["product", "slots", "free"],
                include=["host"],
                condition=Q(placeable=True, free__gt=0) & ~Q(free=Value(1).bitleftshift(F("slots")) - Value(1)),  # type: ignore[arg-type]  # columns too
                name="gpu_device_part",
            ),
            models.Index(
                fields=["product", "slots"],
                include=["host", "free"],
                condition=Q(placeable=False, removed_at__isnull=True),
                name="gpu_device_closed",
            ),
            models.Index(fields=["id"], condition=Q(removed_at__isnull=False), name="gpu_device_removed"),
            models.Index(fields=["created_at", "id"], name="gpu_device_created"),
        ]

    def __str__(self) -> str:
        """Return product and host-local index."""
        return f"{self.product}#{self.index}"


class MigDevice(models.Model):
    """One carved MIG device as the provider reports it; never the ledger."""

    id = primary_key()
    device = models.ForeignKey(GpuDevice, on_delete=models.CASCADE, related_name="mig_devices")
    profile = models.CharField(max_length=40)
    start = models.SmallIntegerField()
    size = models.SmallIntegerField()
    seen_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["device", "start"], name="mig_device_unique"),
        ]


class Finding(models.Model):
    """Something that does not fit together and needs a person: drift, orphan, contradiction, foreign use on a hold."""

    id = primary_key()
    short_id = short_id("fi")
    kind = SlugField()
    provider = models.ForeignKey(Provider, null=True, on_delete=models.CASCADE, related_name="findings")
    host = models.ForeignKey(Host, null=True, on_delete=models.CASCADE, related_name="+")
    device = models.ForeignKey(GpuDevice, null=True, on_delete=models.CASCADE, related_name="+")
    subject = models.CharField(max_length=300)
    """Stable key of what it is about; one open finding per (kind, subject)."""
    detail = models.CharField(max_length=1000)
    data = models.JSONField(default=dict, blank=True)
    blocks_placement = models.BooleanField(default=False)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolution = models.CharField(max_length=500, blank=True, default="")
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["kind", "subject"], condition=Q(resolved_at__isnull=True), name="finding_one_open"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["first_seen_at", "id"], name="finding_seen")]
