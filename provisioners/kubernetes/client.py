"""The only door to a kube-apiserver: dicts in, dicts out, a deadline on every call, every failure a `DriverError`.

The official client does connections, TLS and HTTP; its models stay outside, so an older or newer server's fields
pass through unchanged. One ApiClient per purpose keeps a slow list from starving a quick read. A rate limit per
cluster holds back before the server must: each process keeps to its share of it. What the server asks for by
Retry-After is honoured by all callers of a process.

Invariants: `None` from `get` is an exact 404 of that object and of nothing else; lists are read from the store,
never from a stale cache; deletes carry the uid of what was looked at; errors of Secrets quote no value.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client as official
from kubernetes.client.exceptions import ApiException

from provisioners.driver import FIELD_MANAGER, DriverError, NotSupported, TransientDriverError
from provisioners.kubernetes.failures import error_of, is_gone_list, is_other_uid, is_this_missing
from provisioners.kubernetes.objects import Object, name_of, namespace_of
from provisioners.kubernetes.settings import Settings

CONNECT_DEADLINE_S: Final = 5.0
LONGEST_HOLD_S: Final = 5.0
"""A call that the rate limit would hold back for longer fails as transient instead."""
_LEAST_PER_S: Final = 1.0
"""Of each process, however many share a limit: else every second call of a batch would be put off for ever."""
DISCOVERY_LIFE_S: Final = 300.0
DISCOVERY_AGAIN_S: Final = 5.0
"""How soon discovery is read again for something that was not there."""
_AGGREGATED: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
_BARE: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_BARE_ONE: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
SILENCE_S: Final = 90.0
"""A watch in which nothing comes for so long is broken: bookmarks come about once a minute."""
_PATCHES: Final = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listing:
    """All objects of one kind that a selector finds, at one version of the store."""

    items: tuple[Object, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind that the cluster serves."""

    api: str
    """`v1`, `apps/v1`."""
    kind: str
    plural: str
    namespaced: bool
    verbs: frozenset[str]
    subresources: tuple[tuple[str, frozenset[str]], ...] = ()
    """(`scale`, its verbs)."""

    @property
    def group(self) -> str:
        """The API group, `""` for the core."""
        return self.api.rpartition("/")[0]


