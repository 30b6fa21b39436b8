"""Server-sent events and usage objects as an OpenAI-compatible runtime writes them. Pure.

Events are cut out of the byte stream whole and passed on as they came; only a usage event that we asked for
and the caller did not is taken out.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

_LONGEST_EVENT: Final = 1 << 20
"""Bytes after which an unfinished event is passed on as it is."""
_TAIL: Final = 1 << 16
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


@dataclass(slots=True)
class Usage:
    """Tokens as the runtime reported them."""

    prompt_tokens: int
    completion_tokens: int


class EventStream:
    """Cuts a byte stream into whole events. Feed it chunks; it gives back what may be passed on."""

    def __init__(self, *, drop_usage: bool) -> None:
        """`drop_usage`: take out the closing event that holds nothing but usage."""
        self._rest = b""
        self._drop_usage = drop_usage
        self.usage: Usage | None = None
        self.data_events = 0
        """Events with data passed on so far."""
        self.finished = False
        """Whether `[DONE]` was seen."""

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
            whole = b"".join(event for event in _split(whole) if not self._takes(event))
        self.data_events += whole.count(b"data: {")
        return whole

    def rest(self) -> bytes:
        """Return what came after the last whole event, at the stream's end."""
        rest, self._rest = self._rest, b""
        return rest

    def _takes(self, event: bytes) -> bool:
        """Note the usage in `event`; say whether the event is to be left out."""
        if b'"usage"' not in event or not event.startswith(b"data: {"):
            return False
        try:
            content = json.loads(event[len(b"data: ") :])
        except ValueError:
            return False
        usage = usage_of(content)
        if usage is None:
            return False
        self.usage = usage
        return self._drop_usage and content.get("choices") == []


def usage_of(content: Any) -> Usage | None:
    """Return the usage object of a parsed answer or event, None where it has none that makes sense."""
    found = content.get("usage") if isinstance(content, dict) else None
    if not isinstance(found, dict):
        return None
    prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int or prompt < 0 or completion < 0:
        return None
    return Usage(prompt, completion)


def usage_in(tail: bytes) -> Usage | None:
    """Find the usage object near the end of a JSON answer without parsing all of it.

    Inside a JSON string its quotes would be escaped, so words of the model never match.
    """
    for found in reversed(_USAGE.findall(tail[-_TAIL:])):
        try:
            usage = usage_of({"usage": json.loads(found)})
        except ValueError:
            continue
        if usage is not None:
            return usage
    return None


def _end_of_last_event(data: bytes) -> int:
    unix, dos = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(unix + 2 if unix >= 0 else 0, dos + 4 if dos >= 0 else 0)


def _split(whole: bytes) -> list[bytes]:
    return re.findall(rb".*?(?:\r\n\r\n|\n\n)|.+\Z", whole, flags=re.DOTALL)
