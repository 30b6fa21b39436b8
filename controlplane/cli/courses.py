"""What an endpoint is on its way to, a rollout or a move: changed by a verb, and told in a few lines."""

from __future__ import annotations

from typing import Final, Literal

import typer

from controlplane.cli import session
from controlplane.cli.client import Json
from controlplane.cli.nouns import noun

Course = Literal["rollout", "move"]
TOLD: Final = ("note", "message", "reason")
"""Fields of either that say why it is where it is."""


def address(here: session.Session, name: str) -> str:
    """Return the path of an endpoint, given with or without its noun."""
    return here.address(noun("endpoints"), name.removeprefix("endpoint/"))


def changed(ctx: typer.Context, name: str, course: Course, verb: str, body: Json | None = None) -> Json:
    """Do a verb of a course and return where it is then."""
    here = session.of(ctx)
    found: Json = here.client.post(f"{address(here, name)}/{course}/{verb}", body or None).body
    return found


def listed(ctx: typer.Context, name: str, course: Course) -> None:
    """List the courses of an endpoint, the newest first."""
    here = session.of(ctx)
    here.screen.rows(noun(f"{course}s"), list(here.client.items(f"{address(here, name)}/{course}s")))


def say(here: session.Session, name: str, course: Course, line: str, found: Json) -> None:
    """Say where a course is, why, and where to look on."""
    here.screen.note(line)
    for words in (found.get(field) for field in TOLD):
        if words:
            here.screen.note(str(words))
    here.screen.next(f"tenantry {course} show {name}")
