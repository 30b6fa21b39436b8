"""What endpoints look like: by the minute over some hours (bills use `EndpointUsage`, never this), logs, benchmarks."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q

from tenants.models.fields import WordField, choice_check, primary_key, short_id
from tenants.models.product import Endpoint, GatewayReplica
from tenants.states import BENCHMARK_LIVE, BenchmarkState


class EndpointMinute(models.Model):
    """What one gateway saw of one endpoint in one minute: sums of its usage, and the peaks of its looks."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint_id = models.UUIDField()
    """No foreign key, as of `EndpointUsage`: what comes late about an endpoint that is gone is no trouble."""
    gateway = models.ForeignKey(GatewayReplica, on_delete=models.CASCADE, related_name="+")
    minute = models.DateTimeField()
    requests = models.BigIntegerField(default=0, db_default=0)
    """That ended in it."""
    errors = models.BigIntegerField(default=0, db_default=0)
    prompt_tokens = models.BigIntegerField(default=0, db_default=0)
    completion_tokens = models.BigIntegerField(default=0, db_default=0)
    """Written in it, where an answer took several minutes."""
    ttft_counts = ArrayField(models.BigIntegerField(), default=list, db_default=[])
    """Of the streams whose first event it saw, by `tenants.usage_times.TTFT_BOUNDS_MS`; empty: none."""
    running = models.PositiveIntegerField(null=True, blank=True)
    """Most requests that its model servers worked on at a look; null: no look, or they do not say."""
    queued = models.PositiveIntegerField(null=True, blank=True)
    """Most that waited at a look, in model servers and at the gateway."""
    kv_cache = models.FloatField(null=True, blank=True)
    """Fullest KV cache at a look, 0 to 1."""
    prefix_queries = models.BigIntegerField(null=True, blank=True)
    """Tokens of prompts that were looked up in prefix caches."""
    prefix_hits = models.BigIntegerField(null=True, blank=True)
    """Of these, tokens that were there."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["endpoint_id", "minute", "gateway"], name="endpoint_minute_unique"),
            models.CheckConstraint(
                condition=Q(requests__gte=0, errors__gte=0, prompt_tokens__gte=0, completion_tokens__gte=0)
                & Q(errors__lte=F("requests")),
                name="endpoint_minute_sums",
            ),
            models.CheckConstraint(
                condition=Q(kv_cache__isnull=True) | Q(kv_cache__gte=0, kv_cache__lte=1), name="endpoint_minute_cache"
            ),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["minute"], name="endpoint_minute_minute"),
        ]


class EndpointLog(models.Model):
    """The end of an endpoint's log, as somebody asked for it: read at its provider by a worker, gone after minutes."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="+")
    tail = models.PositiveSmallIntegerField()
    """Most lines."""
    asked_at = models.DateTimeField()
    answered_at = models.DateTimeField(null=True, blank=True)
    lines = models.JSONField(default=list)
    """`{"at": RFC 3339 or "", "source": word, "text": line}`, the oldest first."""
    error = models.CharField(max_length=300, blank=True, default="")
    """Why there are none."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["endpoint", "tail"], condition=Q(answered_at__isnull=True), name="endpoint_log_asked_once"
            ),
            models.CheckConstraint(condition=Q(tail__gte=1, tail__lte=1000), name="endpoint_log_tail"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["asked_at"], name="endpoint_log_asked"),
        ]


class Benchmark(models.Model):
    """A bounded load on an endpoint, put on it by a worker through its own address, and what came of it."""

    id = primary_key()
    short_id = short_id("bm")
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="benchmarks")
    revision = models.PositiveIntegerField()
    """Number of the revision that served when it was asked for."""
    load = models.JSONField()
    """`tenants.benchmarks.Load`."""
    state = WordField(default=BenchmarkState.WAITING)
    sent = models.PositiveIntegerField(default=0)
    """Requests that have ended, well or not."""
    failed = models.PositiveIntegerField(default=0)
    result = models.JSONField(default=dict)
    """`tenants.benchmarks.Result`; {} before there is one."""
    reason = models.CharField(max_length=300, blank=True, default="")
    """Why it failed, or ended early."""
    key_id = models.CharField(max_length=16, blank=True, default="")
    """Public id of the key that was made for it."""
    author = models.ForeignKey("tenants.Person", null=True, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    heard_at = models.DateTimeField(null=True, blank=True)
    """When the process that runs it last said so."""
    cancel_asked_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            choice_check("benchmark_state", "state", BenchmarkState),
            models.UniqueConstraint(
                fields=["endpoint"], condition=Q(ended_at__isnull=True), name="benchmark_one_at_once"
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, state__in=sorted(BENCHMARK_LIVE))
                | (Q(ended_at__isnull=False) & ~Q(state__in=sorted(BENCHMARK_LIVE))),
                name="benchmark_ended",
            ),
            models.CheckConstraint(condition=Q(failed__lte=F("sent")), name="benchmark_counts"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["endpoint", "created_at", "id"], name="benchmark_endpoint"),
            models.Index(fields=["created_at"], condition=Q(ended_at__isnull=True), name="benchmark_live"),
        ]


class AddressCheck(models.Model):
    """What was seen of an endpoint's address when a worker last looked at it as a caller would."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.PROTECT, related_name="+")
    endpoint = models.OneToOneField(Endpoint, on_delete=models.CASCADE, related_name="address_check")
    address = models.CharField(max_length=300)
    """That was looked at; of another one than the present one it says nothing."""
    ok = models.BooleanField()
    findings = models.JSONField(default=list)
    """`{"key": word, "ok": bool, "text": what was seen, or what is missing}`, in the order of looking."""
    checked_at = models.DateTimeField()
    verified_at = models.DateTimeField(null=True, blank=True)
    """When all was well last."""
    due_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["due_at"], name="address_check_due"),
        ]
