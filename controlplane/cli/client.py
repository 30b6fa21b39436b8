"""HTTP to the control plane: problems become errors, lost answers are repeated where that is safe.

Every POST carries an `Idempotency-Key`, the same for all its tries, so repeating it does nothing twice.
PUT, PATCH and DELETE are repeated only where the first try surely did nothing (no connection, 503, 429).
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import httpx

from controlplane.cli.failures import ApiProblem, Unreachable

Json = dict[str, Any]
API: Final = "/api/v1"
TRIES: Final = 6
LONGEST_PAUSE_S: Final = 20.0
TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
LONG_WAIT_S: Final = 60
"""Longest `?wait=` the API takes."""
PAGE: Final = 200
_TRY_AGAIN: Final = frozenset({429, 502, 503, 504})
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer: its JSON (None for 204) and what its headers say."""

    body: Any
    status: int
    etag: str = ""
    replayed: bool = False


def pause(seconds: float) -> None:
    """Wait; the one place of the command line that does."""
    threading.Event().wait(seconds)


@dataclass(slots=True)
class Client:
    """One caller of one control plane."""

    url: str
    token: str = field(default="", repr=False)
    transport: httpx.BaseTransport | None = None
    """For tests: what answers instead of the network."""
    pause: Callable[[float], None] = pause
    agent: str = "tenantry-cli"
    _http: httpx.Client = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the connection pool; nothing is sent yet."""
        headers = {"User-Agent": self.agent, "Accept": "application/json, application/problem+json, text/event-stream"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        self._http = httpx.Client(
            base_url=self.url + API,
            headers=headers,
            timeout=TIMEOUT,
            transport=self.transport,
            trust_env=not _is_loopback(self.url),
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Json:
        """Read one object or page. Raises `ApiProblem`, `Unreachable`."""
        body = self.call("GET", path, params=params).body
        return body if isinstance(body, dict) else {}

    def find(self, path: str, **params: Any) -> Json | None:
        """Read one object; None for one that is not there (or not to be seen)."""
        try:
            return self.get(path, **params)
        except ApiProblem as problem:
            if problem.status == 404:
                return None
            raise

    def items(self, path: str, *, most: int = 0, **params: Any) -> Iterator[Json]:
        """Yield the items of a list, page after page, at most `most` (0: all)."""
        count, cursor = 0, ""
        limit = min(PAGE, most) if most else PAGE
        while True:
            page = self.get(path, **params, limit=limit, **({"cursor": cursor} if cursor else {}))
            for item in page.get("items", []):
                yield item
                count += 1
                if most and count >= most:
                    return
            cursor = page.get("next") or ""
            if not cursor:
                return

    def post(self, path: str, body: Any = None, *, key: str = "", **params: Any) -> Answer:
        """Create or act. `key` is the idempotency key; a fresh one by default."""
        return self.call("POST", path, body=body, params=params, headers={"Idempotency-Key": key or str(uuid4())})

    def put(self, path: str, body: Any, *, version: int | None = None, **params: Any) -> Answer:
        """Create or replace by name; `version` is the one that was read."""
        return self.call("PUT", path, body=body, params=params, headers=_if_match(version))

    def patch(self, path: str, body: Any, *, version: int | None = None, **params: Any) -> Answer:
        """Change a part."""
        return self.call("PATCH", path, body=body, params=params, headers=_if_match(version))

    def delete(self, path: str, *, version: int | None = None, **params: Any) -> Answer:
        """Ask for an object to go."""
        return self.call("DELETE", path, params=params, headers=_if_match(version))

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request, repeated where that is safe. Raises `ApiProblem`, `Unreachable`."""
        safe = method == "GET" or (method == "POST" and "Idempotency-Key" in (headers or {}))
        given = {name: _word(value) for name, value in (params or {}).items() if value not in (None, "", [])}
        wait_s = float((params or {}).get("wait") or 0)
        content = None if body is None else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"} if content is not None else {}
        for number in range(1, TRIES + 1):
            try:
                response = self._http.request(
                    method,
                    path,
                    params=given,
                    content=content,
                    headers={**kind, **(headers or {})},
                    timeout=httpx.Timeout(30.0 + wait_s, connect=5.0),
                )
            except httpx.TransportError as error:
                if number == TRIES or not (safe or isinstance(error, _NEVER_SENT)):
                    raise self._lost(method, error, sent=not isinstance(error, _NEVER_SENT)) from error
                self.pause(backoff_s(number))
                continue
            if number < TRIES and _asks_again(response):
                self.pause(_retry_after(response) or backoff_s(number))
                continue
            return _answer(response)
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def events(self, path: str, *, after: str = "", **params: Any) -> Iterator[tuple[str, Json]]:
        """Yield (id, data) of a server-sent event stream until it ends; `after` is the last id that was heard.

        Raises `ApiProblem`, `Unreachable`.
        """
        given = {name: _word(value) for name, value in params.items() if value not in (None, "")}
        try:
            with self._http.stream(
                "GET",
                path,
                params=given,
                headers={"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})},
                timeout=httpx.Timeout(60.0, connect=5.0),
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    _answer(response)
                yield from parse_stream(response.iter_lines())
        except httpx.TransportError as error:
            raise self._lost("GET", error, sent=False) from error

    def _lost(self, method: str, error: httpx.TransportError, *, sent: bool) -> Unreachable:
        said = str(error) or type(error).__name__
        if sent and method != "GET":
            return Unreachable(
                f"{self.url} gave no answer ({said}); whether the change was made is unknown: look before you repeat it"
            )
        return Unreachable(f"{self.url} cannot be reached ({said})", hint="tenantry up")


def parse_stream(lines: Iterator[str]) -> Iterator[tuple[str, Json]]:
    """Yield (id, data) of server-sent events; comments and events that are no JSON object are skipped."""
    identity = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                try:
                    body = json.loads("\n".join(data))
                except ValueError:
                    body = None
                if isinstance(body, dict):
                    yield identity, body
            data = []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            identity = value
        elif name == "data":
            data.append(value)


def backoff_s(number: int) -> float:
    """Return the pause after try `number` (from 1): doubling from 0.25 s, half of it by chance, at most 20 s."""
    full = min(LONGEST_PAUSE_S, 0.25 * float(2**number))
    return full / 2 + random.random() * full / 2  # noqa: S311 - spreads callers, guards nothing


def _asks_again(response: httpx.Response) -> bool:
    if response.status_code in _TRY_AGAIN:
        return True
    return response.status_code == 409 and _body(response).get("code") in {"idempotency-running", "busy"}


def _retry_after(response: httpx.Response) -> float:
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(response.headers.get("Retry-After", ""))))
    except ValueError:
        return 0.0


def _answer(response: httpx.Response) -> Answer:
    if response.status_code >= 400:
        raise ApiProblem(response.status_code, _body(response))
    body = response.json() if response.content else None
    return Answer(
        body,
        response.status_code,
        etag=response.headers.get("ETag", ""),
        replayed=response.headers.get("Idempotency-Replayed") == "true",
    )


def _body(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        return {"title": f"HTTP {response.status_code}", "detail": response.text[:300]}
    return body if isinstance(body, dict) else {}


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}


def _word(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def _is_loopback(url: str) -> bool:
    """Whether this is our own machine: a proxy of the environment has no business there."""
    return httpx.URL(url).host in {"127.0.0.1", "localhost", "::1"}
