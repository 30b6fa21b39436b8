"""vLLM: from a revision to `vllm serve …`. Pure.

Flags and their values: `vllm serve --help`, vLLM 0.32.0. Only what `FLAGS` lists is ever rendered, each as
one element of a list (`--flag=value`), so a value cannot become a flag of its own; nothing passes a shell.
The model is the catalogue's pinned commit, at the hub or in a mirror, never a tenant's text; it is read as
safetensors only, and `--trust-remote-code` does not exist here. vLLM listens inside the boundary only. Keys of people
are the gateway's work, because vLLM's own guards only a part of its routes and knows one key: the gateway's, so that
nobody inside the boundary gets past the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from provisioners.driver import DriverRejected
from provisioners.serving.runtime import MIRROR_PATH, Place, Rendered, RevisionFacts, UnitFacts
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
BOOLEANS: Final = frozenset({"enable_prefix_caching", "enable_chunked_prefill", "enforce_eager"})
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
_HOST: Final = re.compile(r"[0-9.]{7,15}")
_VALUE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OWN: Final[Mapping[str, re.Pattern[str]]] = {
    "--revision": _COMMIT,
    "--tokenizer-revision": _COMMIT,
    "--served-model-name": _NAME,
    "--host": _HOST,
    "--port": re.compile(r"[1-9][0-9]{0,4}"),
    "--tensor-parallel-size": re.compile(r"[1-9][0-9]{0,2}"),
    "--load-format": re.compile(r"safetensors|runai_streamer"),
    "--runner": re.compile(r"pooling"),
}
"""Flags that only we set, from rows of ours, and what they take. Weights are read as safetensors only: other formats
can run code when they are read, and the streamer from object stores (`runai_streamer`) reads nothing else."""
_OF_HUB: Final = frozenset({"--revision", "--tokenizer-revision"})
_ALWAYS: Final = _OWN.keys() - _OF_HUB - {"--runner"}
_S3: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._-]+)*")
_NFS: Final = re.compile(r"nfs://[A-Za-z0-9][A-Za-z0-9.-]{0,119}(/[A-Za-z0-9._-]+)+")
TOOLS: Final = "--enable-auto-tool-choice"
_PROGRAM: Final = ("vllm", "serve")


class _Vllm:
    """vLLM's OpenAI-compatible server."""

    name = "vllm"

    def render(self, revision: RevisionFacts, unit: UnitFacts, place: Place) -> Rendered:
        """Return the call for one replica. Raises `DriverRejected` for what no catalogue or operation lets through."""
        _check("model repository", revision.source, _SOURCE)
        _check("commit", revision.commit, _COMMIT)
        _check("endpoint name", revision.endpoint, _NAME)
        arguments = _checked(revision.arguments)
        argv = [
            *_PROGRAM,
            *_weights(revision),
            f"--served-model-name={revision.endpoint}",
            f"--host={place.host}",
            f"--port={place.port}",
            f"--tensor-parallel-size={max(1, unit.gpus)}",
            *(_flag(FLAGS[name], value) for name, value in sorted(arguments.items())),
        ]
        if "tool_call_parser" in arguments:
            argv.append(TOOLS)
        if revision.embeds:
            argv.append("--runner=pooling")
        guarded = {} if revision.hop_key is None else {KEY_VARIABLE: revision.hop_key}
        offline = {"HF_HUB_OFFLINE": "1"} if revision.mirror else {}
        return Rendered(tuple(argv), {**ENVIRONMENT, **offline, **place.environment}, guarded, port=place.port)

    def moved(self, argv: Sequence[str], environment: Mapping[str, str], place: Place) -> Rendered:
        """Return the same call at another place. Raises `DriverRejected` for one that `render` never gives."""
        check_call(argv)
        there = {"--host": place.host, "--port": str(place.port)}
        names = [word.partition("=")[0] for word in argv]
        words = [f"{name}={there[name]}" if name in there else word for name, word in zip(names, argv, strict=True)]
        return Rendered(tuple(words), {**environment, **place.environment}, port=place.port)


