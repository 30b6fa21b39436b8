"""`/agent/v1/`: what gateways call. Adapts HTTP to operations; the shapes are `provisioners.gateway.protocol`.

A gateway is known by its bearer credential (`tna_…`), compared by digest in constant time. Whatever is wrong
with a proof looks the same: 401. 410 is said only to who proved to be the gateway that was removed.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeVar
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from pydantic import BaseModel

from provisioners import gateways
from provisioners.agent_api import config, serving
from provisioners.agent_api.polling import MOST_VERSION, NOBODY, acting_gateway, checked, poll, proof_of
from provisioners.agent_api.usage import summed
from provisioners.agent_api.watch import look
from provisioners.gateway import keys
from provisioners.gateway.protocol import (
    BadDocument,
    BudgetPeriod,
    EnrolAnswer,
    EnrolRequest,
    Lease,
    LeaseAnswer,
    LeaseRequest,
    Report,
    UsageBatch,
    WakeRequest,
    parse,
)
from tenants import problems
from tenants.actor import Actor
from tenants.errors import ControlPlaneError, Gone, InvalidSpec, MethodNotAllowed, Unauthenticated, UnsupportedMediaType
from tenants.operations import agents, budget_leases, idling

CLOCKS: Final = timedelta(hours=1)
"""How far a gateway's clock may be from ours, and how early it asks for the next period's parts."""
_NUL: Final = re.compile(rb"\\u0000|\x00")
Shape = TypeVar("Shape", bound=BaseModel)


# --- adapting -------------------------------------------------------------------------------------


def answer_of(error: ControlPlaneError) -> HttpResponse:
    """Return an error as problem+json."""
    return HttpResponse(
        json.dumps(problems.problem(error), default=str),
        status=error.status,
        content_type=problems.CONTENT_TYPE,
        headers=problems.headers(error),
    )


def document(request: HttpRequest, shape: type[Shape]) -> Shape:
    """Return the body as `shape`. Raises `InvalidSpec`, `UnsupportedMediaType`."""
    if request.content_type != "application/json":
        raise UnsupportedMediaType(field="Content-Type")
    body = request.body
    if _NUL.search(body):
        msg = "The body holds a NUL character."
        raise InvalidSpec(msg)
    try:
        return parse(shape, body)
    except BadDocument as error:
        raise InvalidSpec(f"The body is {error}.") from error


def authenticated(request: HttpRequest) -> Actor:
    """Return the gateway behind a request. Raises `Unauthenticated`, `Gone`, `DependencyDown`."""
    gateway, digest = proof_of(request.headers.get("Authorization", ""))
    checked(look([gateway]).get(gateway), digest)
    return acting_gateway(gateway)


def as_json(shape: BaseModel, *, secret: bool = False) -> HttpResponse:
    """Return a document of the protocol as JSON; one that is `secret` no cache may keep."""
    headers = {"Cache-Control": "no-store"} if secret else None
    return HttpResponse(shape.model_dump_json(), content_type="application/json", headers=headers)


@method_decorator(csrf_exempt, name="dispatch")
class AgentView(View):
    """One address. `operations` names the operation of each method, for the check of routes at start."""

    operations: ClassVar[dict[str, str]] = {}

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Answer, with our errors as problems."""
        if request.method not in self.operations:
            response = answer_of(MethodNotAllowed())
            response["Allow"] = ", ".join(sorted(self.operations))
            return _later(response) if self.view_is_async else response
        if self.view_is_async:
            return self._awaited(request)
        try:
            return super().dispatch(request, *args, **kwargs)
        except ControlPlaneError as error:
            return answer_of(error)

    async def _awaited(self, request: HttpRequest) -> HttpResponse:
        try:
            response: HttpResponse = await super().dispatch(request)  # type: ignore[misc]  # an async handler's
            return response
        except ControlPlaneError as error:
            return answer_of(error)


async def _later(response: HttpResponse) -> HttpResponse:
    return response


# --- the addresses --------------------------------------------------------------------------------


class EnrolView(AgentView):
    """Where a gateway trades its one-time token for being known by its credential."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.enrol"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Enrol. 401 for every token that does not open; 410 for a gateway that was removed meanwhile."""
        asked = document(request, EnrolRequest)
        gateway, shown = asked.gateway_uid, keys.digest(asked.token)
        entry = look([gateway]).get(gateway)
        known = entry.token_digest if entry is not None else ""
        if not keys.equal(known or NOBODY, shown) or entry is None or not known:
            raise Unauthenticated
        if entry.removed:
            raise Gone
        row = agents.enrol(
            gateway=gateway,
            token_digest=shown,
            credential_digest=asked.credential_digest,
            version=asked.version,
            belongs=lambda row: gateways.shows_its_machine(row, asked.machine_uuid),
            actor=acting_gateway(gateway),
            now=datetime.now(UTC),
        )
        key = config.signer()
        return as_json(
            EnrolAnswer(gateway_uid=row.pk, boundary_uid=row.boundary_id, key_id=key.key_id, public_key=key.public_key)
        )


