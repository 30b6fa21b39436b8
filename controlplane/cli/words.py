"""Times and amounts in words for people. Pure but for the clock, which can be given."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

_STEPS: Final = ((86400, "d"), (3600, "h"), (60, "m"))


def span(seconds: float) -> str:
    """Return a span in its two largest units: `3d4h`, `5m10s`, `12s`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for size, unit in _STEPS:
        if left >= size or parts:
            parts.append(f"{left // size}{unit}")
            left %= size
    parts.append(f"{left}s")
    return "".join(part for part in parts[:2] if not (len(parts) > 1 and part[:-1] == "0")) or "0s"


def _moment(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def ago(text: str, *, now: datetime | None = None) -> str:
    """Return how long ago a moment was; one in the future as `in …`."""
    at = _moment(text)
    if at is None:
        return text
    passed = ((now or datetime.now(UTC)) - at).total_seconds()
    return span(passed) if passed >= 0 else f"in {span(-passed)}"


def until(text: str, *, now: datetime | None = None) -> str:
    """Return the day of a moment and how far it is away."""
    at = _moment(text)
    if at is None:
        return text
    left = (at - (now or datetime.now(UTC))).total_seconds()
    return f"{at:%Y-%m-%d} ({f'in {span(left)}' if left > 0 else 'over'})"


def moment(text: str, *, seconds: bool = False) -> str:
    """Return a moment to the minute or second, in UTC."""
    at = _moment(text)
    return f"{at.astimezone(UTC):{'%Y-%m-%d %H:%M:%S' if seconds else '%Y-%m-%d %H:%M'}}" if at else text


def amount(value: Any) -> str:
    """Return a number with thin groups, whole numbers without a point."""
    try:
        number = Decimal(str(value))
    except ArithmeticError:
        return str(value)
    return f"{int(number):,}" if number == number.to_integral_value() else f"{number:,f}".rstrip("0").rstrip(".")


def chat_command(address: str, model: str, plain: str) -> str:
    """Return the curl line that asks an endpoint something; the key stays out of it."""
    said = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    key_word = "THE-KEY-ABOVE" if plain else "$KEY"
    heads = f"-H 'Authorization: Bearer {key_word}' -H 'Content-Type: application/json'"
    return f"curl {address}/chat/completions {heads} -d '{said}'"
