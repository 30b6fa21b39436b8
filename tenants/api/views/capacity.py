"""Allocations (alone and in batches), boundaries, and why any of them or a product is as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from django.db.models import Prefetch, QuerySet

from tenants import access, certificates, queries
from tenants.api import idempotency
from tenants.api.serializers.base import NoQuery, Out, Page, page_of
from tenants.api.serializers.capacity import (
    AllocationIn,
    AllocationOut,
    AllocationQuery,
    BatchIn,
    BatchOut,
    BoundaryOut,
    BoundaryQuery,
    CertificateOut,
    ExplainOut,
    RenewIn,
)
from tenants.api.views.base import ApiView, Call, reads, writes
from tenants.api.views.filters import labelled, lived
from tenants.errors import NotVisible
from tenants.models import Allocation, Boundary, Endpoint, Machine, Namespace, Unit
from tenants.operations import allocations, boundaries

UNITS = Prefetch("units", Unit.objects.select_related("host").order_by("index"))
AllocationPage = page_of(AllocationOut)
BoundaryPage = page_of(BoundaryOut)


class AllocationView(ApiView):
    """Allocations."""

    def rows(self, call: Call) -> QuerySet[Allocation]:
        """Return the allocations the actor may see."""
        return (
            access.scoped(Allocation, call.actor, tenant=call.tenant)
            .select_related("tenant", "boundary__provider")
            .prefetch_related(UNITS)
        )

    def show(self, row: Allocation, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return an allocation."""
        return AllocationOut.of(row)


class AllocationsAnywhere(AllocationView):
    """Allocations of all tenants that the caller sees."""

    @reads("allocations.list", answers=AllocationPage, query=AllocationQuery)
    def get(self, call: Call) -> Page:
        """List allocations."""
        rows = labelled(self.rows(call), call)
        if call.query.product_kind is not None:
            rows = rows.filter(product_kind=call.query.product_kind.value)
        return self.page(call, rows, AllocationPage)


class Allocations(AllocationsAnywhere):
    """Allocations of one tenant."""

    @writes("allocations.create", body=AllocationIn, answers=AllocationOut, status=201, waitable=True)
    def post(self, call: Call) -> Any:
        """Ask for GPU capacity of a namespace boundary, without a product.

        What does not fit now is 201 all the same, in phase Waiting, with why.
        """
        body: AllocationIn = call.body
        return allocations.create(
            tenant=call.home, ask=body.ask(), managed_by=body.managed_by, actor=call.actor, now=call.now
        )


