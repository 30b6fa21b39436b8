"""The lab's own way to an apiserver: a handful of verbs over HTTPS, and list-then-watch. Not the driver's client.

Paths are the apiserver's (`/api/v1/pods`); `path_of` makes them. Every call has a deadline. The credential is the
lab's administrator's, from the cluster's folder.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import yaml

from provisioners.driver import Secret

Object = dict[str, Any]
CALL_S: Final = 10.0
WATCH_S: Final = 240
RETRY_S: Final = 0.5
_MERGE: Final = "application/merge-patch+json"
_GONE: Final = 410

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """The apiserver refused, or could not be reached (`status` 0)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Keep what it said."""
        super().__init__(f"{status} {reason}: {message}"[:500])
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Access:
    """Where a lab cluster answers, and as whom."""

    url: str
    token: Secret
    ca_file: Path | None

    @classmethod
    def of(cls, folder: Path) -> Access:
        """Read a cluster's `kubeconfig` (JSON or YAML, with a token)."""
        text = yaml.safe_load((folder / "kubeconfig").read_text())
        cluster = text["clusters"][0]["cluster"]
        ca_file = cluster.get("certificate-authority")
        token = text["users"][0]["user"]["token"]
        return cls(cluster["server"].rstrip("/"), Secret(token), Path(ca_file) if ca_file else None)


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a watched list; `kind` is ADDED, MODIFIED, DELETED, or LISTED with all objects at once."""

    kind: str
    objects: tuple[Object, ...]


def path_of(api: str, plural: str, *, namespace: str = "", name: str = "", sub: str = "") -> str:
    """Return the path of a resource: ("v1", "pods", namespace="a", name="b", sub="status")."""
    parts = ["/api/v1" if api == "v1" else f"/apis/{api}"]
    if namespace:
        parts.append(f"namespaces/{namespace}")
    parts += [part for part in (plural, name, sub) if part]
    return "/".join(parts)


class Api:
    """One apiserver. Use as an asynchronous context manager."""

    def __init__(self, access: Access) -> None:
        """Talk to `access`."""
        self._access = access
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections."""
        tls: ssl.SSLContext | bool = True
        if self._access.url.startswith("https"):
            tls = ssl.create_default_context(cafile=str(self._access.ca_file) if self._access.ca_file else None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0),
            headers={"Authorization": f"Bearer {self._access.token.reveal()}"},
            timeout=aiohttp.ClientTimeout(total=CALL_S),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close them."""
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str) -> Object | None:
        """Return an object, None for an exact 404. Raises `ApiError`."""
        try:
            return await self._call("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> list[Object]:
        """Return all objects of a list. Raises `ApiError`."""
        return (await self._list(path, labels, fields))[0]

    async def create(self, path: str, body: Object) -> Object:
        """Create an object. Raises `ApiError`."""
        return await self._call("POST", path, body)

    async def put(self, path: str, body: Object) -> Object:
        """Replace an object. Raises `ApiError`."""
        return await self._call("PUT", path, body)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge into an object. Raises `ApiError`."""
        return await self._call("PATCH", path, body, content_type=_MERGE)

    async def delete(self, path: str, *, uid: str = "", grace_s: int | None = None) -> bool:
        """Delete an object, only the one with `uid` where given; whether there was one. Raises `ApiError`."""
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            await self._call("DELETE", path, body)
        except ApiError as error:
            if error.status in {404, 409}:
                return False
            raise
        return True

    async def watch(self, path: str, *, labels: str = "", fields: str = "") -> AsyncIterator[Event]:
        """Yield the whole list, then every change, for ever: lists anew after 410 and after a lost connection."""
        while True:
            try:
                objects, version = await self._list(path, labels, fields)
                yield Event("LISTED", tuple(objects))
                async for event in self._changes(path, labels, fields, version):
                    yield event
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                _log.info("watch of %s begins anew: %s", path, error)
                await asyncio.sleep(RETRY_S)

    async def _changes(self, path: str, labels: str, fields: str, version: str) -> AsyncIterator[Event]:
        while True:
            query = {
                **_selectors(labels, fields),
                "watch": "1",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_S),
            }
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CALL_S, sock_read=WATCH_S + 30)
            async with self._open("GET", path, query=query, timeout=timeout) as answer:
                await _check(answer)
                async for line in _lines(answer):
                    change = json.loads(line)
                    seen = change["object"]
                    if change["type"] == "ERROR":
                        raise ApiError(int(seen.get("code", 0)), seen.get("reason", ""), seen.get("message", ""))
                    version = seen["metadata"]["resourceVersion"]
                    if change["type"] != "BOOKMARK":
                        yield Event(change["type"], (seen,))

    async def _list(self, path: str, labels: str, fields: str) -> tuple[builtins.list[Object], str]:
        found: list[Object] = []
        token = ""
        while True:
            query = {**_selectors(labels, fields), "limit": "500", **({"continue": token} if token else {})}
            page = await self._call("GET", path, query=query)
            found += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                return found, page["metadata"]["resourceVersion"]

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        try:
            async with self._open(method, path, body, query=query, content_type=content_type) as answer:
                await _check(answer)
                found: Object = await answer.json(content_type=None)
                return found
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, type(error).__name__, str(error)) from error

    def _open(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            msg = "open the connection first: async with Api(…)"
            raise RuntimeError(msg)
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": content_type}
        return self._session.request(
            method,
            self._access.url + path,
            data=data,
            headers=headers,
            params=query,
            timeout=timeout or aiohttp.ClientTimeout(total=CALL_S),
            allow_redirects=False,
        )


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {
        **({"labelSelector": labels} if labels else {}),
        **({"fieldSelector": fields} if fields else {}),
    }


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    text = await answer.text()
    try:
        status = json.loads(text)
    except ValueError:
        status = {"message": text}
    raise ApiError(answer.status, str(status.get("reason", "")), str(status.get("message", "")))


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, however long: a watched object may be larger than aiohttp's line limit."""
    rest = b""
    async for piece in answer.content.iter_any():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
