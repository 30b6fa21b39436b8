"""The one client for addresses that tenants choose: it reaches what it checked, once, for a bounded time.

The name is resolved once, every address of the answer is checked, and the connection goes to a checked address:
a name that resolves to something else a moment later changes nothing. No redirects, no proxies, no cookies, no
credentials; TLS is verified against the name; one deadline holds over the whole exchange, byte by byte.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final

import httpcore

from tenants.notifications.addresses import Network, Target, refusal

DEADLINE_S: Final = 10.0
"""From the first byte sent to the last one read."""
CONNECT_S: Final = 5.0
RESOLVE_S: Final = 5.0
MOST_READ: Final = 16_384
"""Of an answer's body; the rest is not wanted."""
MOST_BYTES: Final = 131_072
"""Of everything received, headers included."""
MOST_ADDRESSES: Final = 4

Resolver = Callable[[str, int], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one exchange."""

    outcome: str
    """`delivered`, `failed` or `blocked`."""
    reason: str = ""
    status: int | None = None
    latency_ms: int = 0
    retry_after_s: float | None = None
    """What the receiver asked for."""

    @property
    def gone(self) -> bool:
        """Whether the receiver says that it is gone for good."""
        return self.status == 410


class BlockedError(Exception):
    """An address that must not be reached."""


class TooLateError(httpcore.TimeoutException):
    """The deadline of the whole exchange is over."""


class TooLargeError(httpcore.ProtocolError):
    """More came than anybody needs."""


def system_resolver(host: str, port: int) -> list[str]:
    """Return the addresses of a name, as this machine resolves it. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def post(
    target: Target,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allowed: Sequence[Network] = (),
    resolver: Resolver = system_resolver,
    deadline_s: float = DEADLINE_S,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Send one POST and return what became of it; raises nothing."""
    began = time.monotonic()

    def answer(outcome: str, reason: str = "", status: int | None = None, after: float | None = None) -> Answer:
        return Answer(outcome, reason, status, int((time.monotonic() - began) * 1000), after)

    try:
        found = checked_addresses(target, allowed=allowed, resolver=resolver)
    except BlockedError as error:
        return answer("blocked", str(error))
    except (OSError, UnicodeError):
        return answer("failed", "The name does not resolve.")
    backend = _Pinned(found, time.monotonic() + deadline_s)
    try:
        status, after = _exchange(target, body, headers, backend, context or _context())
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        return answer("failed", _why(error, deadline_s))
    if 200 <= status < 300:
        return answer("delivered", status=status)
    if 300 <= status < 400:
        return answer("failed", f"It redirects ({status}); redirects are not followed.", status)
    return answer("failed", f"It answered {status}.", status, after)


def _why(error: Exception, deadline_s: float) -> str:
    match error:
        case httpcore.TimeoutException():
            return f"No complete answer within {deadline_s:g} s."
        case httpcore.ConnectError():
            tls = isinstance(error.__cause__, ssl.SSLError) or "ssl" in str(error).lower()
            return "The TLS connection is not trusted." if tls else "The connection was refused."
        case TooLargeError():
            return "The answer is too large."
        case _:
            return "The connection broke off before the answer was complete."


def checked_addresses(target: Target, *, allowed: Sequence[Network], resolver: Resolver) -> list[str]:
    """Return the addresses of a target, each of them allowed. Raises `BlockedError` for one that is not, `OSError`."""
    try:
        found: Iterable[str] = [str(ipaddress.ip_address(target.host))]
    except ValueError:
        try:
            found = _RESOLVERS.submit(resolver, target.host, target.port).result(timeout=RESOLVE_S)
        except FutureTimeoutError as error:
            raise OSError("no answer from the resolver") from error
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    if not addresses:
        raise OSError("no address")
    for address in addresses:
        if why := refusal(address, allowed):
            raise BlockedError(why)
        if target.scheme == "http" and not address.is_loopback:
            raise BlockedError("Only loopback is reached without TLS.")
    return [str(address) for address in addresses[:MOST_ADDRESSES]]


_RESOLVERS: Final = ThreadPoolExecutor(16, thread_name_prefix="resolve")
"""A resolver may hang longer than anybody waits for it."""


def _exchange(
    target: Target, body: bytes, headers: Mapping[str, str], backend: _Pinned, context: ssl.SSLContext
) -> tuple[int, float | None]:
    url = httpcore.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.target.encode()
    )
    sent = [
        *headers.items(), ("Host", target.authority), ("Content-Length", str(len(body))), ("Connection", "close")
    ]  # fmt: skip
    limits = {"connect": CONNECT_S, "read": DEADLINE_S, "write": DEADLINE_S, "pool": 1.0}
    with (
        httpcore.ConnectionPool(
            ssl_context=context, max_connections=1, retries=0, network_backend=backend, http1=True, http2=False
        ) as pool,
        pool.stream("POST", url, headers=sent, content=body, extensions={"timeout": limits}) as response,
    ):
        read = 0
        for chunk in response.iter_stream():
            read += len(chunk)
            if read > MOST_READ:
                break
        return response.status, _retry_after(response)


def _retry_after(response: httpcore.Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == b"retry-after" and response.status in {429, 503}:
            text = value.decode("latin-1").strip()
            if text.isascii() and text.isdigit():
                return float(text[:6])
            try:
                return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
            except (ValueError, TypeError, OverflowError):
                return None
    return None


@lru_cache(maxsize=1)
def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _Pinned(httpcore.NetworkBackend):
    """Connects to the checked addresses only, whatever name it is given, until the deadline."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline
        self._real = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        del host  # resolved and checked before
        for number, address in enumerate(self._addresses, start=1):
            try:
                stream = self._real.connect_tcp(
                    address, port, _left(self._deadline, timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number == len(self._addresses):
                    raise
                continue
            return _Bounded(stream, self._deadline)
        raise httpcore.ConnectError("no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        del path, timeout, socket_options
        raise httpcore.ConnectError("no sockets of this machine")

    def sleep(self, seconds: float) -> None:
        del seconds


class _Bounded(httpcore.NetworkStream):
    """A stream whose every read and write ends with the exchange's deadline, and that takes only so much."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float, taken: int = 0) -> None:
        self._stream = stream
        self._deadline = deadline
        self._taken = taken

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, _left(self._deadline, timeout))
        self._taken += len(data)
        if self._taken > MOST_BYTES:
            raise TooLargeError
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Bounded(
            self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline, timeout)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TooLateError
    return left if timeout is None else min(left, timeout)
