"""How one value is said in a cell of a table. Pure but for the clock behind ages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from controlplane.cli.words import ago, amount, moment, until

NOTHING: Final = "-"
_ORDER: Final = ("Approved", "Suspended", "Placed", "BoundaryReady", "Provisioned", "Serving", "Ready", "Healthy")
"""Conditions from the first hurdle to the last; the first bad one is why."""


def said(value: Any, form: str = "") -> str:
    """Return a value in words; `form` is a key of `FORMS` or empty."""
    if value is None or value in ("", [], {}):
        return NOTHING
    return FORMS.get(form, plain)(value)


def plain(value: Any) -> str:
    """Return text, yes or no, or the name of an object."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return str(value.get("name") or value.get("id") or value)
    return str(value)


def size(units: Iterable[Mapping[str, Any]]) -> str:
    """Return units in short: `2 × H100-80GB/1g.10gb`."""
    counted: dict[str, int] = {}
    for unit in units:
        gpu = unit.get("product") or "no GPU"
        gpu += f"/{unit['profile']}" if unit.get("profile") else ""
        gpu += f"x{unit['gpu_count']}" if (unit.get("gpu_count") or 0) > 1 else ""
        counted[gpu] = counted.get(gpu, 0) + 1
    return ", ".join(gpu if count == 1 else f"{count} × {gpu}" for gpu, count in counted.items())


def why(conditions: Any) -> str:
    """Return the message of the condition that keeps an object from being ready; '-' for one that is."""
    if isinstance(conditions, str):
        return conditions
    found = {each.get("type"): each for each in conditions if isinstance(each, Mapping)}
    if (found.get("Ready") or {}).get("status") == "True" and (found.get("Healthy") or {}).get("status") != "False":
        return NOTHING
    for name in _ORDER:
        condition = found.get(name)
        bad = "True" if name == "Suspended" else "False"
        if condition and condition.get("status") in {bad, "Unknown"}:
            return str(condition.get("message") or condition.get("reason") or NOTHING)
    return NOTHING


def stage(stages: Iterable[Mapping[str, Any]]) -> str:
    """Return who has to decide next."""
    waiting = next((each for each in stages if not each.get("done_at")), None)
    return str(waiting["decider"]) if waiting else NOTHING


def _names(values: Iterable[Any]) -> str:
    return ", ".join(plain(each) for each in values)


def _pairs(value: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={each}" for key, each in value.items())


def _prices(values: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{each['item']} {amount(each['amount'])}" for each in values)


FORMS: Final[Mapping[str, Callable[[Any], str]]] = {
    "ago": lambda value: ago(str(value)),
    "until": lambda value: until(str(value)),
    "moment": lambda value: moment(str(value)),
    "amount": amount,
    "bits": lambda value: str(int(value).bit_count()),
    "count": lambda value: str(len(value)),
    "names": _names,
    "pairs": _pairs,
    "prices": _prices,
    "size": size,
    "stage": stage,
    "why": why,
}
