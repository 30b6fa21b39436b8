"""What is known of served models beyond the catalogue: measured starts, and where their files were staged."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from django.db import models
from django.db.models import F, Q

from tenants.models.fields import WordField, choice_check, primary_key
from tenants.states import STAGE_FINAL, StageState

LIVE: Final = ["waiting", "running", "done"]
"""States of a stage of which a provider has one for a model at most."""


class FitCorrection(models.Model):
    """What starts of a model on one size have taught about the estimate; `tenants.fit_corrections` works it out."""

    id = primary_key()
    model = models.ForeignKey("tenants.ServedModel", on_delete=models.PROTECT, related_name="fit_corrections")
    product = models.CharField(max_length=60)
    profile = models.CharField(max_length=40, blank=True, default="")
    gpus = models.PositiveSmallIntegerField(default=1)
    reset_at = models.DateTimeField(null=True, blank=True)
    """Starts before it count no more."""
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["model", "product", "profile", "gpus"], name="fit_correction_size"),
            models.CheckConstraint(condition=Q(gpus=1) | Q(profile="", gpus__gte=1), name="fit_correction_gpus"),
        ]


class FitMeasurement(models.Model):
    """What one start reported beside what was estimated; bytes on each device. Nothing in it says whose it was."""

    id = primary_key()
    correction = models.ForeignKey(FitCorrection, on_delete=models.CASCADE, related_name="measurements")
    start = models.UUIDField()
    """Derived from unit, revision and program: the same start counts once."""
    program = models.CharField(max_length=80)
    """Name and version; starts of another one teach nothing about it."""
    at = models.DateTimeField()
    token_estimated = models.BigIntegerField(null=True)
    token_reported = models.BigIntegerField(null=True)
    fixed_estimated = models.BigIntegerField(null=True)
    fixed_reported = models.BigIntegerField(null=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["correction", "start"], name="fit_measurement_start"),
            models.CheckConstraint(
                condition=(Q(token_estimated__gt=0, token_reported__gt=0))
                | Q(token_estimated__isnull=True, token_reported__isnull=True),
                name="fit_measurement_token",
            ),
            models.CheckConstraint(
                condition=(Q(fixed_estimated__gt=0, fixed_reported__gt=0))
                | Q(fixed_estimated__isnull=True, fixed_reported__isnull=True),
                name="fit_measurement_fixed",
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["correction", "at"], name="fit_measurement_at")]


class ModelStage(models.Model):
    """The files of a served model at one provider, brought there before an endpoint asks for them."""

    id = primary_key()
    provider = models.ForeignKey("tenants.Provider", on_delete=models.PROTECT, related_name="model_stages")
    model = models.ForeignKey("tenants.ServedModel", on_delete=models.PROTECT, related_name="stages")
    state = WordField(default=StageState.WAITING)
    bytes_done = models.BigIntegerField(default=0)
    bytes_total = models.BigIntegerField(null=True, blank=True)
    """None while the provider has not said."""
    message = models.CharField(max_length=500, blank=True, default="")
    asked_at = models.DateTimeField()
    looked_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    removing = models.BooleanField(default=False)
    """Whether they are to be taken away again."""
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["provider", "model"], condition=Q(state__in=LIVE), name="model_stage_once"),
            choice_check("model_stage_state", "state", StageState),
            models.CheckConstraint(
                condition=Q(bytes_done__gte=0) & (Q(bytes_total__isnull=True) | Q(bytes_done__lte=F("bytes_total"))),
                name="model_stage_bytes",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=False, state__in=sorted(STAGE_FINAL))
                | (Q(ended_at__isnull=True) & ~Q(state__in=sorted(STAGE_FINAL))),
                name="model_stage_ended",
            ),
        ]
