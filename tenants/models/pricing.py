"""Dated prices; never changed backwards."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from tenants.models.fields import SlugField, primary_key


class PriceList(models.Model):
    """A set of prices that holds from a date on, for a provider, a site, or everywhere."""

    id = primary_key()
    name = models.CharField(max_length=80, unique=True)
    provider = models.ForeignKey("tenants.Provider", null=True, blank=True, on_delete=models.PROTECT, related_name="+")
    site = SlugField(blank=True, default="")
    currency = models.CharField(max_length=3, default="EUR")
    valid_from = models.DateTimeField()
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["provider", "site", "valid_from"], name="price_list_unique", nulls_distinct=False
            ),
            models.CheckConstraint(condition=Q(provider__isnull=True) | Q(site=""), name="price_list_scope"),
            models.CheckConstraint(condition=Q(currency__regex="^[A-Z]{3}$"), name="price_list_currency"),
        ]


class Price(models.Model):
    """One rate: `gpu.<product>` per slice-hour, `vcpu`, `memory_gib`, `storage_gib` per hour, `token` each."""

    id = primary_key()
    price_list = models.ForeignKey(PriceList, on_delete=models.CASCADE, related_name="prices")
    item = models.CharField(max_length=80)
    amount = models.DecimalField(max_digits=20, decimal_places=9)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["price_list", "item"], name="price_unique"),
            models.CheckConstraint(condition=Q(amount__gte=0), name="price_amount"),
        ]
