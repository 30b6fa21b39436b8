"""Endpoints and their revisions; zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Prefetch, QuerySet

from tenants import access
from tenants.api.serializers.base import LabelledQuery, Out, Page, PageQuery, page_of
from tenants.api.serializers.capacity import LabelledIn
from tenants.api.serializers.endpoints import (
    DiffOut,
    DiffQuery,
    EndpointIn,
    EndpointOut,
    EndpointPut,
    EndpointReviseIn,
    IdleIn,
    RevisionOut,
)
from tenants.api.views.base import Answered, ApiView, Call, reads, writes
from tenants.api.views.filters import labelled
from tenants.api.views.products import ProductView
from tenants.errors import Conflict, InvalidSpec
from tenants.models import (
    Endpoint,
    Move,
    Revision,
    Rollout,
)
from tenants.operations import (
    endpoints,
    idling,
    replacements,
)

LIVE = Prefetch(
    "rollouts",
    Rollout.objects.filter(ended_at__isnull=True).select_related("before", "revision"),
    to_attr="live_rollouts",
)
MOVING = Prefetch("moves", Move.objects.filter(ended_at__isnull=True).select_related("stand_in"), to_attr="live_moves")
EndpointPage = page_of(EndpointOut)
RevisionPage = page_of(RevisionOut)


class EndpointView(ProductView):
    """Endpoints."""

    model = Endpoint

    def rows(self, call: Call) -> QuerySet[Endpoint]:
        """Return the endpoints the actor may see, with what they serve."""
        return super().rows(call).select_related("revision__model").prefetch_related(LIVE, MOVING)

    def show(self, row: Endpoint, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return an endpoint."""
        return EndpointOut.of(row, key=secrets.get("key"))

    def unwrap(self, result: Any) -> Any:
        """Return the endpoint of what `create` made."""
        return result.endpoint if isinstance(result, endpoints.Made) else result

    def secrets_of(self, result: Any) -> Mapping[str, str]:
        """Return the first key."""
        return {"key": result.secret} if isinstance(result, endpoints.Made) else {}


class EndpointsAnywhere(EndpointView):
    """Endpoints of all tenants that the caller sees."""

    @reads("endpoints.list", answers=EndpointPage, query=LabelledQuery)
    def get(self, call: Call) -> Page:
        """List endpoints."""
        return self.page(call, labelled(self.rows(call), call), EndpointPage)


class Endpoints(EndpointsAnywhere):
    """Endpoints of one tenant."""

    @writes("endpoints.create", body=EndpointIn, answers=EndpointOut, status=201, waitable=True)
    def post(self, call: Call) -> Any:
        """Create an endpoint.

        The answer holds the first key in plain text, once. The phase says how far it is: `?wait=60` waits.
        """
        body: EndpointIn = call.body
        return endpoints.create(
            tenant=call.home, ask=body.ask(body.name), managed_by=body.managed_by, actor=call.actor, now=call.now
        )


