"""Exit statuses, and how a failure becomes one: problem+json of the API, a lost connection, wrong words.

CliError                 message, hint (a ready-made next command), exit status
├─ UsageFault 2          the words of the person at the terminal
├─ Unreachable 1         no answer from the control plane
├─ TimedOut 7            what was waited for did not come
└─ ApiProblem            the API's answer; its status decides
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit statuses of `tenantry`; `docs/cli.md` lists them."""

    OK = 0
    ERROR = 1
    USAGE = 2
    FINDINGS = 3
    NOT_FOUND = 4
    FORBIDDEN = 5
    CONFLICT = 6
    TIMEOUT = 7


class CliError(Exception):
    """What ends a command: one sentence, perhaps a hint, an exit status."""

    exit_code: ExitCode = ExitCode.ERROR

    def __init__(self, message: str, *, hint: str = "") -> None:
        """`hint` is a command to try, or empty."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageFault(CliError):
    """The words make no sense together."""

    exit_code = ExitCode.USAGE


class Unreachable(CliError):
    """The control plane gave no answer; whether something was done is unknown."""


class TimedOut(CliError):
    """The time to wait is over."""

    exit_code = ExitCode.TIMEOUT


class ApiProblem(CliError):
    """A problem document of the API."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        """`body` is the RFC 9457 document, or as much of one as came."""
        self.status = status
        self.code = str(body.get("code") or "error")
        self.title = str(body.get("title") or f"HTTP {status}")
        self.detail = str(body.get("detail") or "")
        self.faults = [fault for fault in body.get("errors") or [] if isinstance(fault, Mapping)]
        self.data: Mapping[str, Any] = body.get("data") or {}
        self.request_id = str(body.get("request_id") or "")
        super().__init__(self.detail or self.title, hint=hint_for(status, self.code, self.data))
        self.exit_code = exit_code_of(status)


def exit_code_of(status: int) -> ExitCode:
    """Return the exit status that stands for an HTTP status of 400 and above."""
    if status in {400, 413, 415}:
        return ExitCode.USAGE
    if status == 404:
        return ExitCode.NOT_FOUND
    if status in {401, 403}:
        return ExitCode.FORBIDDEN
    if status in {402, 409, 412, 422, 428}:
        return ExitCode.CONFLICT
    return ExitCode.ERROR


def hint_for(status: int, code: str, data: Mapping[str, Any]) -> str:
    """Return the command that most likely helps, or ''."""
    if status == 401:
        return "tenantry login"
    if code == "quota-exceeded" and isinstance(data.get("request"), Mapping):
        return request_command(data["request"])
    return ""


def request_command(ready: Mapping[str, Any]) -> str:
    """Return the command that files a ready-made quota request, as the API's `data.request` describes it."""
    payload = ready.get("payload") or {}
    words = ["tenantry", "request", "quota", "--tenant", str(ready.get("tenant", ""))]
    words += _limits(payload.get("limits") or {})
    for ancestor, limits in (payload.get("ancestors") or {}).items():
        words += [f"--above={ancestor}:{dimension}={amount}" for dimension, amount in limits.items()]
    if payload.get("until"):
        words += ["--until", str(payload["until"])]
    return " ".join(words)


def _limits(limits: Mapping[str, Any]) -> Sequence[str]:
    return [f"{dimension}={amount}" for dimension, amount in limits.items()]
