"""The OpenAI-compatible stub behind a simulated replica: it answers in vLLM's shape and runs no model.

Every answer says where it ran and that it is simulated, in its text and in the header
`x-tenantry-simulated`. Tokens come at the revision's estimated pace (0: at once). Metrics carry vLLM's
names and buckets (vLLM 0.32.0, `/metrics`), counted from what this stub really answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from provisioners.sandbox.estate import Estate
from provisioners.sandbox.views import is_cut_off

SIMULATED: Final = {"x-tenantry-simulated": "true"}
KEY_VARIABLE: Final = "VLLM_API_KEY"
KEY_DIGEST: Final = "key_digest"
"""In what a replica serves: SHA-256 (hex) of the key that it wants to be shown, as vLLM does for that variable."""
GUARDED: Final = "v1/"
"""vLLM guards these paths; it answers `/health` and `/metrics` without a key."""
DEFAULT_MAX_TOKENS: Final = 128
MODEL_LENGTH: Final = 8192
_TTFT_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
_PER_TOKEN_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_S: Final = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer comes from, as the estate knows it for true."""

    model: str
    revision: int
    endpoint: str
    unit: str
    host: str
    slots: tuple[str, ...]
    tokens_s: float
    origin: str = "simulated by Tenantry's sandbox"

    @property
    def words(self) -> str:
        """Return the place as a sentence for the answer's text."""
        where = ", ".join(self.slots) or "no GPU"
        return f"{self.origin}: {self.model}, revision {self.revision}, on {self.host} ({where})"

    def as_json(self) -> dict[str, Any]:
        """Return the place as the answer's `tenantry` field."""
        return {
            "simulated": True,
            "endpoint": self.endpoint,
            "revision": self.revision,
            "unit": self.unit,
            "host": self.host,
            "slots": list(self.slots),
        }


def place_of(estate: Estate, unit: str) -> tuple[Place | None, str]:
    """Return where a unit's replica answers, or (None, why it does not)."""
    now = estate.advance()
    workload = estate.state.workloads.get(unit)
    if workload is None or workload.serving is None or not workload.running:
        return None, "no such replica"
    state = estate.state
    if state.settings.models == "local":
        return None, "a real model server answers for this replica, on a port of its own"
    if not state.hosts[workload.host].healthy or any(not state.gpus[w[0]].healthy for w in workload.windows):
        return None, "the replica is down"
    if is_cut_off(estate.state, workload):
        return None, "the replica's network is cut off"
    if now < max(workload.ready_at, workload.serving["ready_at"]):
        return None, "the replica is loading its model"
    serving = workload.serving
    slots = tuple(
        f"{device} slots {start}-{start + size - 1}" + (f" ({profile})" if profile else "")
        for device, start, size, profile in workload.windows
    )
    place = Place(
        model=str(serving["model"]),
        revision=int(serving["revision"]),
        endpoint=str(serving["endpoint"]),
        unit=unit,
        host=workload.host,
        slots=slots,
        tokens_s=float(serving["tokens_s"]),
    )
    return place, ""


# --- metrics --------------------------------------------------------------------------------------


