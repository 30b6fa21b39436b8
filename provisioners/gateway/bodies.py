"""Reading a request's body within limits, and what the gateway needs to know of it.

What is judged is what is sent on: the body is parsed once, strictly, and written anew, so that no two readings of
one text (duplicate names, NaN, odd encodings) can be played against each other. Bodies are never logged.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from aiohttp import web
from pydantic_core import from_json, to_json

from provisioners.gateway import refusals
from provisioners.gateway.paths import Route
from provisioners.gateway.streams import UsageWish

MAX_BODY_BYTES: Final = 16 << 20
"""Room for a few images as data URLs."""
STRANGER_BODY_BYTES: Final = 64 << 10
"""As much is read from a caller without a good key, so that refusing costs little and looks alike."""
MAX_DEPTH: Final = 64
COMPLETION_TOKENS: Final = 16
LIKELY_TOKENS: Final = 256
LONGEST_TOKENS: Final = 32_768
"""Of prompt and answer together, where nobody says what the model takes."""
BYTES_A_TOKEN: Final = 4
TEMPLATE_TOKENS: Final = 256
"""Room for what a chat template adds to what stands in the body."""
_NO_TEXT: Final = re.compile(
    rb'"(?:image_url|input_image|image_embeds|image_pil|audio_url|input_audio|audio_embeds'
    rb'|video_url|video_embeds|prompt_embeds|file)"'
)
"""What makes tokens that are not in the body (vLLM 0.32.0, `renderers/chat_utils.py`, `MM_PARSER_MAP`); a word of the
caller would have its quotes escaped."""
MOST_ANSWERS: Final = 16_384
"""vLLM 0.32.0 refuses more (`VLLM_MAX_N_SEQUENCES`); held and charged is no more than that, whatever is asked."""
BODY_TIMEOUT_S: Final = 60.0
_STREAMING: Final = frozenset({Route.CHAT, Route.COMPLETIONS})
_USAGE_ASKED: Final = {"include_usage": True, "continuous_usage_stats": True}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)
_encoded: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Asked:
    """An inference request, read."""

    model: str
    streamed: bool
    usage_wish: UsageWish
    """What the caller himself asked to be told of usage in a stream."""
    answers: int
    """How many answers are asked for each prompt."""
    prompts: int
    """How many prompts there are; each is answered so often."""
    most_tokens: int | None
    """Most tokens of one answer, as far as the caller says; None: as many as the model can."""
    most_prompt_tokens: int | None
    """Most tokens that all prompts can be: no token is less than a byte. None: not known (pictures, sound)."""
    content: bytes
    """The body to send on."""

    def at_most(self, context: int | None, prompt: int | None = None) -> int:
        """Return the most tokens that prompts and answers together can be, in a context of so many tokens.

        `prompt` is what all prompts really are, where that is known by now.
        """
        longest = context or LONGEST_TOKENS
        prompts = prompt if prompt is not None else self.most_prompt_tokens
        known = longest * self.prompts if prompts is None else min(prompts, longest * self.prompts)
        answer = longest if self.most_tokens is None else min(self.most_tokens, longest)
        return min(known + self.prompts * self.answers * answer, self.prompts * self.answers * longest)

    def likely_tokens(self, context: int | None) -> int:
        """Return what a rate is charged with before the answer is there: about what is asked, settled afterwards."""
        likely = LIKELY_TOKENS if self.most_tokens is None else min(self.most_tokens, context or LONGEST_TOKENS)
        return len(self.content) // BYTES_A_TOKEN + self.prompts * self.answers * likely


async def read(request: web.BaseRequest, *, limit: int) -> bytes:
    """Return the body. Raises `Refusal`: 413 over `limit` bytes, 415 not JSON or packed, 408 too slow."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise refusals.unsupported("The body must not be packed (Content-Encoding).")
    if request.content_type != "application/json":
        raise refusals.unsupported("The body must be application/json.")
    if (request.content_length or 0) > limit:
        raise refusals.too_large(limit)
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    chunks: list[bytes] = []
    size = 0
    try:
        if request.content.is_eof():  # all of it came with its headers, as of nearly every request
            body = request.content.read_nowait()
            if len(body) > limit:
                raise refusals.too_large(limit)
            return body
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    raise refusals.too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise refusals.slow_body() from None
    except web.RequestPayloadError:
        raise refusals.bad_request("invalid_body", "The body is not framed as HTTP wants it.", close=True) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def understand(body: bytes, route: Route) -> Asked:
    """Parse `body` for `route`. Raises `Refusal` 400 naming the field."""
    content = _parsed(body)
    model = content.get("model")
    if not isinstance(model, str) or not model:
        raise refusals.bad_request("model_missing", "`model` must be a text: the name of the endpoint.")
    streamed = content.get("stream")
    if streamed not in (None, True, False) or (isinstance(streamed, int | float) and not isinstance(streamed, bool)):
        raise refusals.bad_request("invalid_type", "`stream` must be true or false.")
    wish = UsageWish.NOTHING
    if streamed and route in _STREAMING:
        options = content.get("stream_options")
        if options is None:
            options = {}
        if not isinstance(options, dict):
            raise refusals.bad_request("invalid_type", "`stream_options` must be an object.")
        if options.get("include_usage") is True:
            wish = UsageWish.EVERY if options.get("continuous_usage_stats") is True else UsageWish.LAST
        content["stream_options"] = {**options, **_USAGE_ASKED}
    text = _written(content)
    return Asked(
        model,
        bool(streamed),
        wish,
        min(max(1, *(_number(content, name) or 1 for name in ("n", "best_of"))), MOST_ANSWERS),
        _prompts(content, route),
        0 if route is Route.EMBEDDINGS else _most_tokens(content, route),
        None if _NO_TEXT.search(text) is not None else len(text) + TEMPLATE_TOKENS,
        text,
    )


