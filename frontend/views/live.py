"""Streams of what changes: authorised like a page, then nothing is held but a place in the hub."""

from __future__ import annotations

from uuid import UUID

from django.db import connection
from django.http import HttpResponseBase, StreamingHttpResponse

from frontend.kernel import live
from frontend.kernel.page import PageRequest, page
from frontend.views import products
from tenants.transactions import reading


@page("endpoints.read", own_blocks=True)
def product(request: PageRequest, kind: str, key: UUID) -> HttpResponseBase:
    """Stream that one product changed, or what it is built in."""
    with reading(request.actor):
        topics = products.live_topics(kind, key, request)
    return stream_of(request, *topics)


@page("tenants.read", own_blocks=True)
def tenant(request: PageRequest) -> HttpResponseBase:
    """Stream that anything of a tenant changed."""
    return stream_of(request, live.tenant_topic(request.tenant.pk))


def stream_of(request: PageRequest, *topics: str) -> HttpResponseBase:
    """Return a stream of these topics; whoever calls has seen that the actor may read what they are about."""
    connection.close()  # back to the pool: an open stream holds no connection
    response = StreamingHttpResponse(live.stream(topics, live.since_of(request)), content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response