def check_call(argv: Sequence[str]) -> None:
    """See that a command line is one that `render` can give, word by word. Raises `DriverRejected`."""
    if tuple(argv[:2]) != _PROGRAM or len(argv) < 3:
        msg = "this is no call of vLLM"
        raise DriverRejected(msg)
    is_mirror = _is_mirror(argv[2])
    if not is_mirror:
        _check("model repository", argv[2], _SOURCE)
    booleans = {word for name in BOOLEANS for word in (FLAGS[name], _off(FLAGS[name]))} | {TOOLS}
    valued = {**{flag: _VALUE for name, flag in FLAGS.items() if name not in BOOLEANS}, **_OWN}
    seen: set[str] = set()
    for word in argv[3:]:
        flag, mark, value = word.partition("=")
        good = value.startswith("-") is False and valued[flag].fullmatch(value) if mark and flag in valued else None
        if not (good or word in booleans) or flag in seen:
            msg = f"vLLM is not called with {word[:60]!r}"
            raise DriverRejected(msg)
        seen.add(flag)
    if missing := (_ALWAYS if is_mirror else _ALWAYS | _OF_HUB) - seen:
        msg = f"a call of vLLM lacks {min(missing)}"
        raise DriverRejected(msg)


def _weights(revision: RevisionFacts) -> list[str]:
    """Return what names the weights: at the hub by repository and commit, in a mirror by the path that holds both."""
    _safe("model repository", revision.source)
    if not revision.mirror:
        pins = [f"--revision={revision.commit}", f"--tokenizer-revision={revision.commit}"]
        return [revision.source, *pins, "--load-format=safetensors"]
    _safe("mirror", revision.mirror)
    path = f"{revision.source}/{revision.commit}"
    if revision.mirror.startswith("s3:"):
        _check("mirror", revision.mirror, _S3)
        return [f"{revision.mirror}/{path}", "--load-format=runai_streamer"]
    _check("mirror", revision.mirror, _NFS)
    return [f"{MIRROR_PATH}/{path}", "--load-format=safetensors"]


def check_mirrored(repository: str, commit: str, mirror: str) -> None:
    """See that a model can lie in a mirror on NFS, by names that lead nowhere else. Raises `DriverRejected`."""
    for what, text, pattern in (
        ("model repository", repository, _SOURCE), ("commit", commit, _COMMIT), ("mirror", mirror, _NFS),
    ):  # fmt: skip
        _safe(what, text)
        _check(what, text, pattern)


def _is_mirror(word: str) -> bool:
    """Whether a word names weights in a mirror, as `_weights` does: `<mirror>/<owner>/<name>/<commit>`."""
    *head, owner, name, commit = word.split("/") if word.count("/") >= 3 else ("", "", "", "")
    root, path = "/".join(head), f"{owner}/{name}"
    if ".." in word or not _COMMIT.fullmatch(commit) or not _SOURCE.fullmatch(path):
        return False
    return root == MIRROR_PATH or _S3.fullmatch(root) is not None


def _safe(what: str, text: str) -> None:
    if ".." in text:
        msg = f"the {what} {text[:60]!r} cannot be served"
        raise DriverRejected(msg)


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return checked_arguments(given)
    except InvalidSpec as error:
        msg = f"an argument is not allowed: {error.detail}"
        raise DriverRejected(msg) from error


def _flag(flag: str, value: object) -> str:
    if isinstance(value, bool):
        return flag if value else _off(flag)
    text = str(value)
    if text.startswith("-") or not _VALUE.fullmatch(text):
        msg = f"{flag} does not take {text[:40]!r}"
        raise DriverRejected(msg)
    return f"{flag}={text}"


def _off(flag: str) -> str:
    return f"--no-{flag.removeprefix('--')}"


def _check(what: str, text: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(text):
        msg = f"the {what} {text[:60]!r} cannot be served"
        raise DriverRejected(msg)


VLLM: Final = _Vllm()
