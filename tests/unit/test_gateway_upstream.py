"""The last hop's client against raw servers: framing, keeping connections, what breaks, what is too much."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self

import pytest
import uvloop

from provisioners.gateway.connection import BrokeOff, Connection, NoHttp, Silent, Unreachable
from provisioners.gateway.upstream import Ask, Upstream, head_of, origin_of

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Backend:
    """A server of bytes."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._one, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def __aexit__(self, *error: object) -> None:
        self._server.close()


async def request(reader: asyncio.StreamReader) -> bytes:
    """Read one request: head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
    return head + await reader.readexactly(length)


def saying(*answers: bytes) -> Serve:
    """Say one after the other on each connection, and end it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await request(reader)
            writer.write(answer)
            await writer.drain()

    return serve


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def go(coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(coroutine, 30))

    return go


def client(**limits: float) -> Upstream:
    return Upstream(ssl.create_default_context(), **limits)


async def asked(upstream: Upstream, backend: Backend, body: bytes = b"{}") -> Connection:
    return await upstream.answer(Ask(backend.url, "chat/completions", [("X-One", "1")], body))


async def whole(upstream: Upstream, backend: Backend, body: bytes = b"{}") -> bytes:
    answer = await asked(upstream, backend, body)
    try:
        return await answer.read()
    finally:
        answer.close()


def test_a_request_is_written_as_it_should_be_and_its_connection_used_again(run: Any) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await request(reader))
            writer.write(OK)

    async def go() -> None:
        async with Backend(serve) as backend:
            upstream = client()
            assert [await whole(upstream, backend, b'{"a":1}') for _ in range(3)] == [b"ok"] * 3
            host = backend.url[7:-3].encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: " + host + b"\r\nContent-Length: 7\r\nX-One: 1\r\n\r\n"
            assert (seen, backend.connections) == ([head + b'{"a":1}'] * 3, 1)
            upstream.close()

    run(go())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nabcde",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde"
        ),
    ],
    ids=["chunks", "until-it-ends", "http-1.0", "after-1xx"],
)
def test_an_answer_is_read_however_it_is_framed(answer: bytes, run: Any) -> None:
    async def go() -> None:
        async with Backend(saying(answer)) as backend:
            found = await asked(client(), backend)
            assert (found.status, await found.read()) == (200, b"abcde")
            assert b"Link" not in dict(found.headers)
            found.close()

    run(go())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", Unreachable),
        (b"HTTP/1.1 200 OK\r\nConte", Unreachable),
        (b"SSH-2.0-OpenSSH\r\n", NoHttp),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", NoHttp),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, NoHttp),
        (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 20_000, NoHttp),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", BrokeOff),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", BrokeOff),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n", BrokeOff),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 70_000, BrokeOff),
    ],
)
def test_what_is_no_whole_answer_is_none(answer: bytes, error: type[Exception], run: Any) -> None:
    async def go() -> None:
        async with Backend(saying(answer)) as backend:
            upstream = client()
            with pytest.raises(error):
                await whole(upstream, backend)
            assert not any(upstream._idle.values())
            upstream.close()

    run(go())


def test_a_kept_connection_that_the_backend_ended_costs_no_request(run: Any) -> None:
    async def go() -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(OK)
            if not ended.is_set():
                await request(reader)  # taken, and ended without a word
                ended.set()

        async with Backend(serve) as backend:
            upstream = client()
            assert await whole(upstream, backend) == b"ok"
            assert await whole(upstream, backend) == b"ok"
            assert (ended.is_set(), backend.connections) == (True, 2)
            upstream.close()

    run(go())


def test_what_comes_beyond_an_answer_is_nobodys(run: Any) -> None:
    async def go() -> None:
        surplus = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: 1\r\n\r\nevil"
        async with Backend(saying(surplus, surplus)) as backend:
            upstream = client()
            for _ in range(2):
                answer = await asked(upstream, backend)
                assert (await answer.read(), answer.headers) == (b"ok", [(b"Content-Length", b"2")])
                answer.close()
            assert backend.connections == 2
            upstream.close()

    run(go())


