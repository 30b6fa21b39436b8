"""Of which images machines can be made: what providers say of themselves.

A provider tells the slugs for which it has a template of its own (`Capabilities.images`); one that does not tell is
taken to have the usual ones, and refuses at the first step what it has not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tenants.errors import InvalidSpec
from tenants.models import Provider
from tenants.states import BoundaryKind

USUAL: Final = ("debian-12", "ubuntu-22.04", "ubuntu-24.04")
"""Slugs that every provider should map to a template."""
FIRST: Final = "ubuntu-24.04"
"""What a form begins with, where it is offered."""


def images_of(provider: Provider) -> frozenset[str]:
    """Return the slugs of the images that a provider has."""
    told = provider.capabilities.get("images")
    return frozenset(USUAL if told is None else told)


def offered() -> tuple[str, ...]:
    """Return the slugs that any enabled provider of machines has, sorted; the usual ones where there is none yet."""
    providers = Provider.objects.filter(enabled=True, deletion_requested_at__isnull=True)
    makers = [row for row in providers if BoundaryKind.VM.value in row.capabilities.get("boundary_kinds", ())]
    found = frozenset[str]().union(*(images_of(row) for row in makers)) if makers else frozenset(USUAL)
    return tuple(sorted(found))


def first(choices: Iterable[str]) -> str:
    """Return the slug that a form begins with."""
    listed = list(choices)
    return FIRST if FIRST in listed else next(iter(listed), FIRST)


def check(image: str, *, at: Provider | None = None, named: str = "") -> None:
    """Raise `InvalidSpec` for an image that nobody has, or not the provider where it is to be."""
    if at is None and named:
        at = Provider.objects.filter(name=named, enabled=True, deletion_requested_at__isnull=True).first()
    have = tuple(sorted(images_of(at))) if at is not None else offered()
    if image not in have:
        where = f" at {at.name}" if at is not None else ""
        choice = f"choose one of {', '.join(have)}." if have else "none is offered there now."
        msg = f"No image is called {image}{where}; {choice}"
        raise InvalidSpec(msg, field="image", offered=list(have))
