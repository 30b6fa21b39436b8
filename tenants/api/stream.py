"""`GET /api/v1/events/stream`: what happens, as server-sent events, for what the caller may see.

Each look is a short read block of its own; nothing is held between two looks. The order is that of each
chain: its head moves in commit order, so no event is missed however late its transaction ends. The caller is
authenticated anew every few seconds, so a stream ends with its token. `Last-Event-ID` (or `since`) resumes:
events of the last seconds before it may come again, with the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Final
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db import connection
from django.db.models import Max, Q
from django.http import HttpRequest, StreamingHttpResponse
from pydantic import Field, StringConstraints
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request

from tenants import access, tokens
from tenants.actor import Actor
from tenants.api import parsing
from tenants.api.authentication import session_actor
from tenants.api.scoping import actor_of
from tenants.api.serializers.base import Bound, Query
from tenants.api.serializers.records import EventOut
from tenants.api.views.base import ApiView
from tenants.errors import ControlPlaneError, InvalidSpec, Unauthenticated
from tenants.models import ChainHead, Event
from tenants.transactions import acting

POLL_S: Final = 0.5
PROVE_AGAIN_S: Final = 4.0
HEARTBEAT_S: Final = 15.0
OVERLAP: Final = timedelta(seconds=10)
MOST_PER_LOOK: Final = 500


class StreamQuery(Query):
    """What to hear."""

    tenant: Annotated[str, StringConstraints(max_length=64)] = ""
    kind: Annotated[str, StringConstraints(max_length=80)] = Field("", description="Kind, or its part before the dot.")
    since: Bound | None = None


@dataclass(slots=True)
class Ear:
    """One listener: who, what he wants, and how far he has heard each chain."""

    actor: Actor
    tenant: str
    kind: str
    heard: dict[UUID, int] = field(default_factory=dict)


class EventStream(ApiView):
    """What happens, as it happens."""

    operations: ClassVar[dict[str, str]] = {"GET": "events.stream"}
    schema = None  # an answer without end has no schema to check

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002
        """Take any `Accept`: an EventSource sends its own."""
        return JSONRenderer(), "application/json"

    def get(self, request: Request) -> StreamingHttpResponse:
        """Begin the stream. Raises `InvalidSpec`, `NotVisible` before it begins."""
        plain = request._request
        query = parsing.query_as(StreamQuery, plain.GET)
        since = _resumed(plain) or query.since
        ear = Ear(actor_of(request), query.tenant, query.kind)
        _settle(ear, since)
        connection.close()
        response = StreamingHttpResponse(_events(ear, plain), content_type="text/event-stream")
        response["X-Accel-Buffering"] = "no"
        return response


def _resumed(request: HttpRequest) -> datetime | None:
    word = request.headers.get("Last-Event-ID", "").partition("/")[0]
    if not word:
        return None
    try:
        at = datetime.fromisoformat(word)
    except ValueError as error:
        raise InvalidSpec("is no id of an event of this stream", field="Last-Event-ID") from error
    if at.tzinfo is None:
        raise InvalidSpec("is no id of an event of this stream", field="Last-Event-ID")
    return at - OVERLAP


def _chains(ear: Ear) -> Q:
    """Return the condition on chains that the listener may hear and wants to."""
    tenants = access.tenants(ear.actor)
    if ear.tenant:
        return Q(chain__in=[access.find(tenants, ear.tenant).pk])
    if ear.actor.sees_all:
        return Q()
    return Q(chain__in=tenants.values("pk"))


def _settle(ear: Ear, since: datetime | None) -> None:
    """Begin at the heads of now, or at what had been said before `since`."""
    with acting(ear.actor):
        chains = _chains(ear)
        ear.heard = dict(ChainHead.objects.filter(chains).values_list("chain", "seq"))
        if since is not None:
            before = Event.objects.filter(chains, at__lt=since).values_list("chain").annotate(last=Max("seq"))
            known = dict(before)
            ear.heard = {chain: known.get(chain, 0) for chain in ear.heard}


def look(ear: Ear) -> list[EventOut]:
    """Return what was said since the last look, chain by chain in order. One read block."""
    try:
        with acting(ear.actor):
            moved = {
                chain: seq
                for chain, seq in ChainHead.objects.filter(_chains(ear)).values_list("chain", "seq")
                if seq > ear.heard.get(chain, 0)
            }
            if not moved:
                return []
            wanted = Q(pk__in=[])
            for chain in moved:
                wanted |= Q(chain=chain, seq__gt=ear.heard.get(chain, 0))
            rows = list(Event.objects.filter(wanted).order_by("chain", "seq")[:MOST_PER_LOOK])
            return [EventOut.of(row) for row in _taken(ear, rows) if _fits(row.kind, ear.kind)]
    finally:
        connection.close()


def _taken(ear: Ear, rows: Iterable[Event]) -> list[Event]:
    """Move the listener on to the last row of each chain; what the limit cut off comes with the next look."""
    taken = list(rows)
    for row in taken:
        ear.heard[row.chain] = row.seq
    return sorted(taken, key=lambda row: (row.at, str(row.chain), row.seq))


def _fits(kind: str, wanted: str) -> bool:
    return not wanted or kind == wanted or kind.startswith(f"{wanted}.")


def _proven(request: HttpRequest) -> Actor:
    """Return the caller anew. Raises `Unauthenticated` once his proof has ended."""
    try:
        header = request.headers.get("Authorization", "")
        actor = tokens.resolve(header, now=datetime.now(UTC)) if header else session_actor(request)
    finally:
        connection.close()
    if actor is None:
        raise Unauthenticated
    return actor


async def _events(ear: Ear, request: HttpRequest) -> AsyncIterator[bytes]:
    """Yield the stream: events, a comment as heartbeat, and an end when the proof has ended."""
    clock = asyncio.get_running_loop().time
    proven = spoken = clock()
    yield b"retry: 2000\n\n"
    while True:
        try:
            if clock() - proven >= PROVE_AGAIN_S:
                ear.actor = await sync_to_async(_proven, thread_sensitive=False)(request)
                proven = clock()
            found = await sync_to_async(look, thread_sensitive=False)(ear)
        except ControlPlaneError as error:
            yield f"event: end\ndata: {error.specific_code}\n\n".encode()
            return
        for event in found:
            yield _line(event)
        if found or clock() - spoken >= HEARTBEAT_S:
            spoken = clock()
            if not found:
                yield b": still here\n\n"
        await asyncio.sleep(POLL_S)


def _line(event: EventOut) -> bytes:
    return f"id: {event.at.isoformat()}/{event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()
