"""What people type → what the API takes: GPUs, durations, labels, limits, whole bodies. Pure.

A GPU is `PRODUCT[/PROFILE][xN]`: `H100-80GB`, `H100-80GBx4` (four whole GPUs on one host),
`H100-80GB/1g.10gb`, `H100-80GB/1g.10gbx3` (three windows, three units).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlplane.cli.failures import UsageFault

Json = dict[str, Any]
_PARTS: Final = re.compile(r"^(?:(?P<count>[1-9][0-9]?)x)?(?P<profile>[1-9][0-9]?g\.[0-9a-z.+-]+)$")
_GPU: Final = re.compile(r"^(?P<product>[^/\s]+?)(?:/(?P<profile>[^/\s]+?))?(?:x(?P<count>[1-9][0-9]{0,2}))?$")
_DURATION: Final = re.compile(r"(?P<number>[0-9]+)(?P<unit>[smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as typed: `count` whole GPUs of one unit, or `count` windows, each a unit of its own."""

    product: str
    profile: str = ""
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """Read `PRODUCT[/PROFILE][xN]`. Raises `UsageFault`."""
        found = _GPU.match(text.strip())
        if found is None:
            raise UsageFault(f"{text!r} is no GPU: write H100-80GB, H100-80GBx2 or H100-80GB/1g.10gb")
        return cls(found["product"], found["profile"] or "", int(found["count"] or 1))

    @property
    def units(self) -> int:
        """How many units it asks for."""
        return self.count if self.profile else 1

    def as_json(self) -> Json:
        """Return the GPU part of one unit."""
        return {"product": self.product, "profile": self.profile, "count": 1 if self.profile else self.count}


@dataclass(frozen=True, slots=True)
class Capacity:
    """What every product asks for besides what it serves."""

    gpu: Gpu
    vcpu: int = 8
    memory_gib: int = 64
    units: int = 1
    provider: str = ""
    site: str = ""
    kind: str = ""
    tier: str = ""
    duration: str = ""
    not_after: str = ""
    service_class: str = ""
    priority: str = ""
    on_shortage: str = ""
    storage_gib: int = 0

    def unit(self) -> Json:
        """Return one unit."""
        return {"gpu": self.gpu.as_json(), "vcpu": self.vcpu, "memory_gib": self.memory_gib}

    def unit_count(self) -> int:
        """How many units: those said in words times those said with the GPU."""
        return self.units * self.gpu.units

    def shared(self) -> Json:
        """Return where, term and shortage; what was not said is left to the API's defaults."""
        where = _said(provider=self.provider, site=self.site, kind=self.kind, tier=self.tier)
        term = _said(
            duration_s=seconds(self.duration) if self.duration else None,
            not_after=instant(self.not_after) if self.not_after else None,
            service_class=self.service_class,
            priority=self.priority,
        )
        return _said(where=where, term=term, on_shortage=self.on_shortage, storage_gib=self.storage_gib)


def layouts(said: Sequence[str]) -> list[Json]:
    """Return `--gpu 0=2x3g.40gb,1g.10gb`, `--gpu all=whole` as the API takes it. Raises `UsageFault`."""
    found = []
    for text in said:
        device, found_sign, words = text.partition("=")
        parts = [_PARTS.match(word) for word in words.split(",")] if words != "whole" else []
        if not found_sign or not device or not all(parts):
            raise UsageFault(f"not a layout: {text}", hint="--gpu 0=2x3g.40gb,1g.10gb or --gpu all=whole")
        profiles = [part["profile"] for part in parts if part for _ in range(int(part["count"] or 1))]
        found.append({"device": device, "profiles": profiles})
    return found


@dataclass(frozen=True, slots=True)
class Tags:
    """Labels, description and who looks after it."""

    labels: Sequence[str] = ()
    description: str = ""
    managed_by: str = "cli"

    def as_json(self) -> Json:
        """Return the fields for the body."""
        return _said(labels=pairs(self.labels), description=self.description, managed_by=self.managed_by)


def endpoint(name: str, model: str, capacity: Capacity, tags: Tags, *, arguments: Sequence[str] = ()) -> Json:
    """Return the body of a new endpoint."""
    return {
        "name": name,
        "model": model,
        **_said(arguments=typed_pairs(arguments)),
        "unit": capacity.unit(),
        "replicas": capacity.unit_count(),
        **capacity.shared(),
        **tags.as_json(),
    }


def machine(name: str, image: str, disk_gib: int, ssh_keys: Sequence[str], capacity: Capacity, tags: Tags) -> Json:
    """Return the body of a new machine. Raises `UsageFault` for more than one unit."""
    if capacity.unit_count() != 1:
        raise UsageFault("a machine has one MIG window or whole GPUs (H100-80GBx2); make more machines for more")
    return {
        "name": name,
        "image": image,
        "disk_gib": disk_gib,
        "ssh_keys": list(ssh_keys),
        "unit": capacity.unit(),
        **capacity.shared(),
        **tags.as_json(),
    }


