"""The REST side of a vCenter (vAPI), for what its SOAP side has not: content libraries and tags.

Paths are those of `/rest/com/vmware`, which vCenter 7 to 9 serve. A session of its own, made at the first call, made
anew when vCenter has forgotten it, ended by `close`. Certificates are checked as on the SOAP side, and every failure is
a `DriverError`.

Invariants: a call is sent again only where vCenter said that it did not carry it out; no answer is waited for without
a deadline; nothing of an answer is shown but what vCenter gives as its message.
"""

from __future__ import annotations

import contextlib
import http
import ssl
import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx

from provisioners.driver import DriverError, NotSupported
from provisioners.vsphere.client import context_of
from provisioners.vsphere.failures import TRANSPORT, TRUST, WRONG_LOGIN, error_of
from provisioners.vsphere.settings import Settings

ROOT: Final = "/rest/com/vmware"
SESSION: Final = "/cis/session"
HEADER: Final = "vmware-api-session-id"
_LONGEST_TEXT: Final = 300
_STATUSES: Final = frozenset(map(int, http.HTTPStatus))
_FAULTS: Final = {
    "already_exists": "AlreadyExists",
    "resource_in_use": "ResourceInUse",
    "not_found": "ManagedObjectNotFound",
    "unauthorized": "NoPermission",
    "unauthenticated": "NotAuthenticated",
    "service_unavailable": "SystemError",
    "timed_out": "Timedout",
    "not_allowed_in_current_state": "InvalidState",
    "resource_busy": "ResourceInUse",
    "resource_inaccessible": "HostCommunication",
    "unable_to_allocate_resource": "InsufficientResourcesFault",
    "concurrent_change": "ConcurrentAccess",
    "canceled": "RequestCanceled",
}
"""Last word of an error's type → the fault of the SOAP side that means the same."""


class RestClient:
    """A REST session in one vCenter; threads may share it, processes may not."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is connected yet."""
        self._settings = settings
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._session = ""

    def get(self, path: str, **query: str) -> Any:
        """Return the value at a path. Raises `DriverError`s only."""
        return self._call("GET", path, query, None, None)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, action: str = "", deadline_s: float | None = None
    ) -> Any:
        """Return the value that a call answers with. `LookFirst` says that nobody knows whether it was carried out."""
        return self._call("POST", path, {"~action": action} if action else {}, body, deadline_s)

    def delete(self, path: str) -> None:
        """Delete what is at a path."""
        self._call("DELETE", path, {}, None, None)

    def close(self) -> None:
        """Log out; vCenter counts sessions, and these with those of the SOAP side."""
        with self._lock:
            client, session, self._http, self._session = self._http, self._session, None, ""
        if client is not None:
            with contextlib.suppress(httpx.HTTPError):
                if session:
                    client.delete(ROOT + SESSION, headers={HEADER: session})
            client.close()

    # --- calling ----------------------------------------------------------------------------------

    def _call(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, deadline_s: float | None
    ) -> Any:
        for last in (False, True):
            client, session = self._connected()
            timeout = httpx.Timeout(deadline_s or self._settings.call_deadline_s)
            try:
                answer = client.request(
                    method, ROOT + path, params=query, json=body, headers={HEADER: session}, timeout=timeout
                )
            except httpx.HTTPError as error:
                raise _broken(error) from None
            if answer.status_code == http.HTTPStatus.UNAUTHORIZED and not last:
                self._forget(session)  # not carried out: once more with a new session
                continue
            return _value(answer)
        raise AssertionError  # the last try returns or raises

    def _connected(self) -> tuple[httpx.Client, str]:
        with self._lock:
            if self._http is None:
                self._http = self._client()
            if not self._session:
                self._session = self._login(self._http)
            return self._http, self._session

    def _client(self) -> httpx.Client:
        try:
            context = context_of(self._settings)
        except ssl.SSLCertVerificationError as error:
            raise error_of(TRUST, error.verify_message) from None
        except OSError as error:
            raise error_of(TRANSPORT, f"{type(error).__name__}: {error}") from None
        # no proxy and no .netrc of the machine: the password goes to the vCenter alone
        return httpx.Client(base_url=self._settings.url, verify=context, trust_env=False)

    def _login(self, client: httpx.Client) -> str:
        settings = self._settings
        try:
            answer = client.post(
                ROOT + SESSION,
                auth=(settings.user, settings.password.reveal()),
                timeout=httpx.Timeout(settings.call_deadline_s),
            )
        except httpx.HTTPError as error:
            raise _broken(error) from None
        if answer.status_code == http.HTTPStatus.UNAUTHORIZED:
            raise error_of(WRONG_LOGIN)
        if answer.status_code == http.HTTPStatus.NOT_FOUND:
            raise NotSupported("this vCenter has no REST side (/rest), which content libraries and tags need")
        found = _value(answer)
        if not isinstance(found, str) or not found:
            raise error_of(TRANSPORT, "an answer to the login that cannot be read")
        return found

    def _forget(self, session: str) -> None:
        with self._lock:
            if self._session == session:
                self._session = ""
                if self._http is not None:
                    self._http.cookies.clear()  # vCenter goes by them too


def _value(answer: httpx.Response) -> Any:
    """Return the value of an answer. Raises `DriverError` for a refusal."""
    try:
        told = answer.json() if answer.content else {}
    except ValueError:  # no JSON, or no text at all
        told = None
    if answer.is_success:
        if not isinstance(told, dict):
            raise error_of(TRANSPORT, "an answer that cannot be read")
        return told.get("value")
    raise _refused(answer.status_code, told if isinstance(told, dict) else {})


def _refused(status: int, told: Mapping[str, Any]) -> DriverError:
    kind = str(told.get("type") or told.get("error_type") or "").rpartition(".")[2].lower()
    text = message_of(told.get("value")) or kind or f"status {status}"
    if kind in _FAULTS:
        return error_of(_FAULTS[kind], text)
    by_status: dict[int, str] = {
        http.HTTPStatus.UNAUTHORIZED: "NotAuthenticated",
        http.HTTPStatus.FORBIDDEN: "NoPermission",
        http.HTTPStatus.NOT_FOUND: "ManagedObjectNotFound",
        http.HTTPStatus.TOO_MANY_REQUESTS: "SystemError",
    }
    # one that no standard knows comes from something in between, and says nothing about what was asked for
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR or status not in _STATUSES:
        return error_of("SystemError", text)
    return error_of(by_status.get(status, "InvalidArgument"), text)


def message_of(told: object) -> str:
    """Return the messages of an error for people, `""` where it has none."""
    messages = told.get("messages") if isinstance(told, Mapping) else None
    if not isinstance(messages, list):
        return ""
    texts = [str(one.get("default_message", "")) if isinstance(one, Mapping) else str(one) for one in messages]
    return "; ".join(text for text in texts if text)[:_LONGEST_TEXT]


def _broken(error: httpx.HTTPError) -> DriverError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return error_of(TRUST, cause.verify_message)
        cause = cause.__cause__ or cause.__context__
    return error_of(TRANSPORT, f"{type(error).__name__}: {error}")
