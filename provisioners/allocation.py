"""The allocation pass: first ready, term, grace and end; giving the holds back when their use is seen to be gone.

No provider is called here. Placement is the queue's (`queue.py`) and the operations' work. Invariant: holds
go only after the product is Released, and for people's own capacity (bare, namespace) only after its
boundary is gone, or grants it no more and shows none of its units.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from provisioners import expiry, lease
from provisioners.boundary import PEOPLES
from provisioners.driver import Spec, Step
from provisioners.lease import Claim
from provisioners.passes import Engine, Prepared, Seen, say
from tenants import desired, usage
from tenants.actor import SYSTEM
from tenants.models import Allocation, Boundary, Notice, Unit
from tenants.operations import allocations as operations
from tenants.operations import placements
from tenants.operations.products import touch_gateways
from tenants.states import ConditionType, ProductKind, Reason, ServiceClass, condition_of

LOOK_AGAIN_S: Final = 60.0
"""Only in case a product's nudge is lost."""


class AllocationKind:
    """Allocations, with or without a product."""

    word = "allocation"
    model = Allocation

    def prepare(self, row: Allocation, *, now: datetime) -> Prepared:
        """Nothing is wanted of a provider: all is done in the guarded apply."""
        del now
        return Prepared(deleting=row.deletion_requested_at is not None)

    def arm(self, row: Allocation, step: Step, prepared: Prepared, *, now: datetime) -> Spec | None:
        """An allocation has no steps."""
        del row, step, prepared, now
        return None

    def before_conclude(self, claim: Claim, prepared: Prepared, seen: Seen, *, now: datetime) -> None:
        """Nothing comes before."""

    def fields(self) -> list[str]:
        """Return the allocation's own columns."""
        return ["warned_days", "grace_until"]

    def conclude(
        self, row: Allocation, prepared: Prepared, seen: Seen, *, engine: Engine, now: datetime
    ) -> datetime | None:
        """Mirror readiness, let time do its part, give back."""
        del prepared, seen
        row.failures = 0
        product = product_of(row)
        if row.deletion_requested_at is not None:
            return self._leaving(row, product, engine, now=now)
        placed = condition_of(row.conditions, ConditionType.PLACED)
        rests = placed is not None and placed["reason"] == Reason.ASLEEP
        if placed is None or (placed["status"] != "True" and not rests):
            return None  # the queue or a decision brings it back
        self._mirror(row, product, now=now)
        if row.ready_at is None:
            return engine.after(LOOK_AGAIN_S, now)
        return self._by_time(row, product, now=now)

    # --- ready ------------------------------------------------------------------------------------------

    def _mirror(self, row: Allocation, product: Any, *, now: datetime) -> None:
        """Copy whether it can be used; the first time starts term and billing."""
        if product is not None:
            ready = condition_of(product.conditions, ConditionType.READY)
            usable = product.ready_at is not None and ready is not None and ready["status"] == "True"
            message = "" if ready is None else str(ready["message"])
        else:
            boundary = row.boundary
            usable = boundary is not None and str(row.pk) in boundary.observed.get("granted", ())
            message = "" if usable else "Its boundary is being built."
        if usable and row.ready_at is None:
            usage.first_ready(row, now=now)
            desired.happened(row, "allocation.first-ready", actor=SYSTEM, at=now, nudge=False, until=row.expires_at)
        reason = Reason.DONE if usable else Reason.WAITING_FOR_BOUNDARY
        say(row, ConditionType.READY, "True" if usable else "False", reason, message, now=now)

    # --- time -------------------------------------------------------------------------------------------

    def _by_time(self, row: Allocation, product: Any, *, now: datetime) -> datetime | None:
        life = expiry.Life(
            ServiceClass(row.service_class), row.ready_at, row.expires_at, row.warned_days, row.grace_until
        )
        match expiry.step(life, now):
            case expiry.Running(next_at):
                self._not_expiring(row, product, now=now)
                return next_at
            case expiry.Warn(days, next_at):
                row.warned_days = days
                text = f"{row.name} ends in {days} day{'s' if days > 1 else ''} unless it is renewed."
                self._notice(row, "expiry-warning", text, f"{row.expires_at}:{days}", now=now)
                return next_at
            case expiry.InGrace(until):
                row.grace_until = until
                text = (
                    f"The term of {row.name} is over. It is kept until {until:%Y-%m-%d %H:%M} UTC and can be renewed."
                )
                self._expiring(row, product, "True", Reason.GRACE, text, now=now)
                self._notice(row, "expiry-grace", text, f"{row.expires_at}:grace", now=now)
                return until
            case expiry.ReviewOverdue(week, next_at):
                text = f"The review of {row.name} is overdue; it goes on until a person decides."
                self._expiring(row, product, "False", Reason.REVIEW_OVERDUE, text, now=now)
                self._notice(row, "review-overdue", text, f"{row.expires_at}:review:{week}", now=now)
                return next_at
            case _:
                return self._reclaim(row, product, now=now)

    def _not_expiring(self, row: Allocation, product: Any, *, now: datetime) -> None:
        if condition_of(row.conditions, ConditionType.EXPIRING) is None:
            return
        row.conditions = [c for c in row.conditions if c["type"] != ConditionType.EXPIRING]
        if product is not None:
            lease.nudge(product, at=now)

    def _expiring(  # the facts of one condition
        self, row: Allocation, product: Any, status: str, reason: Reason, text: str, *, now: datetime
    ) -> None:
        old = condition_of(row.conditions, ConditionType.EXPIRING)
        say(row, ConditionType.EXPIRING, status, reason, text, now=now)
        if product is not None and (old is None or (old["status"], old["reason"]) != (status, reason)):
            lease.nudge(product, at=now)

    def _notice(self, row: Allocation, kind: str, text: str, part: str, *, now: datetime) -> None:
        """Tell the tenant once; the key makes a repeated pass say nothing."""
        _, made = Notice.objects.get_or_create(
            key=f"{kind}:{row.pk}:{part}",
            defaults={
                "tenant_id": row.tenant_id, "kind": kind, "object_kind": "allocation", "object_id": row.pk,
                "text": text, "at": now,
            },
        )  # fmt: skip
        if made:
            desired.happened(row, f"allocation.{kind}", actor=SYSTEM, at=now, nudge=False, text=text)

    def _reclaim(self, row: Allocation, product: Any, *, now: datetime) -> datetime:
        """Ask for the end, as its owner would: keys off first, holds last."""
        if product is not None and product.deletion_requested_at is None:
            operations.request_deletion(product, actor=SYSTEM, now=now, kind=f"{row.product_kind}.reclaimed")
            touch_gateways([product.boundary_id], now=now)
        operations.request_deletion(row, actor=SYSTEM, now=now, kind="allocation.reclaimed")
        return now

    # --- the end ----------------------------------------------------------------------------------------

    def _leaving(self, row: Allocation, product: Any, engine: Engine, *, now: datetime) -> datetime | None:
        waits_for = self._still_used(row, product, now=now)
        if waits_for:
            say(row, ConditionType.DELETED, "False", Reason.STEP_RUNNING, waits_for, now=now)
            return engine.after(LOOK_AGAIN_S, now)
        say(row, ConditionType.DELETED, "True", Reason.DONE, "All of it was given back.", now=now)
        operations.finish(row, now=now)
        row.released_at, row.finalizers = now, []
        desired.happened(row, "allocation.given-back", actor=SYSTEM, at=now, nudge=False)
        if row.boundary is not None and row.boundary.released_at is None:
            lease.nudge(row.boundary, at=now)
        return None

    def _still_used(self, row: Allocation, product: Any, *, now: datetime) -> str:
        """Return what of it is not seen to be gone yet, or ""."""
        if product is not None and product.released_at is None:
            return f"The {row.product_kind} is being removed."
        boundary = row.boundary
        if row.product_kind not in PEOPLES or boundary is None or boundary.released_at is not None:
            return ""
        units = {str(pk) for pk in Unit.objects.filter(allocation=row).values_list("pk", flat=True)}
        granted = str(row.pk) in boundary.observed.get("granted", (str(row.pk),))
        used = units & {str(unit["unit"]) for unit in boundary.observed.get("units", ())}
        if granted or used or not _narrowed(boundary):
            if boundary.due_at is None and boundary.lease_expires_at is None:
                lease.nudge(boundary, at=now)
            return "Its boundary still gives it room." if granted or not used else "Something still runs in it."
        return ""


def _narrowed(boundary: Boundary) -> bool:
    """Whether a boundary that stays has said what it grants; one that goes is waited for to its end."""
    return boundary.deletion_requested_at is None and "granted" in boundary.observed


def product_of(row: Allocation) -> Any:
    """Return the product that owns an allocation, None for bare ones."""
    model = placements.product_model(ProductKind(row.product_kind))
    return None if model is None else model._base_manager.filter(allocation_id=row.pk).first()


PASS = AllocationKind()
