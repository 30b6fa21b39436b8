"""What an answer of the API server means, mapped once: status and reason → the `DriverError` that decides what next.

Pure. The text of an error says what is the matter in our words; the server's own goes to `raw` for operators,
without values where the object is a Secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from provisioners.driver import Conflicting, DriverError, DriverRejected, TransientDriverError

_LONGEST_RAW: Final = 600
_SECRET_KINDS: Final = frozenset({"Secret", "TokenRequest"})
_CHECKED_BY_WEBHOOK: Final = frozenset({"VirtualMachine", "VirtualMachineClass"})
"""Kinds whose webhooks name the fields that they refuse."""
_FIELD: Final = re.compile(r"\b(?:spec|metadata)\.[A-Za-z0-9.\[\]]*[A-Za-z0-9\]]")
_WORDS: Final = {
    404: "what this {kind} belongs to is not there",
    409: "this {kind} has just been changed by somebody else",
    410: "the list grew too old while it was read",
    429: "the cluster is busy",
}


class QuotaExceeded(TransientDriverError):
    """The namespace's quota has no room for it at the moment."""


class AdmissionRefused(DriverRejected):
    """An admission policy refuses it; one whose parameters have just changed may not know them yet."""


class AdmissionUnready(TransientDriverError):
    """An admission policy does not find its parameters, or not yet."""


class AccessDenied(TransientDriverError):
    """Our account may not do this; an operator can mend it at any time."""


def error_of(status: int, body: bytes, headers: Mapping[str, str], *, kind: str) -> DriverError:
    """Return what an answer outside 2xx to a call about a `kind` means."""
    told = _status(body)
    message = str(told.get("message") or body[:_LONGEST_RAW].decode(errors="replace"))
    reason = str(told.get("reason") or "")
    raw = f"{status} {reason}" if kind in _SECRET_KINDS else f"{status} {reason}: {message}"[:_LONGEST_RAW]
    wait_s = _seconds(headers, told)
    if status in {400, 405, 406, 413, 415}:
        return DriverRejected(f"the cluster refuses this {kind} as it is written", raw=raw)
    if status == 403:
        return _forbidden(told, message, kind, raw)
    if status == 422:
        return DriverRejected(f"the cluster refuses this {kind}: {_causes(told, kind)}", raw=raw)
    if status == 401:
        return AccessDenied("the cluster does not accept our credential", raw=raw)
    if status == 409 and reason == "AlreadyExists" and not _is_terminating(told, message):
        return Conflicting(f"there is a {kind} of this name already", raw=raw)
    if status == 429 and "disruption budget" in message:
        return TransientDriverError("a disruption budget stands in the way", raw=raw, retry_after_s=wait_s)
    if status == 500 and "failed to create typed patch object" in message:  # how an apply with a wrong field is told
        return DriverRejected(f"the cluster refuses this {kind} as it is written", raw=raw)
    words = _WORDS.get(status, f"the cluster answered {status}")
    return TransientDriverError(words.format(kind=kind), raw=raw, retry_after_s=wait_s)


_NO_PARAMETERS: Final = (
    "the API server does not know the namespace's admission parameters yet; if that lasts, it has lost sight of them "
    "and has to be started anew (deploy/kubernetes/README.md)"
)


def _forbidden(told: Mapping[str, Any], message: str, kind: str, raw: str) -> DriverError:
    if _is_terminating(told, message):
        return TransientDriverError("the namespace is being removed", raw=raw)
    if "exceeded quota" in message:
        return QuotaExceeded("the namespace's quota has no room for it", raw=raw)
    if " usage per " in message:
        return DriverRejected(f"the limits of the namespace refuse this {kind}", raw=raw)
    if "violates PodSecurity" in message:
        return DriverRejected("Pod Security of the namespace refuses it", raw=raw)
    if "no params found" in message:
        return AdmissionUnready(_NO_PARAMETERS, raw=raw)
    if "denied request" in message or "is forbidden: ValidatingAdmissionPolicy" in message:
        return AdmissionRefused(f"an admission policy of the cluster refuses this {kind}", raw=raw)
    if "denied the request" in message and kind in _CHECKED_BY_WEBHOOK:
        fields = ", ".join(dict.fromkeys(_FIELD.findall(message))) or "it breaks a rule"
        return AdmissionRefused(f"the cluster refuses this {kind}: {fields}", raw=raw)
    return AccessDenied(f"our account may not do this with a {kind}", raw=raw)


def _is_terminating(told: Mapping[str, Any], message: str) -> bool:
    causes = (told.get("details") or {}).get("causes") or []
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes) or "being terminated" in message


def _causes(told: Mapping[str, Any], kind: str) -> str:
    """Return which fields are wrong; what is wrong with them only where it holds no secret."""
    causes = (told.get("details") or {}).get("causes") or []
    fields = [str(cause.get("field") or "") for cause in causes if cause.get("field")]
    if not fields:
        return "it breaks a rule" if kind in _SECRET_KINDS else str(told.get("message") or "it breaks a rule")[:300]
    return ", ".join(dict.fromkeys(fields))


def is_this_missing(body: bytes, name: str) -> bool:
    """Whether a 404 is about exactly the object `name`, and not about its API or a path."""
    told = _status(body)
    details = told.get("details") or {}
    return told.get("reason") == "NotFound" and details.get("name") == name


def is_other_uid(body: bytes) -> bool:
    """Whether a 409 says that another object has the name by now."""
    told = _status(body)
    message = str(told.get("message")).lower()
    return told.get("reason") == "Conflict" and "precondition" in message and "uid" in message


def is_gone_list(body: bytes) -> bool:
    """Whether a 410 says that a list's pages are too old."""
    return _status(body).get("reason") in {"Expired", "Gone"}


def _seconds(headers: Mapping[str, str], told: Mapping[str, Any]) -> float | None:
    for value in (headers.get("Retry-After"), (told.get("details") or {}).get("retryAfterSeconds")):
        try:
            if value is not None and float(value) >= 0:
                return float(value)
        except (TypeError, ValueError):
            continue
    return None


def _status(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) and told.get("kind") == "Status" else {}