def units_of_many(name: str, capacity: Capacity, tags: Tags) -> Json:
    """Return the body of a new namespace or bare allocation."""
    units = [capacity.unit() for _ in range(capacity.unit_count())]
    return {"name": name, "units": units, **capacity.shared(), **tags.as_json()}


def seconds(text: str) -> int:
    """Return `90s`, `15m`, `8h`, `7d`, `2w` or `1d12h` in seconds. Raises `UsageFault`."""
    parts = list(_DURATION.finditer(text.strip()))
    if not parts or "".join(part[0] for part in parts) != text.strip():
        raise UsageFault(f"{text!r} is no duration: write 90s, 15m, 8h, 7d, 2w or 1d12h")
    return sum(int(part["number"]) * _SECONDS[part["unit"]] for part in parts)


def instant(text: str, *, now: datetime | None = None) -> str:
    """Return a date (its end in UTC), a time with zone, or `+7d` from now, as the API takes it. Raises `UsageFault`."""
    word = text.strip()
    if word.startswith("+"):
        return ((now or datetime.now(UTC)) + timedelta(seconds=seconds(word[1:]))).isoformat(timespec="seconds")
    try:
        at = datetime.fromisoformat(word)
    except ValueError as error:
        raise UsageFault(f"{text!r} is no time: write 2026-12-31, 2026-12-31T18:00Z or +7d") from error
    if len(word) == len("2026-12-31"):
        at += timedelta(days=1)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat(timespec="seconds")


def pairs(words: Sequence[str]) -> dict[str, str]:
    """Return `key=value` words as a mapping. Raises `UsageFault`."""
    found: dict[str, str] = {}
    for word in words:
        key, mark, value = word.partition("=")
        if not mark or not key:
            raise UsageFault(f"{word!r} has not the form key=value")
        found[key] = value
    return found


def typed_pairs(words: Sequence[str]) -> Json:
    """Return `key=value` words with values as true, false, whole and decimal numbers, else text."""
    return {key.replace("-", "_"): _typed(value) for key, value in pairs(words).items()}


def key_limits(words: Sequence[str]) -> Json:
    """Return `--limit` words as the body of a key's limits. Raises `UsageFault`."""
    found: Json = {}
    for key, value in pairs(words).items():
        if key in {"requests_per_minute", "tokens_per_minute"}:
            found[key] = whole(value, key)
        elif key == "tokens":
            found["budget_tokens"] = whole(value, key)
        elif key == "money":
            found["budget_money"] = value
        elif key == "per":
            found["budget_period"] = value
        else:
            known = "requests_per_minute, tokens_per_minute, tokens, money, per"
            raise UsageFault(f"a key has no limit {key!r}; there are: {known}")
    return found


def whole(text: str, name: str) -> int:
    """Return a whole number. Raises `UsageFault` naming what it is for."""
    if not text.isdigit():
        raise UsageFault(f"{name} is a whole number, not {text!r}")
    return int(text)


def canary(text: str, max_errors: float, max_latency_ms: int, *, must_have_room: bool) -> Json:
    """Return a canary as the API takes it: `10:5m,50:5m`, `10,50:5m`, or `now` for one without steps."""
    steps: list[Json] = []
    for word in text.split(",") if text.strip() != "now" else ():
        weight, _, lasts = word.strip().rstrip("%").partition(":")
        if not re.fullmatch(r"[0-9]{1,3}", weight.rstrip("%")):
            raise UsageFault(f"{word!r} is no step: write 10:5m (percent and how long), or 10 (until it is promoted)")
        steps.append({"weight": int(weight.rstrip("%")), **({"seconds": seconds(lasts)} if lasts else {})})
    watched: Json = {"error_rate": max_errors / 100, **({"latency_ms": max_latency_ms} if max_latency_ms else {})}
    return {"strategy": "canary", "steps": steps, "limits": watched, "must_have_room": must_have_room}


def limits(words: Sequence[str]) -> dict[str, int]:
    """Return `dimension=amount` words as whole numbers. Raises `UsageFault`."""
    found: dict[str, int] = {}
    for key, value in pairs(words).items():
        if not re.fullmatch(r"[0-9]{1,13}", value):
            raise UsageFault(f"{key}={value}: an amount is a whole number")
        found[key] = int(value)
    return found


def _typed(text: str) -> bool | int | float | str:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _said(**values: Any) -> Json:
    """Return what was said: neither None nor empty."""
    return {key: value for key, value in values.items() if value not in (None, "", {}, 0)}
