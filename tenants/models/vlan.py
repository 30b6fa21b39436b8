"""VLANs that boundaries have: one row per VLAN that is taken, and PostgreSQL refuses a second one."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import primary_key


class Vlan(models.Model):
    """A VLAN of a provider that one boundary has to itself, from before its port group is made until that is gone."""

    id = primary_key()
    provider = models.ForeignKey("tenants.Provider", on_delete=models.PROTECT, related_name="+")
    number = models.PositiveSmallIntegerField()
    boundary = models.OneToOneField("tenants.Boundary", on_delete=models.PROTECT, related_name="vlan")
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    taken_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["provider", "number"], name="vlan_once"),
            models.CheckConstraint(condition=Q(number__gte=1) & Q(number__lte=4094), name="vlan_number"),
        ]
