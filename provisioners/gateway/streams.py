"""Server-sent events and usage objects as an OpenAI-compatible runtime writes them. Pure.

Events are cut out of the byte stream whole and passed on as they came. We ask the runtime to say in every event what
was used so far (vLLM: `continuous_usage_stats`), so that a stream that ends early is counted too; what of that the
caller did not ask for is taken out. vLLM's running usage is that of the event's own choice (and, of completions, of
its own prompt), only the closing event's is the whole answer's: so choices are counted apart and added up.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from pydantic_core import from_json

MOST_TOKENS: Final = 100_000_000
"""Tokens of one request; a runtime that says more says nonsense, and nothing is concluded from that."""
_LONGEST_EVENT: Final = 1 << 20
"""Bytes after which an unfinished event is passed on as it is."""
_LONGEST_USAGE: Final = 1 << 12
_DATA: Final = b"data: "
_OBJECT: Final = rb"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}"
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(' + _OBJECT + rb")")
_LAST_MEMBER: Final = re.compile(rb',\s?"usage":\s?(' + _OBJECT + rb")(?=\}\s*\Z)")
"""Usage as the last member of an event's own object, where vLLM writes it: no brace but that object's follows."""
_NO_CHOICE: Final = re.compile(rb'"choices":\s?\[\s?\]')
_CHOICE: Final = re.compile(rb'"choices":\s?\[\s?\{\s?"index":\s?(\d{1,6})[,}]')


@dataclass(slots=True)
class Usage:
    """Tokens as the runtime reported them."""

    prompt_tokens: int
    completion_tokens: int


class UsageWish(Enum):
    """What a caller asked to be told of usage in a stream."""

    NOTHING = "nothing"
    LAST = "last"
    """The closing event (`include_usage`)."""
    EVERY = "every"
    """Each event (`continuous_usage_stats` as well)."""


class EventStream:
    """Cuts a byte stream into whole events. Feed it chunks; it gives back what may be passed on."""

    def __init__(self, *, wish: UsageWish, choices: int = 1) -> None:
        """`choices` is how many answers are asked for each prompt (`n`)."""
        self._rest = b""
        self._wish = wish
        self._choices = max(choices, 1)
        self._running: dict[int, Usage] = {}
        self._whole: Usage | None = None
        self.data_events = 0
        """Events with data passed on so far."""
        self.finished = False
        """Whether `[DONE]` was seen."""

    @property
    def usage(self) -> Usage | None:
        """What the runtime said last: of the whole answer, or as far as the stream went. None: it said nothing."""
        if self._whole is not None or not self._running:
            return self._whole
        if len(self._running) == 1:
            return next(iter(self._running.values()))
        prompts = {index // self._choices: seen.prompt_tokens for index, seen in self._running.items()}
        return Usage(sum(prompts.values()), sum(seen.completion_tokens for seen in self._running.values()))

    @property
    def counted_whole(self) -> bool:
        """Whether the closing usage was seen."""
        return self._whole is not None

    def feed(self, chunk: bytes) -> bytes:
        """Take `chunk`; return the whole events it completes, b"" for none."""
        data = self._rest + chunk if self._rest else chunk
        end = _end_of_last_event(data)
        if end == 0 and len(data) > _LONGEST_EVENT:
            end = len(data)
        whole, self._rest = data[:end], data[end:]
        if not whole:
            return b""
        if b"data: [DONE]" in whole:
            self.finished = True
        if b'"usage"' in whole:
            whole = b"".join([self._without_unasked(event) for event in _split(whole)])
        self.data_events += whole.count(b"data: {")
        return whole

    def rest(self) -> bytes:
        """Return what came after the last whole event, at the stream's end."""
        rest, self._rest = self._rest, b""
        return rest

    def _without_unasked(self, event: bytes) -> bytes:
        """Note the usage in `event`; return what of it the caller is to see, b"" for nothing."""
        if b'"usage"' not in event or not event.startswith(b"data: {"):
            return event
        content: dict[str, Any] | None = None
        last = _LAST_MEMBER.search(event, max(event.rfind(b'"usage"') - 2, 0))
        try:
            if last is not None:
                usage = usage_of({"usage": from_json(last[1])})
                closing = _NO_CHOICE.search(event) is not None
            else:
                content = json.loads(event[len(_DATA) :])
                usage, closing = usage_of(content), content.get("choices") == []
        except (ValueError, AttributeError):
            return event
        if usage is None:
            return event
        if closing:
            self._whole = usage
            return event if self._wish is not UsageWish.NOTHING else b""
        self._running[self._index(event, content)] = usage
        if self._wish is UsageWish.EVERY:
            return event
        if last is not None:
            return event[: last.start()] + event[last.end() :]
        assert content is not None
        del content["usage"]
        ending = b"\r\n\r\n" if event.endswith(b"\r\n\r\n") else b"\n\n"
        return _DATA + json.dumps(content, separators=(",", ":")).encode() + ending

    def _index(self, event: bytes, content: dict[str, Any] | None) -> int:
        found = _CHOICE.search(event)
        if found is not None:
            return int(found[1])
        try:
            whole: dict[str, Any] = content if content is not None else json.loads(event[len(_DATA) :])
            index = whole["choices"][0].get("index")
        except (ValueError, AttributeError, LookupError, TypeError):
            return 0
        return index if isinstance(index, int) else 0


def usage_of(content: Any) -> Usage | None:
    """Return the usage object of a parsed answer or event, None where it has none that makes sense."""
    found = content.get("usage") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        return None
    prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int:
        return None
    if not (0 <= prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS):
        return None
    return Usage(prompt, completion)


def usage_in(text: bytes) -> Usage | None:
    """Find the last usage object in a JSON answer without parsing all of it.

    Inside a JSON string its quotes would be escaped, so words of the model never match.
    """
    at = len(text)
    while (at := text.rfind(b'"usage"', 0, at)) >= 0:
        found = _USAGE.match(text, at)
        try:
            usage = usage_of({"usage": from_json(found[1])}) if found is not None else None
        except ValueError:
            continue
        if usage is not None:
            return usage
    return None


class UsageFinder:
    """Finds the usage in an answer that is too long to be kept. Feed it chunks."""

    def __init__(self) -> None:
        self._rest = b""
        self.usage: Usage | None = None

    def feed(self, chunk: bytes) -> None:
        """Look into `chunk`, and across what it joins."""
        text = self._rest + chunk
        self.usage = usage_in(text) or self.usage
        self._rest = text[-_LONGEST_USAGE:]


def _end_of_last_event(data: bytes) -> int:
    unix, dos = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(unix + 2 if unix >= 0 else 0, dos + 4 if dos >= 0 else 0)


def _split(whole: bytes) -> list[bytes]:
    return re.findall(rb".*?(?:\r\n\r\n|\n\n)|.+\Z", whole, flags=re.DOTALL)
