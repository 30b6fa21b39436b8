"""vLLM: from a revision to `vllm serve …`. Pure.

Flags and their values: `vllm serve --help`, vLLM 0.32.0. Only what `FLAGS` lists is ever rendered, each as
one element of a list (`--flag=value`), so a value cannot become a flag of its own; nothing passes a shell.
The model is the catalogue's pinned commit, never a tenant's text, and `--trust-remote-code` does not exist
here. vLLM listens inside the boundary only. Keys of people are the gateway's work, because vLLM's own guards only a
part of its routes and knows one key: the gateway's, so that nobody inside the boundary gets past the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from provisioners.driver import BoundaryKind, DriverRejected
from provisioners.serving.runtime import Rendered, RevisionFacts, UnitFacts
from tenants.errors import InvalidSpec
from tenants.serving_arguments import checked_arguments

VERSION: Final = "0.32.0"
PORT: Final = 8000
FLAGS: Final[Mapping[str, str]] = {
    "max_model_len": "--max-model-len",
    "max_num_seqs": "--max-num-seqs",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "dtype": "--dtype",
    "quantization": "--quantization",
    "kv_cache_dtype": "--kv-cache-dtype",
    "enable_prefix_caching": "--enable-prefix-caching",
    "enable_chunked_prefill": "--enable-chunked-prefill",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "tool_call_parser": "--tool-call-parser",
    "reasoning_parser": "--reasoning-parser",
    "enforce_eager": "--enforce-eager",
}
"""Argument of the typed allow-list → flag; booleans have a `--no-` form."""
ENVIRONMENT: Final[Mapping[str, str]] = {
    "HF_HUB_OFFLINE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
KEY_VARIABLE: Final = "VLLM_API_KEY"
"""Guards `/v1`; the only way in for a key, which must not stand in `argv`."""
_SOURCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


class _Vllm:
    """vLLM's OpenAI-compatible server."""

    name = "vllm"

    def render(self, revision: RevisionFacts, unit: UnitFacts, boundary: BoundaryKind) -> Rendered:
        """Return the call for one replica. Raises `DriverRejected` for what no catalogue or operation lets through."""
        _check("model repository", revision.source, _SOURCE)
        _check("commit", revision.commit, _COMMIT)
        _check("endpoint name", revision.endpoint, _NAME)
        argv = [
            "vllm",
            "serve",
            revision.source,
            f"--revision={revision.commit}",
            f"--tokenizer-revision={revision.commit}",
            f"--served-model-name={revision.endpoint}",
            f"--host={'127.0.0.1' if boundary is BoundaryKind.VM else '0.0.0.0'}",  # noqa: S104 - inside the pod's network
            f"--port={PORT}",
            f"--tensor-parallel-size={max(1, unit.gpus)}",
            *_flags(revision.arguments),
        ]
        if "tool_call_parser" in revision.arguments:
            argv.append("--enable-auto-tool-choice")
        guarded = {} if revision.hop_key is None else {KEY_VARIABLE: revision.hop_key}
        return Rendered(tuple(argv), dict(ENVIRONMENT), guarded, port=PORT)


def _flags(given: Mapping[str, Any]) -> list[str]:
    try:
        arguments = checked_arguments(given)
    except InvalidSpec as error:
        msg = f"an argument is not allowed: {error.detail}"
        raise DriverRejected(msg) from error
    return [_flag(FLAGS[name], value) for name, value in sorted(arguments.items())]


def _flag(flag: str, value: object) -> str:
    if isinstance(value, bool):
        return flag if value else f"--no-{flag.removeprefix('--')}"
    text = str(value)
    if text.startswith("-") or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        msg = f"{flag} does not take {text[:40]!r}"
        raise DriverRejected(msg)
    return f"{flag}={text}"


def _check(what: str, text: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(text):
        msg = f"the {what} {text[:60]!r} cannot be served"
        raise DriverRejected(msg)


VLLM: Final = _Vllm()
