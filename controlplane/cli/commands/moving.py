"""An endpoint on its way to another place: `tenantry move …`."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import asks, courses, session
from controlplane.cli.client import Json

move = typer.Typer(help="Let an endpoint go to another place and keep its address.", no_args_is_help=True)
Endpoint = Annotated[str, typer.Argument(help="An endpoint.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(move, name="move")


@move.command("start")
def start(
    ctx: typer.Context,
    name: Endpoint,
    to: Annotated[str, typer.Option(help="namespace or vm.")],
    provider: Annotated[str, typer.Option(help="To this provider; default: any that has room.")] = "",
    site: Annotated[str, typer.Option(help="To this site.")] = "",
    gpu: Annotated[str, typer.Option("--gpu", help="Of each replica there; default: the same as now.")] = "",
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="Let the address go over only at `move cut-over`.")
    ] = False,
    watch: Annotated[str, typer.Option(help="How long both places stay after that, to undo it at once.")] = "5m",
) -> None:
    """Build an endpoint a second time in another place; its address follows once it works there."""
    here = session.of(ctx)
    body: Json = {"kind": to, "provider": provider, "site": site, "by_hand": by_hand, "watch_s": asks.seconds(watch)}
    if gpu:
        body["gpu"] = asks.Gpu.parse(gpu).as_json()
    _say(here, name, here.client.post(f"{courses.address(here, name)}/move", body).body)


@move.command("show")
def show(ctx: typer.Context, name: Endpoint) -> None:
    """List the moves of an endpoint, the newest first."""
    courses.listed(ctx, name, "move")


@move.command("cut-over")
def cut_over(ctx: typer.Context, name: Endpoint) -> None:
    """Let the address go over now."""
    _say(session.of(ctx), name, courses.changed(ctx, name, "move", "cut-over"))


@move.command("finish")
def finish(ctx: typer.Context, name: Endpoint) -> None:
    """Give the old place up now."""
    _say(session.of(ctx), name, courses.changed(ctx, name, "move", "finish"))


@move.command("undo")
def undo(
    ctx: typer.Context, name: Endpoint, reason: Annotated[str, typer.Option(help="Why; it stays in the record.")] = ""
) -> None:
    """Let the address go back and give the new place up."""
    _say(session.of(ctx), name, courses.changed(ctx, name, "move", "undo", {"reason": reason}))


def _say(here: session.Session, name: str, found: Json) -> None:
    """Say where a move is."""
    places = " → ".join(
        " ".join(filter(None, (found[end]["kind"], found[end]["provider"]))) for end in ("source", "target")
    )
    courses.say(here, name, "move", f"{places}: {found['state']}", found)