class EndpointItem(EndpointView):
    """One endpoint."""

    key = "name"

    @reads("endpoints.read", answers=EndpointOut, waitable=True)
    def get(self, call: Call) -> Any:
        """Read an endpoint."""
        return call.target

    @writes("endpoints.put", body=EndpointPut, answers=EndpointOut, versioned=True, waitable=True)
    def put(self, call: Call) -> Any:
        """Create an endpoint, or bring the existing one to this.

        An existing one needs `If-Match`. Another model or other arguments make a new revision; capacity cannot
        change. The answer to a creation (201) holds the first key.
        """
        ask = call.body.ask(call.path["name"])
        who = {"managed_by": call.body.managed_by, "actor": call.actor, "now": call.now}
        if call.target is None:
            return Answered(endpoints.create(tenant=call.home, ask=ask, **who), 201)
        return replacements.replace_endpoint(endpoint=call.target, ask=ask, version=call.version, **who)

    @writes("endpoints.update", body=LabelledIn, answers=EndpointOut, versioned=True)
    def patch(self, call: Call) -> Any:
        """Change labels or description."""
        return endpoints.update(
            endpoint=call.target, changes=call.body.changes(), actor=call.actor, now=call.now, version=call.version
        )

    @writes("endpoints.delete", answers=EndpointOut, versioned=True, waitable=True)
    def delete(self, call: Call) -> Any:
        """Delete an endpoint.

        Its keys stop at once; its GPUs come back when its replicas are seen to be gone (`?wait=60&for=Released`).
        """
        return endpoints.delete(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class OfEndpoint(ApiView):
    """Things of one endpoint."""

    def locate(self, declared: Any, call: Call) -> None:
        """Find tenant and endpoint."""
        super().locate(declared, call)
        rows = access.scoped(Endpoint, call.actor, tenant=call.tenant).select_related("tenant")
        call.target = access.find(rows, call.path["name"])

    def done(self, call: Call, operation: Callable[..., Any], **more: Any) -> Any:
        """Run an operation on the endpoint for the caller, on the version that was read."""
        return operation(endpoint=call.target, actor=call.actor, now=call.now, version=call.version, **more)


class Revisions(OfEndpoint):
    """Revisions of one endpoint."""

    def rows(self, call: Call) -> QuerySet[Revision]:
        """Return the endpoint's revisions."""
        return Revision.objects.filter(endpoint=call.target).select_related("model")

    def show(self, row: Revision, call: Call, secrets: Mapping[str, str]) -> Out:  # noqa: ARG002
        """Return a revision."""
        return RevisionOut.of(row)

    @reads("revisions.list", answers=RevisionPage, query=PageQuery)
    def get(self, call: Call) -> Page:
        """List revisions."""
        return self.page(call, self.rows(call), RevisionPage)

    @writes("endpoints.revise", body=EndpointReviseIn, answers=RevisionOut, status=201)
    def post(self, call: Call) -> Any:
        """Serve something else: add a revision, which takes over as `rollout` says.

        By default the old replicas stop first. A canary runs beside them on a unit of its own, within quota; without
        room for one it becomes a recreate, and its `note` says why.
        """
        body: EndpointReviseIn = call.body
        return endpoints.revise(
            endpoint=call.target,
            ask=body.revision(),
            rollout=body.rollout.ask(),
            actor=call.actor,
            now=call.now,
            version=call.version,
        )


class RevisionDiff(OfEndpoint):
    """What is different between two revisions."""

    @reads("revisions.diff", answers=DiffOut, query=DiffQuery)
    def get(self, call: Call) -> Out:
        """Compare two revisions: by default the one that serves with the one before it."""
        rows = Revision.objects.filter(endpoint=call.target).select_related("model").order_by("-number")
        after = _named_revision(rows, "after", call.query.after, rows.filter(pk=call.target.revision_id))
        older = rows.filter(number__lt=after.number)
        if not older.exists():  # the first differs from nothing
            older = rows.filter(pk=after.pk)
        return DiffOut.of(_named_revision(rows, "before", call.query.before, older), after)


def _named_revision(
    rows: QuerySet[Revision], field: str, number: int | None, otherwise: QuerySet[Revision]
) -> Revision:
    """Return the revision of a number, else the first of others. Raises `InvalidSpec`, `Conflict`."""
    found = (otherwise if number is None else rows.filter(number=number)).first()
    if found is not None:
        return found
    if number is None:
        msg = "It has no other revision to compare with."
        raise Conflict(msg, code="no-revision-before")
    msg = f"It has no revision {number}."
    raise InvalidSpec(msg, field=field, code="unknown-revision")


class EndpointSleep(EndpointView):
    """Going to zero."""

    key = "name"

    @writes("endpoints.sleep", answers=EndpointOut)
    def post(self, call: Call) -> Any:
        """Let an endpoint go to zero: running requests end first, and the next one wakes it. Safe to repeat."""
        return idling.sleep(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class EndpointWake(EndpointView):
    """Waking."""

    key = "name"

    @writes("endpoints.wake", answers=EndpointOut, waitable=True)
    def post(self, call: Call) -> Any:
        """Start the replicas of an endpoint at zero. Safe to repeat."""
        return idling.wake(endpoint=call.target, actor=call.actor, now=call.now, version=call.version)


class EndpointIdle(EndpointView):
    """When it goes to zero by itself."""

    key = "name"

    @writes("endpoints.set_idle", body=IdleIn, answers=EndpointOut)
    def put(self, call: Call) -> Any:
        """Say when an endpoint goes to zero by itself, what becomes of its units, and how long requests wait then."""
        body: IdleIn = call.body
        return idling.set_idle(
            endpoint=call.target,
            after_s=body.after_s,
            units=body.units,
            wait_s=body.wait_s,
            actor=call.actor,
            now=call.now,
            version=call.version,
        )
