"""`/agent/v1/`: what gateways call. Adapts HTTP to operations; the shapes are `provisioners.gateway.protocol`.

A gateway is known by its bearer credential (`tna_…`), compared by digest in constant time. Whatever is wrong
with a proof looks the same: 401. 410 is said only to who proved to be the gateway that was removed.
"""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeVar
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from pydantic import BaseModel

from provisioners.agent_api import config
from provisioners.agent_api.usage import summed
from provisioners.agent_api.watch import in_thread, look, watch
from provisioners.gateway import keys
from provisioners.gateway.protocol import (
    LONGEST_WAIT_S,
    BadDocument,
    ConfigDocument,
    EnrolAnswer,
    EnrolRequest,
    Envelope,
    Report,
    UsageBatch,
    canonical,
    parse,
)
from tenants import problems
from tenants.actor import Actor, Kind
from tenants.errors import ControlPlaneError, Gone, InvalidSpec, MethodNotAllowed, Unauthenticated, UnsupportedMediaType
from tenants.models import GatewayReplica
from tenants.operations import agents
from tenants.operations.agents import Entry

NOBODY: Final = "0" * 64
"""Compared with when there is no such gateway, so that it takes the same time."""
MOST_VERSION: Final = 2**53
_NUL: Final = re.compile(rb"\\u0000|\x00")
Shape = TypeVar("Shape", bound=BaseModel)


# --- who asks -------------------------------------------------------------------------------------


def acting_gateway(gateway: UUID) -> Actor:
    """Return the principal of a gateway."""
    return Actor(Kind.AGENT, gateway, name=f"gateway {gateway}")


def proof_of(request: HttpRequest) -> tuple[UUID, str]:
    """Return (gateway, digest of the credential shown). Raises `Unauthenticated`."""
    scheme, _, plain = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    try:
        return keys.parse_agent_credential(plain.strip())
    except keys.MalformedKey as error:
        raise Unauthenticated from error


def checked(entry: Entry | None, digest: str) -> Entry:
    """Return the entry that this digest proves. Raises `Unauthenticated`; `Gone` for a gateway that was removed."""
    known = entry.credential_digest if entry is not None else ""
    if not keys.equal(known or NOBODY, digest) or entry is None or not known:
        raise Unauthenticated
    if entry.removed:
        raise Gone
    return entry


def authenticated(request: HttpRequest) -> Actor:
    """Return the gateway behind a request. Raises `Unauthenticated`, `Gone`, `DependencyDown`."""
    gateway, digest = proof_of(request)
    checked(look([gateway]).get(gateway), digest)
    return acting_gateway(gateway)


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


def as_json(shape: BaseModel) -> HttpResponse:
    """Return a document of the protocol as JSON."""
    return HttpResponse(shape.model_dump_json(), content_type="application/json")


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


# --- the four addresses ---------------------------------------------------------------------------


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
        have = _number(request, "have", most=MOST_VERSION)
        wait_s = _number(request, "wait", most=LONGEST_WAIT_S)
        gateway, digest = proof_of(request)
        entry = checked((await in_thread(look, [gateway])).get(gateway), digest)
        if 0 < have <= entry.config_version:
            await in_thread(_note_served, gateway, have)
        ends = asyncio.get_running_loop().time() + wait_s
        while entry.config_version == have:
            left_s = ends - asyncio.get_running_loop().time()
            news = await watch().news(entry, wait_s=left_s) if left_s > 0 else entry
            if news is entry:
                return HttpResponse(status=HTTPStatus.NO_CONTENT)
            entry = checked(news, digest)
        return as_json(await in_thread(_offer, gateway, have))


class UsageView(AgentView):
    """Where a gateway sends what was used."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.usage"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Count a batch once. 204, also for a repeat."""
        actor = authenticated(request)
        batch = document(request, UsageBatch)
        _refuse_other(batch.gateway_uid, actor)
        now = datetime.now(UTC)
        try:
            totals = summed(batch, now=now)
        except BadDocument as error:
            raise InvalidSpec(f"The batch is not usable: {error}.") from error
        agents.count_usage(gateway=batch.gateway_uid, totals=totals, actor=actor, now=now)
        return HttpResponse(status=HTTPStatus.NO_CONTENT)


class ReportView(AgentView):
    """Where a gateway says how it is."""

    operations: ClassVar[dict[str, str]] = {"POST": "agents.report"}

    def post(self, request: HttpRequest) -> HttpResponse:
        """Keep the report. 204."""
        actor = authenticated(request)
        found = document(request, Report)
        _refuse_other(found.gateway_uid, actor)
        agents.report(
            gateway=found.gateway_uid,
            body=found.model_dump(mode="json"),
            version=min(found.config_version, MOST_VERSION),
            actor=actor,
            now=datetime.now(UTC),
        )
        return HttpResponse(status=HTTPStatus.NO_CONTENT)


# --- in threads -----------------------------------------------------------------------------------


def _note_served(gateway: UUID, version: int) -> None:
    agents.serves(gateway=gateway, version=version, actor=acting_gateway(gateway), now=datetime.now(UTC))


def _offer(gateway: UUID, have: int) -> Envelope:
    now = datetime.now(UTC)

    def render(row: GatewayReplica) -> str:
        return canonical(config.document_of(row, now=now)).decode()

    _, text = agents.take_config(gateway=gateway, have=have, render=render, actor=acting_gateway(gateway), now=now)
    return config.signer().sign(parse(ConfigDocument, text))


def _refuse_other(named: UUID, actor: Actor) -> None:
    if named != actor.id:
        msg = "This is another gateway's."
        raise InvalidSpec(msg, field="gateway_uid")


def _number(request: HttpRequest, name: str, *, most: int) -> int:
    text = request.GET.get(name, "")
    if not re.fullmatch(r"[0-9]{1,16}", text) or int(text) > most:
        raise InvalidSpec(f"Give a whole number from 0 to {most}.", field=name)
    return int(text)
