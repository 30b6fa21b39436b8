"""What a running vLLM says, read: how far it is, why it ended, what it made room for. Pure.

Log lines and metrics as vLLM 0.32.0 writes them (seen on its CPU build); what is not understood is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from provisioners.serving import failures

_PREFIX: Final = re.compile(r"^\((?P<who>[\w-]+) pid=\d+\) |^(?:INFO|WARNING|ERROR) [\d:\- ]+\[[^\]]*\] ")
_NOISE: Final = re.compile(r'"GET /(?:health|metrics|version|ping)[ ?]|[█▄▀]|^\s*$|^\x1b')
_STAGES: Final = (
    ("Application startup complete", "vLLM answers in a moment"),
    ("KV cache size", "vLLM has made room for its KV cache"),
    ("Loading weights took", "vLLM has loaded the weights"),
    ("Starting to load model", "vLLM is loading the weights"),
    ("Initializing a V1 LLM engine", "vLLM's engine is starting"),
    ("Resolved architecture", "vLLM has read the model's configuration"),
    ("version 0.", "vLLM is starting"),
)
"""Words of the log, the latest first → what people read."""
_HERE: Final = (
    (re.compile(r"LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled|cached snapshot"),
     "the model is not in the cache of this place, and nothing is fetched here"),
    (re.compile(r"Address already in use|EADDRINUSE"), "its port was taken by another program"),
)  # fmt: skip
"""What goes wrong on this machine only; all else is told as everywhere (`provisioners.serving.failures`)."""
_ERROR: Final = re.compile(r"\b((?:[\w.]+)?(?:Error|Exception)): (.+)")


def is_worth_keeping(line: str) -> bool:
    """Whether a line of the log is for people: no probe of ours, no banner."""
    return not _NOISE.search(line)


def doing(lines: Sequence[str]) -> str:
    """Return how far a starting server is, in words; "" where its log does not say."""
    for words, sentence in _STAGES:
        if any(words in line for line in lines):
            return sentence
    return ""


def why_it_ended(lines: Sequence[str]) -> str:
    """Return why a server ended, in plain words where the cause is known, else its own last error."""
    for pattern, sentence in _HERE:
        if any(pattern.search(line) for line in lines):
            return sentence
    if known := failures.words_of("\n".join(lines)):
        return known
    for line in reversed(lines):
        found = _ERROR.search(line)
        if found and "See root cause above" not in line:
            return f"{found[1].rpartition('.')[2]}: {found[2].strip()}"[:300]
    return "its log does not say why"


def told(metrics: str, version: str, lines: Sequence[str]) -> dict[str, Any]:
    """Return what a ready server says of itself; only what it really said.

    `metrics` and `version`: the answers of those routes; `kv_cache_tokens`, `kv_cache_bytes`, `weights_bytes`.
    """
    found: dict[str, Any] = {"program": f"vLLM {_version(version)}".strip()}
    labels = re.search(r"^vllm:cache_config_info\{(.*)\} ", metrics, re.MULTILINE)
    values = dict(re.findall(r'(\w+)="([^"]*)"', labels[1])) if labels else {}
    for name, label in (("kv_cache_tokens", "kv_cache_size_tokens"), ("kv_cache_bytes", "kv_cache_memory_bytes")):
        if values.get(label, "").isdecimal():
            found[name] = int(values[label])
    for line in lines:
        loaded = re.search(r"Model loading took ([\d.]+) GiB", line)
        if loaded:
            found["weights_bytes"] = int(float(loaded[1]) * 2**30)
    return found


def _version(answer: str) -> str:
    try:
        return str(json.loads(answer)["version"])
    except (ValueError, KeyError, TypeError):
        return ""
