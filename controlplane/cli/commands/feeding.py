"""`sandbox replay`: feed the requests of a public trace through REST, compressed in time, as tenants would."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import asks, replay, session
from controlplane.cli.failures import ExitCode, UsageFault
from provisioners.sandbox import traces

sandbox = typer.Typer(help="The simulated estate.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(sandbox, name="sandbox")


@sandbox.command("replay")
def sandbox_replay(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An openb pod list (CSV).")],
    within: Annotated[str, typer.Option(help="Its time is compressed to so long.")] = "15m",
    last: Annotated[int, typer.Option(min=1, help="Only so many GPU requests, from the end.")] = 2000,
    tenants: Annotated[str, typer.Option(help="Tenants by pattern and number: replay-{}:20.")] = "replay-{}:20",
    product: Annotated[list[str] | None, typer.Option(help="GPU products, taken in turn; they need MIG.")] = None,
    clients: Annotated[int, typer.Option(min=1, max=64, help="So many requests at once.")] = 8,
    settle: Annotated[str, typer.Option(help="Wait so long at the end until nothing moves any more.")] = "2m",
) -> None:
    """Replay a trace: each pod is an allocation of the tenant that a hash of its name picks.

    Prints throughput and waits, and how each request ended. Ends with 3 when one ended in none of ready,
    released, or waiting with a reason.
    """
    here = session.of(ctx)
    pattern, mark, count = tenants.rpartition(":")
    if not mark or not count.isdigit() or "{}" not in pattern:
        raise UsageFault(f"--tenants {tenants}: write a pattern and a number, as replay-{{}}:20")
    try:
        asked = traces.openb_requests(file, last=last, tenants=int(count), within_s=asks.seconds(within))
    except (ValueError, KeyError) as error:
        raise UsageFault(f"{file} is no openb pod list: {error}") from error
    if not asked:
        raise UsageFault(f"{file} holds no GPU request")
    feeder = replay.Feeder(
        client=here.client,
        tenant_of=pattern.format,
        products=tuple(product or ["H100-80GB", "A100-80GB"]),
        clients=clients,
        tell=here.screen.note,
    )
    report = feeder.run(asked, settle_s=asks.seconds(settle))
    here.screen.document(report.as_json())
    if report.unexplained:
        raise typer.Exit(int(ExitCode.FINDINGS))