class ConfigView(AgentView):
    """Where a gateway waits for its next configuration."""

    operations: ClassVar[dict[str, str]] = {"GET": "agents.config"}

    async def get(self, request: HttpRequest) -> HttpResponse:
        """Answer 200 with a signed configuration that is newer than `have`, or 204 after `wait` seconds."""
        envelope = await poll(request.headers.get("Authorization", ""), request.GET)
        return as_json(envelope) if envelope is not None else HttpResponse(status=HTTPStatus.NO_CONTENT)


class ServingView(AgentView):
    """Where the program that keeps an endpoint's machine asks what to run in it."""

    operations: ClassVar[dict[str, str]] = {"GET": "agents.serving"}

    def get(self, request: HttpRequest) -> HttpResponse:
        """Answer 200 with what the replica runs, 204 while there is nothing; 404 to a gateway outside a machine."""
        answer = serving.answer_to(authenticated(request))
        if answer is None:
            return HttpResponse(status=HTTPStatus.NO_CONTENT)
        return as_json(answer, secret=True)


class UsageView(AgentView):
    """Where a gateway sends what was used."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.usage"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Count a batch once. 204, also for a repeat."""
        actor = authenticated(request)
        batch = document(request, UsageBatch)
        refuse_other(batch.gateway_uid, actor)
        now = datetime.now(UTC)
        try:
            totals = summed(batch, now=now)
        except BadDocument as error:
            raise InvalidSpec(f"The batch is not usable: {error}.") from error
        agents.count_usage(gateway=batch.gateway_uid, totals=totals, actor=actor, now=now)
        return HttpResponse(status=HTTPStatus.NO_CONTENT)


class LeasesView(AgentView):
    """Where a gateway gets its parts of budgets."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.lease"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Give a gateway its parts, of periods of now. 409 for a word that is older than one that was heard."""
        actor = authenticated(request)
        asked = document(request, LeaseRequest)
        refuse_other(asked.gateway_uid, actor)
        asks = [
            budget_leases.Ask(each.budget, each.period_start, each.spent, each.keep, each.need, each.want)
            for each in asked.asks
        ]
        now = datetime.now(UTC)
        current = {period.start(at) for period in BudgetPeriod for at in (now - CLOCKS, now + CLOCKS)}
        for each in asks:
            _check_ask(each)
        parts = budget_leases.lease(
            gateway=asked.gateway_uid,
            serial=asked.serial,
            memory=asked.memory,
            # A clock that is wrong, or a word about a period that is over, must not cost the other budgets their parts.
            asks=[each for each in asks if each.period_start in current],
            actor=actor,
            now=now,
        )
        leases = (
            Lease(
                budget=part.budget,
                period_start=part.period_start,
                granted=part.granted,
                left=part.left,
                ahead=part.ahead,
            )
            for part in parts
        )
        return as_json(LeaseAnswer(leases=tuple(leases)))


class WakeView(AgentView):
    """Where a gateway says that requests wait for an endpoint at zero."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.wake"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Wake it. 204, also where it is awake already."""
        actor = authenticated(request)
        asked = document(request, WakeRequest)
        refuse_other(asked.gateway_uid, actor)
        idling.somebody_waits(
            gateway=asked.gateway_uid,
            endpoint=asked.endpoint_uid,
            waiting=asked.waiting,
            actor=actor,
            now=datetime.now(UTC),
        )
        return HttpResponse(status=HTTPStatus.NO_CONTENT)


class ReportView(AgentView):
    """Where a gateway says how it is."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.report"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Keep the report. 204."""
        actor = authenticated(request)
        found = document(request, Report)
        refuse_other(found.gateway_uid, actor)
        agents.report(
            gateway=found.gateway_uid,
            body=found.model_dump(mode="json"),
            version=min(found.config_version, MOST_VERSION),
            actor=actor,
            now=datetime.now(UTC),
        )
        return HttpResponse(status=HTTPStatus.NO_CONTENT)


def _check_ask(ask: budget_leases.Ask) -> None:
    """Raise `InvalidSpec` for what is no period's beginning, or amounts that contradict each other."""
    if BudgetPeriod.DAY.start(ask.period_start) != ask.period_start:
        msg = "No period begins there."
        raise InvalidSpec(msg, field="asks.period_start")
    if not ask.spent <= ask.keep <= ask.need <= ask.want:
        msg = "What is spent is kept, what is kept is needed, and what is needed is wanted."
        raise InvalidSpec(msg, field="asks.keep")


def refuse_other(named: UUID, actor: Actor) -> None:
    """Raise `InvalidSpec` where a document speaks of another gateway than the one that sends it."""
    if named != actor.id:
        msg = "This is another gateway's."
        raise InvalidSpec(msg, field="gateway_uid")
