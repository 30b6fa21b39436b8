"""Answers that the gateway gives itself, in the shape that OpenAI clients read.

One place for status, code and words, so that what must look alike does: no key, a wrong, expired, revoked or
foreign one, and an unknown model are all `unauthorized()`, byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus

from provisioners.gateway.protocol import NANO, BudgetConfig, BudgetUnit


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is answered without a backend's answer."""

    status: HTTPStatus
    code: str
    message: str
    retry_after_s: float | None = None
    close: bool = False
    """Whether the connection ends: the request's body was not read to its end."""
    kind: str = ""
    """OpenAI's `type` of the error; "" for the one of its status."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Further headers."""
    details: Mapping[str, object] = field(default_factory=dict)
    """Further fields of the error, for programs."""

    def body(self) -> bytes:
        """Return the JSON body."""
        usual = "invalid_request_error" if self.status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
        error = {"message": self.message, "type": self.kind or usual, "param": None, "code": self.code, **self.details}
        return json.dumps({"error": error}).encode()

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to this refusal."""
        found = dict(self.more)
        if self.retry_after_s is not None:
            found["Retry-After"] = str(max(math.ceil(self.retry_after_s), 1))
        if self.status == HTTPStatus.UNAUTHORIZED:
            found["WWW-Authenticate"] = "Bearer"
        return found


def not_found() -> Refusal:
    """No such route; said before any look at a key."""
    return Refusal(HTTPStatus.NOT_FOUND, "not_found", "There is nothing at this address.", close=True)


def unauthorized(*, close: bool = False) -> Refusal:
    """Whatever is wrong with key or model: one answer."""
    return Refusal(
        HTTPStatus.UNAUTHORIZED,
        "invalid_api_key",
        "The key is missing or does not open this model. Check the key, its end, and the name of the model.",
        close=close,
    )


def bad_request(code: str, message: str, *, close: bool = False) -> Refusal:
    """The body cannot be used; `message` names the field."""
    return Refusal(HTTPStatus.BAD_REQUEST, code, message, close=close)


def too_large(limit: int) -> Refusal:
    """More bytes than `limit`."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"The body may have {limit} bytes at most.", close=True
    )


def unsupported(message: str) -> Refusal:
    """Not JSON, or packed."""
    return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message, close=True)


def scope_missing(scope: str) -> Refusal:
    """A good key that may not do this."""
    return Refusal(HTTPStatus.FORBIDDEN, "insufficient_scope", f"This key may not use {scope}.")


def not_open(state: str, reason: str) -> Refusal:
    """The endpoint takes no requests by someone's wish."""
    words = f"This endpoint is {state}" + (f": {reason}" if reason else ".")
    return Refusal(HTTPStatus.FORBIDDEN, state, words)


def rate_exceeded(whose: str, what: str, limit: int, *, retry_after_s: float, headers: Mapping[str, str]) -> Refusal:
    """More in a minute than the limit; `retry-after-ms` is what OpenAI's own clients look at first."""
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limit_exceeded",
        f"Rate limit reached for {whose}: {limit} {what} per minute. Try again in {retry_after_s:.1f} seconds.",
        retry_after_s=retry_after_s,
        kind=what,
        more={**headers, "retry-after-ms": str(math.ceil(retry_after_s * 1000))},
    )


def budget_exhausted(budget: BudgetConfig, *, needed: int, left: int, ends_at: datetime) -> Refusal:
    """What the request may use does not fit into what is left; `left` is not said where it is not the caller's."""
    whose = "this key" if budget.id.startswith("key:") else "this tenant"
    shown = budget.amount is not None
    again = ends_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    words = f"The budget of {whose} has no room for this request, which may use up to {_said(budget, needed)}"
    words += f": {_said(budget, left)} of {_said(budget, budget.amount or 0)} are left" if shown else ""
    words += f" until it begins anew at {again}. Ask for fewer tokens (max_tokens), or for a larger budget."
    facts = {"unit": budget.unit.value, "period": budget.period.value, "needed": _number(budget, needed)}
    facts |= {"amount": _number(budget, budget.amount or 0), "left": _number(budget, left)} if shown else {}
    details = {"budget": {**facts, "currency": budget.currency or None, "resets_at": again}}
    return Refusal(HTTPStatus.PAYMENT_REQUIRED, "budget_exhausted", words, kind="insufficient_quota", details=details)


def _number(budget: BudgetConfig, units: int) -> int | float:
    return units if budget.unit is BudgetUnit.TOKENS else round(units / NANO, 6)


def _said(budget: BudgetConfig, units: int) -> str:
    return f"{units:,} tokens" if budget.unit is BudgetUnit.TOKENS else f"{units / NANO:,.4f} {budget.currency}"


def unavailable(code: str, message: str, *, retry_after_s: int, close: bool = False) -> Refusal:
    """It should work, and does not right now."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, code, message, retry_after_s=retry_after_s, close=close)


def timed_out() -> Refusal:
    """The backend took the request and stayed silent too long."""
    return Refusal(HTTPStatus.GATEWAY_TIMEOUT, "backend_timeout", "The model did not answer in time.")


def slow_body() -> Refusal:
    """The caller did not send what it announced."""
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time.", close=True)
