"""What a model server says of its own load and room: some of vLLM's metrics, read from its `/metrics`. Pure.

Names as vLLM 0.32.0 has them (reference: its `/metrics`); a server that has others says nothing here, and nothing is
concluded from that. vLLM guards `/v1` with its key, not `/metrics`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from provisioners.gateway.protocol import MOST_AMOUNT, MOST_COUNT

PATH: Final = "/metrics"
LONGEST_BYTES: Final = 1 << 20
_SAMPLE: Final = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|prefix_cache_queries_total|"
    r"prefix_cache_hits_total)(?:\{[^}\n]*\})? +(\S+)",
    re.MULTILINE,
)

_ROOM: Final = re.compile(
    r'^vllm:cache_config_info\{(?:[^}\n]*,)?kv_cache_size_tokens="([1-9][0-9]{0,14})"[^}\n]*\} +1', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy one model server is."""

    running: int
    waiting: int
    kv_cache: float
    """Share of its KV cache that is in use, from 0 to 1."""
    prefix_queries: int | None = None
    """Tokens of prompts that it looked up in its prefix cache since it started; None where it does not say."""
    prefix_hits: int | None = None
    """Of these, tokens that were there."""
    cache_tokens: int | None = None
    """Tokens that its KV cache has room for, over all requests; None where it does not say."""


def load_in(text: str) -> Load | None:
    """Return what an exposition text says; several engines add up, the fullest cache counts. None: it says nothing."""
    found: dict[str, list[float]] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number) and number >= 0:
            found.setdefault(name, []).append(number)
    if "num_requests_running" not in found or "num_requests_waiting" not in found:
        return None
    return Load(
        min(MOST_COUNT, round(sum(found["num_requests_running"]))),
        min(MOST_COUNT, round(sum(found["num_requests_waiting"]))),
        min(1.0, max(found.get("kv_cache_usage_perc", [0.0]))),
        prefix_queries=_counted(found.get("prefix_cache_queries_total")),
        prefix_hits=_counted(found.get("prefix_cache_hits_total")),
        cache_tokens=_cache_tokens(text),
    )


def _counted(values: list[float] | None) -> int | None:
    """Return what all engines of a server counted together."""
    return None if values is None else min(MOST_AMOUNT, round(sum(values)))


def _cache_tokens(text: str) -> int | None:
    """Return the room of the cache: of one engine; several share a model out in ways that nothing is concluded from."""
    found = _ROOM.findall(text)
    return int(found[0]) if len(found) == 1 else None


def address_of(base: str) -> str:
    """Return where the server of a backend's base URL tells its metrics."""
    return base.removesuffix("/v1") + PATH