class _Pace:
    """A token bucket shared by all threads that call one cluster."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._room = max(1.0, per_s)
        self._left = self._room
        self._at = time.monotonic()
        self._not_before = 0.0
        self._lock = threading.Lock()
        self._never = threading.Event()

    def take(self) -> None:
        """Wait for this call's turn. Raises `TransientDriverError` where that is too far off."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._room, self._left + (now - self._at) * self._per_s)
            self._at = now
            wait_s = max((1.0 - self._left) / self._per_s, self._not_before - now, 0.0)
            if wait_s > LONGEST_HOLD_S:
                msg = "the cluster is asked too much at the moment"
                raise TransientDriverError(msg, retry_after_s=wait_s)
            self._left -= 1.0
        if wait_s > 0:
            self._never.wait(wait_s)

    def hold(self, seconds: float) -> None:
        """Let nobody call for `seconds`: the server asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]


class Cluster:
    """One kube-apiserver. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Talk to the cluster of `settings`; connects on the first call. Raises `TransientDriverError` for bad PEM."""
        self.settings = settings
        self._host = settings.url
        self._headers = {"Accept": "application/json", "User-Agent": f"{FIELD_MANAGER}/1"}
        if settings.token is not None:
            self._headers["Authorization"] = f"Bearer {settings.token.reveal()}"
        tls = _tls(settings)
        read_s, list_s = settings.call_deadline_s, settings.list_deadline_s
        self._deadlines = {"read": read_s, "write": read_s, "list": list_s, "stream": 60.0, "watch": SILENCE_S}
        self._clients = {purpose: _api_client(settings, tls) for purpose in self._deadlines}
        # A share each, so that all processes together keep the limit without a word to one another.
        limits = {False: settings.reads_per_s, True: settings.writes_per_s}
        self._paces = {writes: _Pace(max(_LEAST_PER_S, per_s / settings.processes)) for writes, per_s in limits.items()}
        self._served: dict[tuple[str, str], Resource] = {}
        self._served_at = 0.0
        self._discovering = threading.Lock()
        self._version = ""
        self.reads = 0
        self.writes = 0
        """Calls made so far, for benches; dry runs count as writes."""

    def __repr__(self) -> str:
        """Show which cluster, and no credential."""
        return f"Cluster({self._host})"

    # --- reading ----------------------------------------------------------------------------------

    def get(self, api: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return one object, None only when the server says that exactly this one is not there."""
        answer = self._send("read", "GET", self._path(api, kind, namespace, name))
        if answer.status == 404 and is_this_missing(answer.body, name):
            return None
        return self._object(answer, kind)

    def list(
        self, api: str, kind: str, *, namespace: str = "", labels: str = "", fields: str = "", bare: bool = False
    ) -> Listing:
        """Return all objects of a kind that match, read in pages from the store; all namespaces without `namespace`.

        `bare`: their metadata only, so that the values of Secrets stay where they are. Raises `TransientDriverError`
        where the list cannot be read whole.
        """
        for attempt in (1, 2):
            path, accept = self._path(api, kind, namespace), _BARE if bare else ""
            listing = self._list_once(path, api, kind, labels, fields, accept=accept, last=attempt == 2)
            if listing is not None:
                return listing
        raise AssertionError  # the second attempt raises rather than return None

    def _list_once(
        self, path: str, api: str, kind: str, labels: str, fields: str, *, accept: str, last: bool
    ) -> Listing | None:
        """Return a whole list, None where its pages grew too old on the way and it is worth another try."""
        items: list[Object] = []
        query = {"limit": str(self.settings.page), "labelSelector": labels, "fieldSelector": fields}
        while True:
            answer = self._send("list", "GET", path, query, accept=accept)
            if answer.status == 410 and is_gone_list(answer.body) and not last:
                return None
            page = self._object(answer, kind)
            for item in page.get("items") or []:
                item["apiVersion"], item["kind"] = api, kind
                items.append(item)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return Listing(tuple(items), str(metadata.get("resourceVersion", "")))
            query["continue"] = str(metadata["continue"])

    def watch(
        self,
        api: str,
        kind: str,
        *,
        since: str,
        labels: str = "",
        timeout_s: int = 300,
        bare: bool = False,
        opened: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> Iterator[tuple[str, Object]]:
        """Yield (`ADDED` | `MODIFIED` | `DELETED` | `BOOKMARK`, object) from a list's version on, for `timeout_s`.

        `bare`: metadata only, as of `list`. `opened` is given what breaks the stream off from another thread.
        Raises `Expired` when that version is too old: list again.
        """
        query = {
            "watch": "true", "resourceVersion": since, "labelSelector": labels, "allowWatchBookmarks": "true",
            "timeoutSeconds": str(timeout_s),
        }  # fmt: skip
        lines = self._lines(
            "watch", self._path(api, kind), query, kind, accept=_BARE_ONE if bare else "", opened=opened
        )
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError as error:
                raise TransientDriverError("the cluster's answer was no JSON") from error
            found = event.get("object") or {}
            if event.get("type") == "ERROR":
                raise self._refused(int(found.get("code") or 500), json.dumps(found).encode(), {}, kind)
            found["apiVersion"], found["kind"] = api, kind
            yield str(event.get("type")), found

    def logs(self, pod: str, namespace: str, container: str, *, tail: int, since: str = "") -> Iterator[str]:
        """Yield the newest `tail` lines of a container, each with its RFC 3339 time in front."""
        path = f"{self._path('v1', 'Pod', namespace, pod)}/log"
        query = {"container": container, "tailLines": str(tail), "timestamps": "true", "sinceTime": since}
        for line in self._lines("stream", path, query, "Pod", read_s=self.settings.call_deadline_s):
            yield line.decode(errors="replace")

    def version(self) -> str:
        """Return the server's version: `v1.36.3`."""
        answer = self._object(self._send("read", "GET", "/version"), "version")
        self._version = str(answer.get("gitVersion", ""))
        return self._version

    # --- discovery --------------------------------------------------------------------------------

    def serves(self, api: str, kind: str = "") -> bool:
        """Whether the cluster serves a version of a group, and a kind in it; known for five minutes."""
        known = self._discovered()
        return (api, kind) in known if kind else any(resource.api == api for resource in known.values())

    def resources(self) -> tuple[Resource, ...]:
        """Return every kind that the cluster serves."""
        return tuple(self._discovered().values())

    def forget_discovery(self) -> None:
        """Read what is served anew on the next call."""
        self._served_at = 0.0

    def _discovered(self, *, at_most_s: float = DISCOVERY_LIFE_S) -> dict[tuple[str, str], Resource]:
        with self._discovering:
            if not self._served_at or time.monotonic() - self._served_at > at_most_s:
                found: dict[tuple[str, str], Resource] = {}
                for root in ("/api", "/apis"):
                    answer = self._send("list", "GET", root, accept=_AGGREGATED)
                    for resource in _resources(self._object(answer, "discovery")):
                        found.setdefault((resource.api, resource.kind), resource)
                self._served, self._served_at = found, time.monotonic()
            return self._served

    def _resource(self, api: str, kind: str) -> Resource:
        for at_most_s in (DISCOVERY_LIFE_S, DISCOVERY_AGAIN_S):
            found = self._discovered(at_most_s=at_most_s).get((api, kind))
            if found is not None:
                return found
        msg = f"the cluster does not serve {kind} of {api}"
        raise NotSupported(msg)

    def _path(self, api: str, kind: str, namespace: str = "", name: str = "") -> str:
        resource = self._resource(api, kind)
        path = f"/apis/{api}" if "/" in api else f"/api/{api}"
        if namespace and resource.namespaced:
            path += f"/namespaces/{quote(namespace, safe='')}"
        path += f"/{resource.plural}"
        return f"{path}/{quote(name, safe='')}" if name else path

    # --- writing ----------------------------------------------------------------------------------

    def apply(self, obj: Object, *, dry_run: bool = False) -> Object:
        """Apply the whole of our intent on one object, forcing the fields in it; unknown fields are refused.

        `metadata.uid` in `obj` makes it fail where another object has the name meanwhile.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = self._path(obj["apiVersion"], obj["kind"], namespace_of(obj), name_of(obj))
        answer = self._send("write", "PATCH", path, query, json_as_yaml(obj).encode(), "application/apply-patch+yaml")
        return self._object(answer, obj["kind"])

    def create(self, obj: Object, *, subresource: str = "", name: str = "", dry_run: bool = False) -> Object:
        """Create an object, a review, or through a subresource (`token`, `eviction`) of the object `name`."""
        kind = obj["kind"]
        if subresource:
            owner = {"eviction": "Pod", "token": "ServiceAccount", "binding": "Pod"}[subresource]
            path = f"{self._path('v1', owner, namespace_of(obj), name or name_of(obj))}/{subresource}"
        else:
            path = self._path(obj["apiVersion"], kind, namespace_of(obj))
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "dryRun": "All" if dry_run else ""}
        purpose = "read" if kind.endswith("Review") else "write"  # a review is a question, and changes nothing
        return self._object(self._send(purpose, "POST", path, query, obj, "application/json"), kind)

    def patch(
        self,
        api: str,
        kind: str,
        name: str,
        namespace: str,
        body: Any,
        *,
        type: Literal["merge", "json", "strategic"] = "merge",  # noqa: A002  what the server calls it
        subresource: str = "",
    ) -> Object:
        """Patch an object that is not ours to apply: a node's labels, the labels of a running pod."""
        path = self._path(api, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return self._object(self._send("write", "PATCH", path, query, body, _PATCHES[type]), kind)

    def delete(
        self,
        api: str,
        kind: str,
        name: str,
        namespace: str = "",
        *,
        uid: str,
        grace_s: int | None = None,
        propagation: str = "Foreground",
    ) -> bool:
        """Ask for the end of exactly the object with this uid; True: asked, gone, or another has its name by now."""
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid},
        }
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        answer = self._send("write", "DELETE", self._path(api, kind, namespace, name), None, body, "application/json")
        if answer.status == 404 and is_this_missing(answer.body, name):
            return True
        if answer.status == 409 and is_other_uid(answer.body):
            return True
        self._object(answer, kind)
        return True

    def close(self) -> None:
        """Give back the connections."""
        for api_client in self._clients.values():
            api_client.close()

    # --- one call ---------------------------------------------------------------------------------

    def _send(
        self,
        purpose: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "",
        accept: str = "",
    ) -> _Answer:
        """Make one call and read its answer whole, whatever its status. Raises `TransientDriverError`."""
        response = self._open(purpose, method, path, query, body, content, accept)
        try:
            data = response.read()
        except urllib3.exceptions.HTTPError as error:
            raise _lost(error, self.settings.trusted_by) from error
        finally:
            response.response.release_conn()
        answer = _Answer(int(response.status), bytes(data or b""), response.headers)
        if answer.status == 429:
            self._paces[purpose == "write"].hold(min(LONGEST_HOLD_S, _retry_after(answer.headers) or 1.0))
        return answer

    def _open(
        self,
        purpose: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any = None,
        content: str = "",
        accept: str = "",
        read_s: float | None = None,
    ) -> Any:
        self._paces[purpose == "write"].take()
        if purpose == "write":
            self.writes += 1
        else:
            self.reads += 1
        url = self._host + path
        asked = {name: value for name, value in (query or {}).items() if value}
        if asked:
            url += f"?{urlencode(asked)}"
        headers = dict(self._headers)
        if content:
            headers["Content-Type"] = content
        if accept:
            headers["Accept"] = accept
        deadline = (CONNECT_DEADLINE_S, read_s or self._deadlines[purpose])
        try:
            return self._clients[purpose].call_api(
                method, url, header_params=headers, body=body, _request_timeout=deadline
            )
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _lost(error, self.settings.trusted_by) from error

    def _lines(
        self,
        purpose: str,
        path: str,
        query: Mapping[str, str],
        kind: str,
        *,
        accept: str = "",
        read_s: float | None = None,
        opened: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> Iterator[bytes]:
        response = self._open(purpose, "GET", path, query, accept=accept, read_s=read_s)
        raw = response.response
        try:
            if response.status != 200:
                body = bytes(response.read() or b"")
                raise self._refused(int(response.status), body, response.headers, kind)
            opened(raw.shutdown)
            rest = b""
            for chunk in raw.stream(8192):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line for line in lines if line.strip())
            if rest.strip():
                yield rest
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # ValueError: broken off while it is read
            raise _lost(error, self.settings.trusted_by) from error
        finally:
            raw.close()

    def _refused(self, status: int, body: bytes, headers: Mapping[str, str], kind: str) -> DriverError:
        """Return what it means that a stream was refused, by its head or within it."""
        if status == 410:
            return Expired("the watch is too old; the list must be read again", raw=body.decode(errors="replace")[:300])
        return self._error(status, body, headers, kind)

    def _error(self, status: int, body: bytes, headers: Mapping[str, str], kind: str) -> DriverError:
        error = error_of(status, body, headers, kind=kind)
        if status == 401:
            error.field = f"secret.{self.settings.proven_by}"
        return error

    def _object(self, answer: _Answer, kind: str) -> Object:
        if not 200 <= answer.status < 300:
            raise self._error(answer.status, answer.body, answer.headers, kind)
        try:
            found = json.loads(answer.body)
        except ValueError as error:
            msg = "the cluster's answer was no JSON"
            raise TransientDriverError(msg) from error
        if not isinstance(found, dict):
            msg = "the cluster's answer was no object"
            raise TransientDriverError(msg)
        return found


