"""Numbers as people read them: by locale, with the unit in words. What cannot be measured is `--`."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Final

from django.utils.formats import number_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

UNKNOWN: Final = "--"

SYMBOLS: Final = {"EUR": "€", "USD": "$", "GBP": "£"}
MIB: Final = 1024
THOUSAND: Final = 1000


def decimal_of(value: object) -> Decimal | None:
    """Return a finite number as Decimal; None for anything that is none (unmeasurable)."""
    if value is None or value == "" or isinstance(value, bool):
        return None
    try:
        number = Decimal(str(value))
    except (InvalidOperation, ValueError):
        return None
    return number if number.is_finite() else None


def number(value: object, places: int | None = None) -> str:
    """Return a number grouped by locale, e.g. `12,480`; `places` fixes the decimals (default: none if whole)."""
    exact = decimal_of(value)
    if exact is None:
        return UNKNOWN
    if places is None:
        places = 0 if exact == exact.to_integral_value() else (1 if abs(exact) >= 100 else 2)
    rounded = exact.quantize(Decimal(1).scaleb(-places), rounding=ROUND_HALF_UP)
    return number_format(rounded, decimal_pos=places, force_grouping=True)


def short(value: object) -> str:
    """Return a large number in at most four characters and a letter: 950, 12.5k, 3.2M."""
    exact = decimal_of(value)
    if exact is None:
        return UNKNOWN
    for letter in ("", "k", "M", "G"):
        if abs(exact) < THOUSAND or letter == "G":
            places = 0 if not letter and exact == exact.to_integral_value() else (0 if abs(exact) >= 100 else 1)
            return number(exact, places).removesuffix(number_format(Decimal("0.0"), decimal_pos=1)[1:]) + letter
        exact /= THOUSAND
    raise AssertionError  # pragma: no cover - the loop returns


def money(value: object, currency: str = "EUR", places: int = 2) -> str:
    """Return an amount with its currency sign, e.g. `€1,204.50`; an unknown currency stands as its code."""
    exact = decimal_of(value)
    if exact is None:
        return UNKNOWN
    sign = "−" if exact < 0 else ""
    symbol = SYMBOLS.get(currency)
    text = number(abs(exact), places)
    return f"{sign}{symbol}{text}" if symbol else f"{sign}{text} {currency}"


def memory(mib: object) -> str:
    """Return an amount of memory given in MiB, in the largest binary unit that keeps it readable: `80 GiB`."""
    exact = decimal_of(mib)
    if exact is None:
        return UNKNOWN
    for unit in ("MiB", "GiB", "TiB"):
        if abs(exact) < MIB or unit == "TiB":
            return f"{number(exact, 0 if exact == exact.to_integral_value() or exact >= 100 else 1)} {unit}"
        exact /= MIB
    raise AssertionError  # pragma: no cover - the loop returns


def size(count: object) -> str:
    """Return a number of bytes in the largest binary unit that keeps it readable."""
    exact = decimal_of(count)
    if exact is None:
        return UNKNOWN
    if abs(exact) < MIB:
        return ngettext("%(n)s byte", "%(n)s bytes", int(exact)) % {"n": number(exact, 0)}
    if abs(exact) < MIB * MIB:
        return f"{number(exact / MIB, 0 if exact >= 100 * MIB else 1)} KiB"
    return memory(exact / MIB / MIB)


def duration(seconds: object) -> str:
    """Return a span in at most two units: `0.4 s`, `48 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    exact = decimal_of(seconds)
    if exact is None:
        return UNKNOWN
    if exact < 0:
        return f"−{duration(-exact)}"
    if exact < 10 and exact != exact.to_integral_value():
        return _("%(n)s s") % {"n": number(exact, 1)}
    whole = int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))
    units = (
        (86_400, _("%(n)s d")),
        (3_600, _("%(n)s h")),
        (60, _("%(n)s min")),
        (1, _("%(n)s s")),
    )
    for place, (length, text) in enumerate(units):
        if whole >= length:
            first, rest = divmod(whole, length)
            parts = [text % {"n": number(first)}]
            if place + 1 < len(units):
                below, words = units[place + 1]
                if rest // below:
                    parts.append(words % {"n": number(rest // below)})
            return " ".join(parts)
    return _("%(n)s s") % {"n": "0"}


def seconds(value: object) -> str:
    """Return a time of an answer, in the unit that keeps it readable: `38 ms`, `1.25 s`."""
    exact = decimal_of(value)
    if exact is None:
        return UNKNOWN
    if abs(exact) < 1:
        return _("%(n)s ms") % {"n": number(exact * THOUSAND, 1 if abs(exact) < Decimal("0.01") else 0)}
    return _("%(n)s s") % {"n": number(exact, 2 if abs(exact) < 10 else 1)}


def share(part: object, whole: object) -> float:
    """Return 100 × part ÷ whole between 0 and 100; 0 where either is unknown or the whole is 0."""
    a, b = decimal_of(part), decimal_of(whole)
    if a is None or b is None or b <= 0:
        return 0.0
    return float(max(Decimal(0), min(Decimal(100), a * 100 / b)))


def percent(value: object, places: int = 0) -> str:
    """Return a ratio between 0 and 1 as per cent: `37 %`."""
    exact = decimal_of(value)
    return UNKNOWN if exact is None else f"{number(exact * 100, places)} %"


def quantity(value: object, unit: str) -> str:
    """Return an amount with its unit in words, in the right number: `1 slot`, `12 slots`, `3 GPUs`.

    A unit that is not known here stands as it is written.
    """
    exact = decimal_of(value)
    if exact is None:
        return UNKNOWN
    count = 1 if exact == 1 else 2
    words = {
        "slot": ngettext("slot", "slots", count),
        "gpu": ngettext("GPU", "GPUs", count),
        "host": ngettext("host", "hosts", count),
        "endpoint": ngettext("endpoint", "endpoints", count),
        "machine": ngettext("machine", "machines", count),
        "namespace": ngettext("namespace", "namespaces", count),
        "device": ngettext("device", "devices", count),
        "person": ngettext("person", "people", count),
        "user": ngettext("user", "users", count),
        "key": ngettext("key", "keys", count),
        "token": ngettext("token", "tokens", count),
        "request": ngettext("request", "requests", count),
        "day": ngettext("day", "days", count),
        "hour": ngettext("hour", "hours", count),
        "minute": ngettext("minute", "minutes", count),
        "core": ngettext("core", "cores", count),
        "replica": ngettext("replica", "replicas", count),
        "retry": ngettext("retry", "retries", count),
    }
    return f"{number(exact)} {words.get(unit.lower(), unit)}"
