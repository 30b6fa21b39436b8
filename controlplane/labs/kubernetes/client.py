"""The lab's own small client of a kube-apiserver: JSON in, JSON out.

The lab imports neither the driver nor the official client, so that what it builds and plays is not made by the code
under test. Loopback only, one CA, one token or client certificate.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import httpx

from controlplane.labs.kubernetes.errors import LabError

Object = dict[str, Any]
MANAGER: Final = "lab"
_PATCH_TYPES: Final = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


class Refused(LabError):
    """The API server answered with an error; `status` is its HTTP status, `reason` its own word."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        """Keep what the server said."""
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Api:
    """One connection pool to one cluster. Safe to use from several threads."""

    def __init__(self, url: str, *, ca: Path, token: str = "", certificate: tuple[Path, Path] | None = None) -> None:
        """Connect to nothing yet; `certificate` is (certificate, key)."""
        context = ssl.create_default_context(cafile=str(ca))
        if certificate is not None:
            context.load_cert_chain(*map(str, certificate))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url
        self._http = httpx.Client(base_url=url, headers=headers, verify=context, timeout=30, trust_env=False)
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pool."""
        self.close()

    def close(self) -> None:
        """Close the pool."""
        self._http.close()

    # --- paths ------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """Send one request and return its JSON. Raises `Refused` for every status from 400 on."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type} if content is not None else {}
        answer = self._http.request(method, path, content=content, params=params, headers=headers)
        if answer.status_code >= 400:
            raise _refused(answer)
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.text

    def path(self, api: str, kind: str, name: str = "", namespace: str = "", subresource: str = "") -> str:
        """Return the path of a kind's objects (`api` like `apps/v1`). Raises `LabError` for a kind not served."""
        plural, namespaced = self._kind(api, kind)
        parts = [f"/api/{api}" if "/" not in api else f"/apis/{api}"]
        if namespaced and namespace:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (plural, name, subresource) if part]
        return "/".join(parts)

    def _kind(self, api: str, kind: str) -> tuple[str, bool]:
        if (api, kind) not in self._kinds:
            listing = self.request("GET", f"/api/{api}" if "/" not in api else f"/apis/{api}")
            for entry in listing["resources"]:
                if "/" not in entry["name"]:
                    self._kinds[api, entry["kind"]] = (entry["name"], entry["namespaced"])
        try:
            return self._kinds[api, kind]
        except KeyError:
            raise LabError(f"this cluster serves no {kind} in {api}") from None

    # --- objects ----------------------------------------------------------------------------------

    def get(self, api: str, kind: str, name: str, namespace: str = "") -> Object | None:
        """Return one object, None when there is none."""
        try:
            found: Object = self.request("GET", self.path(api, kind, name, namespace))
        except Refused as refused:
            if refused.status == 404:
                return None
            raise
        return found

    def list(self, api: str, kind: str, *, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """Return all objects of a kind, each with its apiVersion and kind."""
        params = {key: text for key, text in (("labelSelector", labels), ("fieldSelector", fields)) if text}
        found = self.request("GET", self.path(api, kind, namespace=namespace), params=params)
        return [{"apiVersion": api, "kind": kind, **item} for item in found["items"]]

    def apply(self, obj: Object, *, subresource: str = "") -> Object:
        """Apply an object server-side as manager `lab`, by force."""
        meta = obj["metadata"]
        path = self.path(obj["apiVersion"], obj["kind"], meta["name"], meta.get("namespace", ""), subresource)
        params = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        done: Object = self.request("PATCH", path, body=obj, params=params, content_type=_PATCH_TYPES["apply"])
        return done

    def create(self, obj: Object, *, name: str = "", subresource: str = "") -> Object:
        """Create an object, or post to a subresource of `name`."""
        path = self.path(obj["apiVersion"], obj["kind"], name, obj["metadata"].get("namespace", ""), subresource)
        done: Object = self.request("POST", path, body=obj, params={"fieldValidation": "Strict"})
        return done

    def patch(
        self,
        api: str,
        kind: str,
        name: str,
        body: object,
        *,
        namespace: str = "",
        how: str = "merge",
        subresource: str = "",
    ) -> Object:
        """Patch an object; `how` is merge, strategic or json."""
        path = self.path(api, kind, name, namespace, subresource)
        done: Object = self.request("PATCH", path, body=body, content_type=_PATCH_TYPES[how])
        return done

    def delete(self, api: str, kind: str, name: str, namespace: str = "", *, grace_s: int | None = None) -> bool:
        """Ask for deletion; false when there was nothing."""
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            self.request("DELETE", self.path(api, kind, name, namespace), body=body)
        except Refused as refused:
            if refused.status == 404:
                return False
            raise
        return True

    def watch(
        self, api: str, kind: str, *, namespace: str = "", labels: str = "", since: str = "", timeout_s: int = 300
    ) -> Iterator[tuple[str, Object]]:
        """Yield (ADDED, MODIFIED, DELETED, BOOKMARK or ERROR; object) until the server ends the watch.

        Without `since` it begins with an ADDED for each object that is there.
        """
        params = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(timeout_s)}
        params |= {key: text for key, text in (("labelSelector", labels), ("resourceVersion", since)) if text}
        path = self.path(api, kind, namespace=namespace)
        with self._http.stream("GET", path, params=params, timeout=httpx.Timeout(30, read=timeout_s + 30)) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise _refused(answer)
            for line in answer.iter_lines():
                event = json.loads(line)
                yield event["type"], event["object"]


def _refused(answer: httpx.Response) -> Refused:
    said: Any = None
    with contextlib.suppress(ValueError):
        said = answer.json()
    if not isinstance(said, dict):
        said = {}
    return Refused(answer.status_code, said.get("reason", ""), said.get("message", answer.text[:500]))