class ReplicaMetrics:
    """vLLM's metrics of one replica; they start at zero with the server, as they do with vLLM."""

    def __init__(self, model: str) -> None:
        """Count for one model name."""
        self.registry = CollectorRegistry()
        self._labels = {"engine": "0", "model_name": model}
        names = tuple(self._labels)
        gauge = {
            "vllm:num_requests_running": "Number of requests in model execution batches.",
            "vllm:num_requests_waiting": "Number of requests waiting to be processed.",
            "vllm:kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
        }
        counter = {
            "vllm:prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
            "vllm:prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
            "vllm:num_preemptions": "Cumulative number of preemption from the engine.",
            "vllm:prompt_tokens": "Number of prefill tokens processed.",
            "vllm:generation_tokens": "Number of generation tokens processed.",
        }
        histogram = {
            "vllm:request_prompt_tokens": _TOKENS,
            "vllm:request_generation_tokens": _TOKENS,
            "vllm:time_to_first_token_seconds": _TTFT_S,
            "vllm:inter_token_latency_seconds": _PER_TOKEN_S,
            "vllm:request_time_per_output_token_seconds": _PER_TOKEN_S,
            "vllm:e2e_request_latency_seconds": _REQUEST_S,
            "vllm:request_queue_time_seconds": _REQUEST_S,
        }
        self._gauges = {name: Gauge(name, text, names, registry=self.registry) for name, text in gauge.items()}
        self._counters = {name: Counter(name, text, names, registry=self.registry) for name, text in counter.items()}
        self._histograms = {
            name: Histogram(name, name.removeprefix("vllm:"), names, buckets=buckets, registry=self.registry)
            for name, buckets in histogram.items()
        }
        self._finished = Counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            (*names, "finished_reason"),
            registry=self.registry,
        )
        for family in (*self._gauges.values(), *self._counters.values(), *self._histograms.values()):
            family.labels(**self._labels)
        for reason in ("stop", "length", "abort"):
            self._finished.labels(**self._labels, finished_reason=reason)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as running while it is."""
        running = self._gauges["vllm:num_requests_running"].labels(**self._labels)
        running.inc()
        try:
            yield
        except BaseException:
            self._finished.labels(**self._labels, finished_reason="abort").inc()
            raise
        finally:
            running.dec()

    def prefilled(self, prompt: int) -> None:
        """Count a prompt, whatever becomes of its answer."""
        for name in ("vllm:prefix_cache_queries", "vllm:prompt_tokens"):
            self._counters[name].labels(**self._labels).inc(prompt)

    def generated(self, tokens: int) -> None:
        """Count tokens as they are made, whether or not anybody reads them."""
        self._counters["vllm:generation_tokens"].labels(**self._labels).inc(tokens)

    def finished(self, reply: Reply, *, first_s: float, whole_s: float) -> None:
        """Count an answer that came to its end."""
        generated = len(reply.tokens)
        per_token = (whole_s - first_s) / max(generated - 1, 1)
        seen = {
            "vllm:request_prompt_tokens": float(reply.prompt_tokens),
            "vllm:request_generation_tokens": float(generated),
            "vllm:time_to_first_token_seconds": first_s,
            "vllm:request_time_per_output_token_seconds": per_token,
            "vllm:e2e_request_latency_seconds": whole_s,
            "vllm:request_queue_time_seconds": 0.0,
        }
        for name, value in seen.items():
            self._histograms[name].labels(**self._labels).observe(value)
        between = self._histograms["vllm:inter_token_latency_seconds"].labels(**self._labels)
        for _ in range(generated - 1):
            between.observe(per_token)
        self._finished.labels(**self._labels, finished_reason=reply.reason).inc()


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """What will be said, token by token."""

    tokens: tuple[str, ...]
    prompt_tokens: int
    reason: str

    @property
    def usage(self) -> dict[str, int]:
        """Return the usage block of the answer."""
        return self.usage_at(len(self.tokens))

    def usage_at(self, generated: int) -> dict[str, int]:
        """Return the usage block after so many tokens."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": self.prompt_tokens + generated,
        }


class BadRequest(ValueError):
    """The body is not what the API takes; the message names the field."""


def reply_to(place: Place, body: Mapping[str, Any], *, chat: bool) -> Reply:
    """Return the reply to a request. Raises `BadRequest`."""
    prompt = _chat_text(body) if chat else _prompt_text(body)
    limit = body.get("max_completion_tokens", body.get("max_tokens")) or DEFAULT_MAX_TOKENS
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MODEL_LENGTH:
        msg = f"max_tokens is a number from 1 to {MODEL_LENGTH}"
        raise BadRequest(msg)
    words = f"This answer is {place.words}; no model ran. You wrote: {prompt[-200:]}".split()
    tokens = tuple(word if at == 0 else f" {word}" for at, word in enumerate(words))
    reason = "length" if len(tokens) > limit else "stop"
    return Reply(tokens[:limit], max(1, len(prompt.split())), reason)