def _number(content: dict[str, Any], name: str) -> int | None:
    """Return a whole number above 0, None for none (those below are the runtime's to refuse).

    Raises `Refusal` 400 for anything else: vLLM takes a text or a truth for a number, and what is held for a request
    must not be less than what it makes of it.
    """
    found = content.get(name)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if found is not None and type(found) is not int:
        raise refusals.bad_request("invalid_type", f"`{name}` must be a whole number.")
    return found if found is not None and found > 0 else None


def _prompts(content: dict[str, Any], route: Route) -> int:
    """Return how many prompts a body holds: one text or list of token ids is one, a list of those is several."""
    given = content.get({Route.COMPLETIONS: "prompt", Route.EMBEDDINGS: "input"}.get(route, ""))
    if not isinstance(given, list) or not given or type(given[0]) is int:
        return 1
    return len(given)


def _most_tokens(content: dict[str, Any], route: Route) -> int | None:
    """Return the most tokens of one answer; vLLM and OpenAI make 16 of a completion that names no number."""
    if route is Route.COMPLETIONS:
        return _number(content, "max_tokens") or (None if "max_tokens" in content else COMPLETION_TOKENS)
    newer, older = _number(content, "max_completion_tokens"), _number(content, "max_tokens")
    return older if content.get("max_completion_tokens") is None else newer


def _written(content: dict[str, Any]) -> bytes:
    """Write JSON anew. Raises `Refusal` 400 for what it cannot carry."""
    text = to_json(content)
    if b"Infinity" not in text and b"NaN" not in text:
        return text
    try:  # a number of that name, or only a text: the slower writer tells them apart
        return _encoded(content).encode()
    except ValueError:
        raise refusals.bad_request("invalid_json", "The body holds a number or text that JSON cannot carry.") from None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        content = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError:  # it reads what is good several times faster; the slower reader judges what is not
        content = _parsed_slowly(body)
    if not isinstance(content, dict):
        raise refusals.bad_request("invalid_json", "The body must be a JSON object.")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _deeper_than(content, MAX_DEPTH):
        raise refusals.bad_request("too_deep", f"The body may be nested {MAX_DEPTH} deep at most.")
    return content


def _parsed_slowly(body: bytes) -> Any:
    try:
        content = _DECODER.decode(body.decode("utf-8"))
        _encoded(content).encode()
    except (ValueError, RecursionError):
        raise refusals.bad_request("invalid_json", "The body is not valid JSON in UTF-8.") from None
    return content


def _deeper_than(content: dict[str, Any], limit: int) -> bool:
    level: list[Any] = [content]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
