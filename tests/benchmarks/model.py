"""`python -m tests.benchmarks.model PORT`: a simulated model for the gateway's bench, as lean as can be.

It takes no time but the pauses that a request asks of it: the less the model and the callers use of the machine, the
more of what is measured is the gateway. As vLLM it says usage in every event to who asks for it, as gateways do.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final, cast

import httptools
import uvloop

from tests.gateway_lab import event_of

WORD: Final = {
    "id": "c",
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "word "}}],
}
ANSWER: Final = {
    "id": "c",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 64}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 20, "completion_tokens": 64, "total_tokens": 84},
}


def _whole(content: Any) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


_ANSWER: Final = _whole(ANSWER)
_MODELS: Final = _whole({"object": "list", "data": []})
_STREAM: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT: Final = _chunk(event_of(**WORD))
_COUNTED: Final = event_of(**WORD)[:-3] + b', "usage": {"prompt_tokens": 20, "completion_tokens": %d}}\n\n'
_LAST: Final = b'data: {"id": "c", "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": %d}}\n\n'
_END: Final = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Model(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._counts = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            self._transport.write(_MODELS)
            return
        asked, self._body = json.loads(self._body), b""
        pause_s = asked["pause_ms"] / 1000
        if asked.get("stream"):
            self._transport.write(_STREAM)
            self._counts = bool(asked.get("stream_options"))
            self._later(pause_s, self._event, 0, asked["tokens"], pause_s)
        else:
            self._later(pause_s, self._transport.write, _ANSWER)

    def _event(self, done: int, of: int, pause_s: float) -> None:
        while done < of:
            done += 1
            self._transport.write(_chunk(_COUNTED % done) if self._counts else _EVENT)
            if pause_s and done < of:
                self._loop.call_later(pause_s, self._event, done, of, pause_s)
                return
        self._transport.write((_chunk(_LAST % done) if self._counts else b"") + _END)

    def _later(self, pause_s: float, what: Any, *given: Any) -> None:
        if pause_s:
            self._loop.call_later(pause_s, what, *given)
        else:
            what(*given)


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