def _chat_text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        msg = "messages is a list of at least one message"
        raise BadRequest(msg)
    content = messages[-1].get("content") or ""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content)


def _prompt_text(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if not isinstance(prompt, str | list) or not prompt:
        msg = "prompt is a text or a list of texts"
        raise BadRequest(msg)
    return prompt if isinstance(prompt, str) else " ".join(str(part) for part in prompt)


class Stub:
    """The HTTP side of every simulated replica of one server."""

    def __init__(self) -> None:
        """Start with no counts."""
        self._metrics: dict[tuple[str, str], ReplicaMetrics] = {}

    def _metrics_of(self, place: Place) -> ReplicaMetrics:
        key = (place.unit, place.model)
        if key not in self._metrics:
            self._metrics[key] = ReplicaMetrics(place.model)
        return self._metrics[key]

    async def answer(
        self, request: web.Request, estate: Estate, unit: str, path: str, *, trusted: bool = False
    ) -> web.StreamResponse:
        """Answer one request to the replica of `unit`; `path` is what follows its base.

        A simulated gateway is `trusted`: it has no configuration, and so no key to show.
        """
        place, why = place_of(estate, unit)
        if place is None:
            return _problem(404 if why == "no such replica" else 503, why)
        serving = estate.state.workloads[unit].serving or {}
        if not trusted and path.startswith(GUARDED) and not _opens(request, serving.get(KEY_DIGEST, "")):
            return web.json_response({"error": "Unauthorized"}, status=401, headers=SIMULATED)
        return await self.answer_at(request, place, path)

    async def answer_at(self, request: web.Request, place: Place, path: str) -> web.StreamResponse:
        """Answer one request to a replica that serves at `place`."""
        match request.method, path:
            case "GET", "health":
                return web.Response(headers=SIMULATED)
            case "GET", "metrics":
                text = generate_latest(self._metrics_of(place).registry)
                return web.Response(body=text, headers={**SIMULATED, "Content-Type": "text/plain; version=0.0.4"})
            case "GET", "v1/models":
                return _json({"object": "list", "data": [_model(place)]})
            case "GET", _ if path.startswith("v1/models/"):
                known = path.removeprefix("v1/models/") == place.model
                return _json(_model(place)) if known else _problem(404, "no such model")
            case "POST", "v1/chat/completions" | "v1/completions":
                return await self._complete(request, place, chat=path == "v1/chat/completions")
            case "POST", "v1/embeddings":
                return _problem(400, "this model makes no embeddings")
            case _:
                return _problem(404, "no such route")

    async def _complete(self, request: web.Request, place: Place, *, chat: bool) -> web.StreamResponse:
        try:
            body = await request.json()
            if not isinstance(body, dict):
                return _problem(400, "the body is a JSON object")
            if body.get("model") != place.model:
                return _problem(404, f"the model {body.get('model')!r} does not exist")
            reply = reply_to(place, body, chat=chat)
        except (BadRequest, json.JSONDecodeError, UnicodeDecodeError) as error:
            return _problem(400, str(error))
        metrics = self._metrics_of(place)
        shape = _Shape(place, chat=chat)
        with metrics.request():
            if body.get("stream"):
                return await _stream(request, shape, reply, metrics, *_usage_asked(body.get("stream_options")))
            began = time.perf_counter()
            await asyncio.sleep(_pace_s(place) * len(reply.tokens))
            whole_s = time.perf_counter() - began
            metrics.prefilled(reply.prompt_tokens)
            metrics.generated(len(reply.tokens))
            metrics.finished(reply, first_s=min(_pace_s(place), whole_s), whole_s=whole_s)
            return _json(shape.whole(reply))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The JSON of one answer, for chat or plain completion."""

    place: Place
    chat: bool
    id: str = ""

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.chat else "cmpl"
        object.__setattr__(self, "id", f"{prefix}-{uuid.uuid4().hex}")

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": self.place.model,
            "choices": choices,
        }

    def whole(self, reply: Reply) -> dict[str, Any]:
        """Return the answer in one piece."""
        text = "".join(reply.tokens)
        choice: dict[str, Any] = {"index": 0, "finish_reason": reply.reason, "logprobs": None}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._frame(kind, [choice]), "usage": reply.usage, "tenantry": self.place.as_json()}

    def chunk(self, text: str | None, *, first: bool = False, reason: str | None = None) -> dict[str, Any]:
        """Return one event of a stream."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self.chat:
            delta = {} if text is None else {"content": text}
            choice["delta"] = {"role": "assistant", **delta} if first else delta
        else:
            choice["text"] = text or ""
        return self._frame("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def usage(self, reply: Reply) -> dict[str, Any]:
        """Return the last event, for `stream_options.include_usage`."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._frame(kind, []), "usage": reply.usage}


def _usage_asked(options: Any) -> tuple[bool, bool]:
    """Return whether usage is asked for at the end, and in each event: that only beside the former, as in vLLM."""
    given = options if isinstance(options, Mapping) else {}
    at_end = bool(given.get("include_usage"))
    return at_end, at_end and bool(given.get("continuous_usage_stats"))


async def _stream(
    request: web.Request,
    shape: _Shape,
    reply: Reply,
    metrics: ReplicaMetrics,
    at_end: bool,  # noqa: FBT001 - given in one go, as it is read
    in_each: bool,  # noqa: FBT001
) -> web.StreamResponse:
    """Send the answer token by token. What was made is counted also where the caller leaves, as vLLM counts it."""
    response = web.StreamResponse(
        headers={**SIMULATED, "Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    began = time.perf_counter()
    first_s, made = 0.0, 0

    async def say(event: dict[str, Any]) -> None:
        await _send(response, {**event, "usage": reply.usage_at(made)} if in_each else event)

    await response.prepare(request)
    metrics.prefilled(reply.prompt_tokens)
    for token in reply.tokens:
        await asyncio.sleep(_pace_s(shape.place))
        made += 1
        metrics.generated(1)
        await say(shape.chunk(token, first=made == 1))
        first_s = first_s or time.perf_counter() - began
    await say(shape.chunk(None, reason=reply.reason))
    if at_end:
        await _send(response, shape.usage(reply))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    metrics.finished(reply, first_s=first_s, whole_s=time.perf_counter() - began)
    return response


async def _send(response: web.StreamResponse, event: Mapping[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _opens(request: web.Request, digest: str) -> bool:
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    shown = hashlib.sha256(key.encode()).hexdigest()
    return not digest or (scheme.lower() == "bearer" and hmac.compare_digest(shown, digest))


def _pace_s(place: Place) -> float:
    return 1.0 / place.tokens_s if place.tokens_s > 0 else 0.0


def _model(place: Place) -> dict[str, Any]:
    return {
        "id": place.model,
        "object": "model",
        "created": 0,
        "owned_by": "vllm",
        "root": place.model,
        "max_model_len": MODEL_LENGTH,
        "tenantry": place.as_json(),
    }


def _json(value: Mapping[str, Any]) -> web.Response:
    return web.json_response(value, headers=SIMULATED)


def _problem(status: int, message: str) -> web.Response:
    error = {"message": f"{message} (simulated)", "type": "sandbox", "param": None, "code": status}
    headers = {**SIMULATED, **({"Retry-After": "1"} if status == web.HTTPServiceUnavailable.status_code else {})}
    return web.json_response({"error": error}, status=status, headers=headers)
