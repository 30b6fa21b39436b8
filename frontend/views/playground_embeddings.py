"""Playground of a model that makes embeddings: some texts, their vectors in figures, and how near each is to each."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import httpx
from django.http import HttpResponseBase
from django.utils.translation import gettext as _

from frontend.kernel.page import PageRequest, page
from frontend.views import playground, products
from frontend.views.products import ENDPOINTS
from tenants.errors import InvalidSpec
from tenants.models import Endpoint
from tenants.transactions import reading

MOST_TEXTS: Final = 8
MOST_BYTES: Final = 4_000_000
"""Of one answer: eight vectors of some thousand figures are far less."""


@page("endpoints.create_key", methods=("POST",))
def embed(request: PageRequest, name: str) -> HttpResponseBase:
    """Let an endpoint embed some texts; one event says how near they are to each other. Raises `InvalidSpec`."""
    texts = _asked(request)
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
    return playground.put(request, row, {"model": row.name, "input": texts}, path="embeddings", told=_told)


def _asked(request: PageRequest) -> list[str]:
    try:
        found = [str(each).strip() for each in json.loads(request.body)["texts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSpec(_("Send texts."), field="texts") from error
    texts = [each for each in found if each]
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise InvalidSpec(_("Send 1 to %(n)d texts, one on each line.") % {"n": MOST_TEXTS}, field="texts")
    if sum(map(len, texts)) > playground.MOST_TEXT:
        raise InvalidSpec(_("This is too long for the playground."), field="texts")
    return texts


async def _told(answer: httpx.Response) -> AsyncIterator[bytes]:
    if answer.status_code != 200:
        yield await playground.refused(answer)
        return
    try:
        said = nearness(json.loads((await answer.aread())[:MOST_BYTES]))
    except (ValueError, KeyError, TypeError):
        yield playground.trouble(_("The endpoint did not answer with vectors."))
        return
    yield f"data: {json.dumps(said)}\n\ndata: [DONE]\n\n".encode()


def nearness(body: dict[str, Any]) -> dict[str, Any]:
    """Return dimensions, tokens and the cosine of each vector with each, by an OpenAI answer. Pure.

    Raises `ValueError`, `KeyError`, `TypeError` for one that is none.
    """
    vectors = [[float(x) for x in one["embedding"]] for one in sorted(body["data"], key=lambda one: int(one["index"]))]
    if not vectors or len({len(each) for each in vectors}) != 1:
        raise ValueError("vectors of one length")
    return {
        "dimensions": len(vectors[0]),
        "tokens": int(body.get("usage", {}).get("prompt_tokens", 0)),
        "near": [[round(cosine(a, b), 3) for b in vectors] for a in vectors],
    }


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the cosine between two vectors, 0 where one has no length."""
    size = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / size if size else 0.0