class AllocationBatch(AllocationView):
    """Many allocations at once."""

    @writes("allocations.create_batch", body=BatchIn, answers=BatchOut, status=201)
    def post(self, call: Call) -> Any:
        """Ask for up to 100 allocations: all pass the quota together, or nothing is changed."""
        body: BatchIn = call.body
        return allocations.create_batch(
            tenant=call.home, asks=[each.ask() for each in body.allocations], actor=call.actor, now=call.now
        )

    def again(self, row: Any, call: Call) -> Any:
        """Return the batch read anew, in its order."""
        return self._in_order([each.pk for each in row], call)

    def replayed(self, replay: idempotency.Replay, call: Call) -> Any:
        """Return what an earlier request made."""
        found = self._in_order(list(replay.ids), call)
        if not found:
            raise NotVisible("What this request made is gone by now.")
        return found

    def show(self, row: Any, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return the batch."""
        return BatchOut(allocations=[AllocationOut.of(each) for each in row])

    def _in_order(self, ids: list[Any], call: Call) -> list[Allocation]:
        found = {row.pk: row for row in self.rows(call).filter(pk__in=ids)}
        return [found[key] for key in ids if key in found]


class AllocationItem(AllocationView):
    """One allocation."""

    key = "name"

    @reads("allocations.read", answers=AllocationOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read an allocation."""
        return call.target

    @writes("allocations.delete", answers=AllocationOut, versioned=True, waitable=True)
    def delete(self, call: Call) -> Any:
        """Give an allocation back; its windows are free when its use is seen to be gone."""
        return allocations.release(allocation=call.target, actor=call.actor, now=call.now, version=call.version)


class AllocationRenewal(AllocationView):
    """A new term."""

    key = "name"

    @writes("allocations.renew", body=RenewIn, answers=AllocationOut)
    def post(self, call: Call) -> Any:
        """Renew an allocation: a term of `duration_s` from now; within grace this is the undo."""
        return allocations.renew(
            allocation=call.target,
            duration_s=call.body.duration_s,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )


class BoundaryView(ApiView):
    """Boundaries."""

    def rows(self, call: Call) -> QuerySet[Boundary]:
        """Return the boundaries the actor may see."""
        return access.scoped(Boundary, call.actor, tenant=call.tenant).select_related("tenant", "provider")

    def show(self, row: Boundary, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a boundary."""
        return BoundaryOut.of(row)


class Boundaries(BoundaryView):
    """Boundaries, of one tenant or of all that the caller sees."""

    @reads("boundaries.list", answers=BoundaryPage, query=BoundaryQuery)
    def get(self, call: Call) -> Page:
        """List boundaries."""
        rows = lived(self.rows(call), call, provider="provider")
        if call.query.kind is not None:
            rows = rows.filter(kind=call.query.kind.value)
        return self.page(call, rows, BoundaryPage)


class BoundaryItem(BoundaryView):
    """One boundary."""

    key = "name"

    @reads("boundaries.read", answers=BoundaryOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read a boundary."""
        return call.target


class BoundaryCertificate(ApiView):
    """What was tried against a boundary, and what held."""

    key = "name"

    def rows(self, call: Call) -> QuerySet[Boundary]:
        """Return the boundaries the actor may see."""
        return access.scoped(Boundary, call.actor, tenant=call.tenant).select_related("tenant", "provider")

    def show(self, row: Boundary, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return the newest certificate. Raises `NotVisible` while there is none."""
        stored = certificates.latest(row.pk)
        if stored is None:
            raise NotVisible("This boundary has no certificate yet.")
        return CertificateOut.of(stored, row)

    @reads("boundaries.certificate", answers=CertificateOut)
    def get(self, call: Call) -> Any:
        """Read the newest isolation certificate of a boundary; older ones are events of kind `boundary.certified`."""
        return call.target


class BoundaryCertifying(BoundaryView):
    """Asking for a certificate."""

    key = "name"

    @writes("boundaries.certify", answers=BoundaryOut)
    def post(self, call: Call) -> Any:
        """Have a worker try to break out of the boundary now; `certificate` has what held, some seconds later."""
        return boundaries.certify(boundary=call.target, actor=call.actor, now=call.now)


class Explained(ApiView):
    """Why an object is as it is."""

    key = "name"
    model: ClassVar[type[Any]]

    def rows(self, call: Call) -> QuerySet[Any]:
        """Return the objects the actor may see."""
        related = ["tenant"]
        if self.model is not Boundary:
            related.append("boundary")
        if self.model not in {Boundary, Allocation}:
            related.append("allocation")
        return access.scoped(self.model, call.actor, tenant=call.tenant).select_related(*related)


def explained(model: type[Any], noun: str) -> type[Explained]:
    """Return the view that explains objects of one kind."""

    class View(Explained):
        __doc__ = f"Why one of the {noun} is as it is."

        @reads(f"{noun}.explain", answers=ExplainOut, query=NoQuery)
        def get(self, call: Call) -> Out:
            """Explain: conditions in words, what runs, where it is, when it ends, what comes next."""
            return ExplainOut.model_validate(queries.explain(call.target, now=call.now))

    View.model = model
    View.__name__ = View.__qualname__ = f"Explain{model.__name__}"
    return View


EXPLAINED = {
    "allocations": explained(Allocation, "allocations"),
    "boundaries": explained(Boundary, "boundaries"),
    "endpoints": explained(Endpoint, "endpoints"),
    "machines": explained(Machine, "machines"),
    "namespaces": explained(Namespace, "namespaces"),
}