def test_a_backend_that_says_nothing_is_given_up(run: Any) -> None:
    async def go() -> None:
        for said in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = said) -> None:
                await request(reader)
                writer.write(said)
                await reader.read()

            async with Backend(serve) as backend:
                with pytest.raises(Silent):
                    await whole(client(silence_s=0.1), backend)

    run(go())


def test_waiting_may_be_cancelled_and_taken_up_again(run: Any) -> None:
    async def go() -> None:
        goes_on = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            await goes_on.wait()
            writer.write(OK)

        async with Backend(serve) as backend:
            upstream = client()
            ask = Ask(backend.url, "x", [], b"{}")
            waiting = asyncio.create_task(upstream.answer(ask))
            while ask.connection is None:  # noqa: ASYNC110 - an attribute, set within a few turns of the loop
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            goes_on.set()
            await ask.connection.begun()
            assert await ask.connection.read() == b"ok"
            ask.connection.close()
            upstream.close()

    run(go())


def test_a_backend_is_not_read_faster_than_its_answer_is_taken(run: Any) -> None:
    size = 64 << 20

    async def go() -> None:
        written = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await request(reader)
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
            while written < size:
                writer.write(bytes(1 << 20))
                written += 1 << 20
                await writer.drain()

        async with Backend(serve) as backend:
            upstream = client()
            answer = await asked(upstream, backend)
            while not answer._paused:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            for _ in range(1000):  # everything that can move has moved
                await asyncio.sleep(0)
            assert (written < size, answer._buffered < 2 << 20) == (True, True)
            taken = 0
            while chunk := await answer.chunk():
                taken += len(chunk)
            assert taken == size
            answer.close()
            upstream.close()

    run(go())


def test_a_large_body_is_sent_in_pieces_and_not_beyond_an_early_answer(run: Any) -> None:
    body = bytes(range(256)) * (16 << 12)  # 16 MiB

    async def go() -> None:
        seen: list[int] = []

        async def takes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found = await request(reader)
            seen.append(len(found.partition(b"\r\n\r\n")[2]))
            writer.write(OK)

        async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
            await writer.drain()
            await asyncio.Event().wait()

        async with Backend(takes) as backend:
            assert await whole(client(), backend, body) == b"ok"
            assert seen == [len(body)]
        async with Backend(refuses) as backend:
            upstream = client()
            answer = await asked(upstream, backend, body)
            assert (answer.status, await answer.read()) == (413, b"no")
            answer.close()
            assert answer.lost  # the rest of the body was not sent: nothing else may be sent there
            upstream.close()

    run(go())


def test_idle_connections_are_closed_before_the_backend_does(run: Any) -> None:
    async def go() -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await request(reader)
            writer.write(OK)
            assert await reader.read() == b""
            ended.set()

        async with Backend(serve) as backend:
            assert await whole(client(keepalive_s=0.05), backend) == b"ok"
            await ended.wait()

    run(go())


def test_nobody_listens_or_the_address_is_none(run: Any) -> None:
    async def go() -> None:
        async with Backend(saying()) as backend:
            url = backend.url
        for bad in (url, "ftp://a/v1", "http:///v1", "http://a b/v1", "https://127.0.0.1:99999/v1"):
            with pytest.raises(Unreachable):
                await client().answer(Ask(bad, "x", [], b""))

    run(go())


def test_no_value_of_a_header_can_become_another_header() -> None:
    origin = origin_of("https://a.example/v1")

    assert head_of(origin, "x", [("A", "é")], b"abc") == (
        "POST /v1/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nA: é\r\n\r\n".encode()
    )
    for value in ("a\r\nB: c", "a\nb", "a\0"):
        with pytest.raises(ValueError, match="A"):
            head_of(origin, "x", [("A", value)], b"abc")
