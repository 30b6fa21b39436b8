"""Looking: `get`, `wait`, `explain`, `events`, `find`."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from rich.live import Live

from controlplane.cli import asks, session
from controlplane.cli.cells import why
from controlplane.cli.client import LONG_WAIT_S, Json
from controlplane.cli.failures import ApiProblem, CliError, TimedOut, Unreachable
from controlplane.cli.nouns import Noun, cell, noun, split_object
from controlplane.cli.screen import story, table_of

ENDS: Final = frozenset({"Released", "Failed"})
WATCH_EVERY_S: Final = 1.0


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(get)
    app.command()(wait)
    app.command()(explain)
    app.command()(events)
    app.command()(find)


def get(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="NOUN", help="endpoints, machines, … or endpoint/chat.")],
    name: Annotated[
        str, typer.Argument(help="One of them, by name or id; of keys and revisions: their endpoint.")
    ] = "",
    labels: Annotated[list[str] | None, typer.Option("--label", "-l", help="key=value; may be repeated.")] = None,
    phase: Annotated[str, typer.Option(help="Only this phase.")] = "",
    where: Annotated[list[str] | None, typer.Option("--where", "-w", help="Any filter of the API: state=open.")] = None,
    everywhere: Annotated[bool, typer.Option("--all-tenants", "-A", help="Across all tenants you see.")] = False,
    released: Annotated[bool, typer.Option(help="Released ones too.")] = False,
    most: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 200,
    wide: Annotated[bool, typer.Option(help="All columns, also empty ones.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show changes until Ctrl-C.")] = False,
) -> None:
    """List things, or show one."""
    here = session.of(ctx)
    if "/" in kind:
        found, name = split_object(kind, name)
    else:
        found = noun(kind)
    if name and not found.child_of:
        _one(here, found, name, watch=watch)
        return
    tenant = "" if everywhere else here.tenant(needed=bool(found.child_of) or (found.of_tenant and not found.across))
    path = found.collection(tenant=tenant if found.of_tenant else "", parent=name)
    params: dict[str, Any] = {"label": labels or [], "phase": phase, **asks.pairs(where or [])}
    if not released and not phase and found.has_phase:
        params["live"] = True

    def rows() -> list[Json]:
        if not found.paged:
            return list(here.client.get(path, **asks.pairs(where or []))["items"])
        return list(here.client.items(path, most=most, **params))

    if watch and here.screen.format == "table" and here.screen.out.is_terminal:
        with Live(table_of(found, rows(), wide=wide), console=here.screen.out, auto_refresh=False) as live:
            _every(WATCH_EVERY_S, lambda: live.update(table_of(found, rows(), wide=wide), refresh=True))
    items = rows()
    here.screen.rows(found, items, wide=wide)
    if watch:
        _on_change(rows, items, lambda new: here.screen.rows(found, new, wide=wide))
    elif most and len(items) == most:
        here.screen.note(f"only the first {most}; --limit 0 shows all")


def _one(here: session.Session, found: Noun, name: str, *, watch: bool) -> None:
    body = here.read(found, name)
    here.screen.document(body)
    if watch:
        _on_change(lambda: here.read(found, name), body, here.screen.document)


def _on_change(read: Callable[[], Any], last: Any, show: Callable[[Any], None]) -> None:
    """Show what was read whenever it differs from before, until Ctrl-C."""
    seen = [last]

    def look() -> None:
        new = read()
        if new != seen[0]:
            seen[0] = new
            show(new)

    _every(WATCH_EVERY_S, look)


def _every(seconds: float, do: Callable[[], None]) -> None:
    """Do it again and again until Ctrl-C; a control plane that is away for a while is waited for."""
    quiet = threading.Event()
    while not quiet.wait(seconds):
        try:
            do()
        except Unreachable:
            continue


def wait(
    ctx: typer.Context,
    thing: Annotated[str, typer.Argument(metavar="NOUN/NAME", help="endpoint/chat")],
    goals: Annotated[str, typer.Option("--for", help="Ready, Released or any phase; several with commas.")] = "Ready",
    timeout: Annotated[str, typer.Option(help="How long: 90s, 10m.")] = "10m",
) -> None:
    """Wait until an object has a phase. Ends with 7 when the time is over, 1 when it failed."""
    here = session.of(ctx)
    found, name = split_object(thing)
    body = wait_for(here, found, name, goals=goals.split(","), timeout_s=asks.seconds(timeout))
    if here.screen.format != "table":
        here.screen.document(body)


def wait_for(
    here: session.Session, found: Noun, name: str, *, goals: list[str], timeout_s: float, say: bool = True
) -> Json:
    """Wait by the API's long wait until an object has one of the phases; returns it.

    Follows the object by its id, so that another one of the same name is never mistaken for it. Raises
    `TimedOut`, `CliError` when it failed.
    """
    body = here.read(found, name)
    path = here.address(found, str(body["id"]))
    began, shown = time.monotonic(), ""
    while True:
        line = f"{body['phase']}  {why(body.get('conditions') or [])}"
        if say and line != shown:
            here.screen.note(f"{time.monotonic() - began:6.1f} s  {found.singular}/{body['name']}  {line}")
            shown = line
        if body["phase"] in goals:
            return body
        if body["phase"] in ENDS:
            raise CliError(
                f"{found.singular}/{body['name']} is {body['phase']}: {why(body.get('conditions') or [])}",
                hint=f"tenantry explain {found.singular}/{name}",
            )
        left = timeout_s - (time.monotonic() - began)
        if left <= 0:
            raise TimedOut(
                f"{found.singular}/{body['name']} is {body['phase']} after {timeout_s:.0f} s",
                hint=f"tenantry explain {found.singular}/{name}",
            )
        try:
            # short waits, so that each change of phase is told when it comes
            body = here.client.get(path, wait=min(5.0, LONG_WAIT_S, round(left, 1)), **{"for": ",".join(goals)})
        except ApiProblem as problem:
            if problem.status == 404 and "Released" in goals:
                return {**body, "phase": "Released"}
            raise


def explain(
    ctx: typer.Context,
    thing: Annotated[str, typer.Argument(metavar="NOUN/NAME", help="endpoint/chat")],
) -> None:
    """Say why an object is as it is: what it waits for, who is before it, what was built."""
    here = session.of(ctx)
    found, name = split_object(thing)
    story(here.screen, here.client.get(f"{here.address(found, name)}/explain"))


def events(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and show new ones until Ctrl-C.")] = False,
    about: Annotated[str, typer.Option("--for", metavar="NOUN/NAME", help="Of one object.")] = "",
    most: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 30,
) -> None:
    """Show what happened, newest last."""
    here = session.of(ctx)
    found = noun("events")
    tenant = here.tenant(needed=False)
    params: dict[str, Any] = {}
    if about:
        kind, name = split_object(about)
        body = here.read(kind, name)
        params["object_id"] = body["id"]
    items = list(here.client.items(found.collection(tenant=tenant), most=most, **params))
    here.screen.rows(found, items[::-1])
    if follow:
        _follow(here, found, tenant, str(params.get("object_id", "")))


def _follow(here: session.Session, found: Noun, tenant: str, wanted: str) -> None:
    """Show new events until Ctrl-C; a stream that ends is taken up where it ended, nothing shown twice."""
    last, heard = "", deque[str](maxlen=1000)
    while True:
        try:
            for identity, event in here.client.events("/events/stream", tenant=tenant, after=last):
                if identity in heard or (wanted and event.get("object_id") != wanted):
                    continue
                last = identity
                heard.append(identity)
                _say_event(here, found, event)
        except Unreachable as error:
            here.screen.note(error.message)
        threading.Event().wait(1.0)


def _say_event(here: session.Session, found: Noun, event: Json) -> None:
    if here.screen.format == "json":
        here.screen.line(json.dumps(event, ensure_ascii=False))
    elif here.screen.format == "yaml":
        here.screen.document([event])
    else:
        here.screen.line("  ".join(cell(event, column) for column in found.columns))


def find(
    ctx: typer.Context,
    short_id: Annotated[str, typer.Argument(help="Short id such as ep-7k2m, or a whole id.")],
) -> None:
    """Find any object that you may see by its short id."""
    here = session.of(ctx)
    here.screen.document(here.client.get(f"/objects/{short_id}"))
