"""The path allow-list: which requests a gateway answers at all. Pure.

Judged on the request target exactly as it stood on the wire, byte by byte, before any decoding: there is no
normal form to disagree about with the server behind us. Whatever is not in the list does not exist, whoever
asks; vLLM's other routes (`/invocations`, `/pause`, `/update_weights`, …) are never reachable.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from provisioners.gateway.protocol import KeyScope


class Route(StrEnum):
    """What a request asks for; the value is the path below the backend's `/v1`."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    MODELS = "models"
    MODEL = "models/{id}"
    HEALTH = "healthz"
    READY = "readyz"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Match:
    """An allowed request."""

    route: Route
    model: str = ""
    """Model name in the path, for `MODEL`."""


_EXACT: Final = {
    ("POST", "/v1/chat/completions"): Match(Route.CHAT),
    ("POST", "/v1/completions"): Match(Route.COMPLETIONS),
    ("POST", "/v1/embeddings"): Match(Route.EMBEDDINGS),
    ("GET", "/v1/models"): Match(Route.MODELS),
    ("GET", "/healthz"): Match(Route.HEALTH),
    ("GET", "/readyz"): Match(Route.READY),
    ("GET", "/metrics"): Match(Route.METRICS),
}
_MODEL: Final = re.compile(r"/v1/models/([A-Za-z0-9][A-Za-z0-9._-]{0,127})", re.ASCII)
SCOPE_OF: Final = {
    Route.CHAT: KeyScope.CHAT,
    Route.COMPLETIONS: KeyScope.COMPLETIONS,
    Route.EMBEDDINGS: KeyScope.EMBEDDINGS,
    Route.MODELS: KeyScope.MODELS,
    Route.MODEL: KeyScope.MODELS,
}


def match(method: str, target: str) -> Match | None:
    """Return what `method` and the raw request `target` ask for, or None: then the answer is 404."""
    exact = _EXACT.get((method, target))
    if exact is not None:
        return exact
    if method == "GET" and (found := _MODEL.fullmatch(target)):
        return Match(Route.MODEL, found[1])
    return None