class Expired(TransientDriverError):
    """What a watch started from is too old; read the list again."""


_ESCAPED: Final = re.compile(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


def json_as_yaml(value: object) -> str:
    """Return JSON that a YAML parser takes as well, which is what an apply's body is read by.

    YAML knows no surrogate pairs as escapes, so characters beyond the BMP stand as they are; all others beyond ASCII
    stay escaped, because YAML refuses some of them in plain (control characters, U+FEFF).
    """
    text = json.dumps(value)
    return _ESCAPED.sub(lambda found: str(json.loads(f'"{found[0]}"')) if len(found[0]) > 2 else found[0], text)


def _api_client(settings: Settings, tls: ssl.SSLContext) -> Any:
    configuration = official.Configuration(host=settings.url)
    configuration.retries = False  # ours alone: a silent retry would hide 429 and double the deadline
    configuration.proxy = None  # a cluster is reached as configured, not by the environment
    configuration.connection_pool_maxsize = 16  # as many watches as end at a time
    made = official.ApiClient(configuration)
    made.rest_client.pool_manager.connection_pool_kw["ssl_context"] = tls
    for name in ("ca_certs", "cert_file", "key_file", "ca_cert_data", "cert_reqs"):
        made.rest_client.pool_manager.connection_pool_kw.pop(name, None)
    if settings.tls_server_name:
        made.rest_client.pool_manager.connection_pool_kw["server_hostname"] = settings.tls_server_name
        made.rest_client.pool_manager.connection_pool_kw["assert_hostname"] = settings.tls_server_name
    return made


def _tls(settings: Settings) -> ssl.SSLContext:
    """Return what checks the server and, with a client certificate, proves us; its key lies on disk for a moment."""
    msg, field = "the certificate authority of the cluster cannot be read", settings.trusted_by
    try:
        context = ssl.create_default_context(cadata=settings.ca_pem or None)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the API server's own certificate has no key identifiers
        if settings.client_certificate is not None and settings.client_key is not None:
            msg, field = "the client certificate or its key cannot be read", f"secret.{settings.proven_by}"
            with tempfile.TemporaryDirectory(prefix="tenantry-") as folder:
                pair = Path(folder) / "pair.pem"
                pair.touch(mode=0o600)
                pair.write_text(f"{settings.client_certificate.reveal()}\n{settings.client_key.reveal()}\n")
                context.load_cert_chain(pair)
    except (ssl.SSLError, ValueError) as error:
        raise TransientDriverError(msg, raw=type(error).__name__, field=field) from error
    return context


def _lost(error: Exception, trusted_by: str) -> DriverError:
    """Return what a call without an answer means: its outcome is unknown."""
    raw = f"{type(error).__name__}: {error}"[:500]
    text = str(error)
    if isinstance(error, urllib3.exceptions.SSLError) or "SSLError" in text or "certificate" in text.lower():
        msg = "the cluster's certificate is not one that the given authority signed for its address"
        return TransientDriverError(msg, raw=raw, field=trusted_by)
    if isinstance(error, (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.NewConnectionError)):
        return TransientDriverError("the cluster cannot be reached", raw=raw)
    if isinstance(error, (urllib3.exceptions.TimeoutError, TimeoutError)):
        return TransientDriverError("the cluster gave no answer in time", raw=raw)
    return TransientDriverError("the connection to the cluster was lost", raw=raw)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None


def _resources(document: Object) -> Iterator[Resource]:
    """Yield the kinds of an aggregated discovery document, without versions whose answer is stale."""
    for group in document.get("items") or []:
        group_name = (group.get("metadata") or {}).get("name") or ""
        for version in group.get("versions") or []:
            api = f"{group_name}/{version['version']}" if group_name else version["version"]
            if version.get("freshness") == "Stale":
                _log.warning("an API of the cluster does not answer: %s", api)
                continue
            for found in version.get("resources") or []:
                kind = (found.get("responseKind") or {}).get("kind")
                if kind:
                    yield Resource(
                        api=api,
                        kind=kind,
                        plural=found["resource"],
                        namespaced=found.get("scope") == "Namespaced",
                        verbs=frozenset(found.get("verbs") or ()),
                        subresources=tuple(
                            (below["subresource"], frozenset(below.get("verbs") or ()))
                            for below in found.get("subresources") or ()
                        ),
                    )
