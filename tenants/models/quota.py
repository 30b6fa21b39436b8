"""Quotas, and the requests by which people ask for more."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import F, Q

from tenants.models.fields import WordField, choice_check, primary_key, short_id
from tenants.states import REQUEST_FINAL, RequestKind, RequestState


class Quota(models.Model):
    """A limit of one tenant in one dimension; a dimension without a row is zero unless an ancestor is inherited."""

    id = primary_key()
    tenant = models.ForeignKey("tenants.Tenant", on_delete=models.CASCADE, related_name="quotas")
    dimension = models.CharField(max_length=80)
    amount = models.BigIntegerField(default=0)
    inherit = models.BooleanField(default=False)
    """True: the nearest ancestor's limit is this tenant's too (`amount` is ignored)."""
    until = models.DateTimeField(null=True, blank=True)
    granted_by = models.ForeignKey(
        "tenants.Request", null=True, blank=True, on_delete=models.SET_NULL, related_name="quotas"
    )
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(
                fields=["tenant", "dimension"], condition=Q(until__isnull=True), name="quota_unique_lasting"
            ),
            models.CheckConstraint(condition=Q(amount__gte=0), name="quota_amount"),
        ]
        indexes: ClassVar[list[models.Index]] = [models.Index(fields=["tenant", "dimension"], name="quota_dimension")]


class Request(models.Model):
    """A tenant's ask of some kind. A decision binds to one version of it."""

    id = primary_key()
    short_id = short_id("rq")
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="requests")
    """The tenant it concerns; null while the asked-for tenant does not exist yet."""
    kind = WordField()
    state = WordField(default=RequestState.SUBMITTED)
    payload = models.JSONField()
    reason = models.CharField(max_length=1000, blank=True, default="")
    requester = models.ForeignKey("tenants.Person", on_delete=models.PROTECT, related_name="requests")
    """The accountable person behind any token."""
    allocation = models.ForeignKey(
        "tenants.Allocation", null=True, blank=True, on_delete=models.SET_NULL, related_name="requests"
    )
    """What waits for it (`on_shortage=request`)."""
    version = models.PositiveIntegerField(default=1)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField(null=True, blank=True)
    decided_at = models.DateTimeField(null=True, blank=True)
    outcome = models.JSONField(default=dict, blank=True)
    """What came of it: ids made, limits granted."""

    class Meta:
        constraints: ClassVar[list[Any]] = [
            choice_check("request_kind", "kind", RequestKind),
            choice_check("request_state", "state", RequestState),
            models.CheckConstraint(
                condition=Q(state="submitted", decided_at__isnull=True)
                | (Q(state__in=sorted(str(s.value) for s in REQUEST_FINAL)) & Q(decided_at__isnull=False)),
                name="request_decided_at",
            ),
            models.UniqueConstraint(fields=["id", "requester"], name="request_requester_key"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["created_at", "id"], name="request_created"),
            models.Index(fields=["state", "created_at"], name="request_inbox"),
        ]


class RequestStage(models.Model):
    """One stage a request must pass, in order, as data."""

    id = primary_key()
    request = models.ForeignKey(Request, on_delete=models.CASCADE, related_name="stages")
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    order = models.SmallIntegerField()
    decider = models.CharField(max_length=32)
    """`tenant-owner`, `parent-owner` (cost owner) or `platform-approver`."""
    done_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.UniqueConstraint(fields=["request", "order"], name="request_stage_order"),
            models.CheckConstraint(
                condition=Q(decider__in=["tenant-owner", "parent-owner", "platform-approver"]),
                name="request_stage_decider",
            ),
        ]


class Decision(models.Model):
    """One person's or rule's verdict on one version of a request.

    `requester` repeats the request's requester through a composite foreign key (migration 0002), so
    that the CHECK `decider != requester` holds against any writer.
    """

    id = primary_key()
    request = models.ForeignKey(Request, on_delete=models.CASCADE, related_name="decisions")
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    request_version = models.PositiveIntegerField()
    stage = models.ForeignKey(RequestStage, null=True, on_delete=models.CASCADE, related_name="decisions")
    requester = models.ForeignKey("tenants.Person", on_delete=models.PROTECT, related_name="+")
    decider = models.ForeignKey(
        "tenants.Person", null=True, blank=True, on_delete=models.PROTECT, related_name="decisions"
    )
    on_behalf_of = models.ForeignKey(
        "tenants.Person", null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    """Whom a delegate stood in for."""
    rule = models.ForeignKey("tenants.AutoApprovalRule", null=True, blank=True, on_delete=models.PROTECT)
    verdict = WordField()
    """`approve`, `reduce` or `deny`."""
    granted = models.JSONField(default=dict, blank=True)
    reason = models.CharField(max_length=1000, blank=True, default="")
    proof = models.JSONField(default=dict, blank=True)
    """Where it would run, cost to its end, whom it delays, as seen in the decision's own transaction."""
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(condition=Q(verdict__in=["approve", "reduce", "deny"]), name="decision_verdict"),
            models.CheckConstraint(
                condition=(Q(decider__isnull=False) & Q(rule__isnull=True))
                | (Q(decider__isnull=True) & Q(rule__isnull=False)),
                name="decision_person_or_rule",
            ),
            models.CheckConstraint(
                condition=Q(decider__isnull=True) | ~Q(decider=F("requester")), name="decision_not_own"
            ),
            models.CheckConstraint(
                condition=Q(on_behalf_of__isnull=True) | ~Q(on_behalf_of=F("requester")), name="decision_not_for_own"
            ),
            models.UniqueConstraint(
                fields=["request", "request_version", "stage"], name="decision_one_per_stage", nulls_distinct=False
            ),
        ]


class RequestComment(models.Model):
    """One line in the thread of a request."""

    id = primary_key()
    request = models.ForeignKey(Request, on_delete=models.CASCADE, related_name="comments")
    tenant = models.ForeignKey("tenants.Tenant", null=True, on_delete=models.CASCADE, related_name="+")
    author = models.ForeignKey("tenants.Person", on_delete=models.PROTECT, related_name="+")
    text = models.CharField(max_length=2000)
    created_at = models.DateTimeField()


class AutoApprovalRule(models.Model):
    """Approves small requests by itself: every limit given must hold."""

    id = primary_key()
    name = models.CharField(max_length=80, unique=True)
    kind = WordField()
    tenant = models.ForeignKey("tenants.Tenant", null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    """Only for this tenant and its children; null = any."""
    limits = models.JSONField(default=dict)
    """Dimension → largest amount the request may add; a dimension that is not named is not covered."""
    longest_s = models.PositiveBigIntegerField(null=True, blank=True)
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField()
    version = models.PositiveIntegerField(default=1)


class Delegation(models.Model):
    """Somebody decides in another's place between two dates."""

    id = primary_key()
    person = models.ForeignKey("tenants.Person", on_delete=models.CASCADE, related_name="delegations")
    delegate = models.ForeignKey("tenants.Person", on_delete=models.CASCADE, related_name="+")
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    created_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[Any]] = [
            models.CheckConstraint(condition=~Q(person=F("delegate")), name="delegation_other"),
            models.CheckConstraint(condition=Q(ends_at__gt=F("starts_at")), name="delegation_order"),
        ]
