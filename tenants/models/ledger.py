"""The ledger: one row per kept window. PostgreSQL refuses that two rows keep the same window at once.

`slots` is device number x 16 + start, so one `int8range` names device and window and the exclusion
constraint needs only core operator classes. Rows are inserted, moved and deleted by the functions of
migration `0003_ledger` alone; `UsageRecord` is what remains of them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import BigIntegerRangeField, DateTimeRangeField, RangeOperators
from django.db import models
from django.db.models import Deferrable, F, Func, Q, Value

from tenants.models.fields import WordField, choice_check, primary_key
from tenants.states import HoldKind

SLOTS_PER_DEVICE = 16


class Hold(models.Model):
    """Keeps a window of one GPU for a time."""

    id = primary_key()
    kind = WordField()
    device = models.ForeignKey("tenants.GpuDevice", on_delete=models.PROTECT, related_name="holds")
    host = models.ForeignKey("tenants.Host", on_delete=models.PROTECT, related_name="holds")
    device_number = models.BigIntegerField()
    start = models.SmallIntegerField()
    size = models.SmallIntegerField()
    slots = BigIntegerRangeField()
    during = DateTimeRangeField()
    media = models.BooleanField(default=False)
    profile = models.CharField(max_length=40, blank=True, default="")
    """`""` for whole GPUs and for holds that are not tenants'."""
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.PROTECT, related_name="+")
    unit = models.ForeignKey("tenants.Unit", null=True, on_delete=models.PROTECT, related_name="holds")
    settled = models.BooleanField(default=True)
    """False until the provider has reported where it really lies (bindings `gpu` and `host`)."""
    vcpu = models.IntegerField(default=0)
    memory_gib = models.IntegerField(default=0)
    """Host room taken together with it (on the first hold of a unit)."""
    note = models.CharField(max_length=300, blank=True, default="")
    """Foreign object, plan or fault it stands for."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            ExclusionConstraint(
                name="hold_no_overlap",
                expressions=[("slots", RangeOperators.OVERLAPS), ("during", RangeOperators.OVERLAPS)],
                index_type="gist",
                deferrable=Deferrable.IMMEDIATE,
            ),
            ExclusionConstraint(
                name="hold_one_media",
                expressions=[
                    (
                        Func(
                            F("device_number"),
                            F("device_number"),
                            Value("[]"),
                            function="int8range",
                            output_field=BigIntegerRangeField(),
                        ),
                        RangeOperators.OVERLAPS,
                    ),
                    ("during", RangeOperators.OVERLAPS),
                ],
                condition=Q(media=True),
                index_type="gist",
                deferrable=Deferrable.IMMEDIATE,
            ),
            choice_check("hold_kind", "kind", HoldKind),
            models.CheckConstraint(
                condition=Q(start__gte=0) & Q(size__gte=1) & Q(start__lte=SLOTS_PER_DEVICE - F("size")),
                name="hold_window",
            ),
            models.CheckConstraint(
                condition=Q(kind="tenant", tenant__isnull=False, unit__isnull=False)
                | (~Q(kind="tenant") & Q(unit__isnull=True)),
                name="hold_tenant_has_unit",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant"], name="hold_tenant", condition=Q(tenant__isnull=False)),
        ]


class UsageRecord(models.Model):
    """History of a hold: held from claim to release, billable from first ready to deletion asked."""

    id = primary_key()
    hold_id = models.UUIDField()
    kind = WordField()
    device = models.ForeignKey("tenants.GpuDevice", on_delete=models.PROTECT, related_name="+")
    provider = models.ForeignKey("tenants.Provider", on_delete=models.PROTECT, related_name="+")
    start = models.SmallIntegerField()
    size = models.SmallIntegerField()
    profile = models.CharField(max_length=40, blank=True, default="")
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.PROTECT, related_name="+")
    allocation_id = models.UUIDField(null=True)
    unit_id = models.UUIDField(null=True)
    vcpu = models.IntegerField(default=0)
    memory_gib = models.IntegerField(default=0)
    held_from = models.DateTimeField()
    held_to = models.DateTimeField(null=True)
    billable_from = models.DateTimeField(null=True)
    billable_to = models.DateTimeField(null=True)
    rule = models.CharField(max_length=40, default="first-ready-to-deletion-asked")

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(
                condition=Q(held_to__isnull=True) | Q(held_to__gte=F("held_from")), name="usage_record_order"
            ),
            choice_check("usage_record_kind", "kind", HoldKind),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["hold_id"], name="usage_record_hold"),
            models.Index(fields=["tenant", "held_from"], name="usage_record_tenant"),
            models.Index(fields=["device", "held_from"], name="usage_record_device"),
            models.Index(fields=["allocation_id"], name="usage_record_allocation"),
            models.Index(fields=["device", "held_to"], condition=Q(held_to__isnull=False), name="usage_record_ended"),
        ]


class UsageSubject(models.Model):
    """What usage records of an allocation are about, kept when the allocation itself is purged."""

    allocation_id = models.UUIDField(primary_key=True)
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    kind = WordField()
    name = models.CharField(max_length=40)
    short_id = models.CharField(max_length=16)
    storage_gib = models.IntegerField(default=0)
    units = models.JSONField(default=dict)
    """Unit id → [vCPU, memory GiB], as it was last; before that `UnitSize`."""


class UnitSize(models.Model):
    """A size that a unit had until a moment; what it has since stands in its row. Usage is counted by both.

    Sizes follow each other without a gap, so only ends are kept: the size at a moment is the one that ends first
    after it. Written by `ledger_resize` alone and never changed; kept when the unit is purged.
    """

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    allocation_id = models.UUIDField()
    unit_id = models.UUIDField()
    vcpu = models.IntegerField()
    memory_gib = models.IntegerField()
    disk_gib = models.IntegerField()
    until = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["unit_id", "until"], name="unit_size_until"),
            models.CheckConstraint(
                condition=Q(vcpu__gte=0) & Q(memory_gib__gte=0) & Q(disk_gib__gte=0), name="unit_size_amounts"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "until"], name="unit_size_tenant"),
            models.Index(fields=["allocation_id"], name="unit_size_allocation"),
        ]
