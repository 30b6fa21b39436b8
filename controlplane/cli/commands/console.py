"""`tenantry console MACHINE`: a way to the screen of a machine, for one use within minutes."""

from __future__ import annotations

import time
from typing import Annotated, Final

import typer

from controlplane.cli import session
from controlplane.cli.client import Json
from controlplane.cli.failures import CliError, TimedOut
from controlplane.cli.nouns import noun

PATIENCE_S: Final = 30.0
PAUSE_S: Final = 0.2


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command("console")(console)


def console(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MACHINE", help="A machine, by name or id.")],
) -> None:
    """Print the address of a machine's console: a WebSocket (webmks) that lets in whoever opens it, once."""
    here = session.of(ctx)
    path = f"{noun('machines').collection(tenant=here.tenant())}/{name}/consoles"
    found: Json = here.client.post(path, {}).body
    began = time.monotonic()
    while found["state"] == "asked":
        if time.monotonic() - began > PATIENCE_S:
            raise TimedOut(f"no console for machine/{name} within {PATIENCE_S:.0f} s", hint="tenantry doctor")
        here.client.pause(PAUSE_S)
        found = here.client.get(f"{path}/{found['id']}")
    if found["state"] != "made":
        raise CliError(f"machine/{name}: {found['error']}", hint=f"tenantry explain machine/{name}")
    here.screen.line(str(found["address"]))
    here.screen.note(f"for one use, until {found['expires_at']}; open it with a viewer of webmks")
    if found["simulated"]:
        here.screen.note("this machine is simulated: nothing answers there")
