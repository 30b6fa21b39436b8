"""The simulated estate from outside: `sandbox put-estate`, `sandbox prepare-replay`, `sandbox replay`.

A replay feeds the requests of a public trace through REST, compressed in time, as tenants would send them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import httpx
import typer

from controlplane.cli import asks, replay, session
from controlplane.cli.failures import ApiProblem, CliError, ExitCode, UsageFault
from provisioners.sandbox import files, traces

sandbox = typer.Typer(help="The simulated estate.", no_args_is_help=True)

Tenants = Annotated[str, typer.Option(help="Tenants by pattern and number.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(sandbox, name="sandbox")


@sandbox.command("put-estate")
def sandbox_put_estate(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What the estate is called in the sandbox.")],
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSON, CSV, or a spot-gpu node list (CSV).")
    ],
    sandbox_url: Annotated[str, typer.Option(envvar="TENANTRY_SANDBOX_URL", help="Where the sandbox listens.")],
) -> None:
    """Make or replace a simulated estate. The sandbox's token comes from TENANTRY_SANDBOX_TOKEN."""
    here = session.of(ctx)
    token = os.environ.get("TENANTRY_SANDBOX_TOKEN")
    if not token:
        raise UsageFault("TENANTRY_SANDBOX_TOKEN is not set; the state folder's secrets.env has it")
    try:
        spot = file.suffix == ".csv" and "gpu_model" in file.read_text(encoding="utf-8").partition("\n")[0]
        document = files.estate_from_spot_gpu(file) if spot else files.estate_from_file(file)
    except files.BadEstate as error:
        raise UsageFault(str(error)) from error
    try:
        answer = httpx.put(
            f"{sandbox_url.rstrip('/')}/estates/{name}",
            json=document,
            headers={"Authorization": f"Bearer {token}"},
            timeout=120,
            trust_env=False,
        )
    except httpx.TransportError as error:
        raise CliError(f"the sandbox at {sandbox_url} gives no answer: {error}") from error
    if answer.status_code >= 400:
        raise CliError(f"the sandbox refuses the estate: {answer.status_code} {answer.text[:300]}")
    here.screen.note(f"estate {name}: {len(document['hosts'])} simulated hosts")
    here.screen.next(
        f"tenantry provider create {name} --kind sandbox --site lab --config url={sandbox_url} --config estate={name}"
    )


@sandbox.command("prepare-replay")
def sandbox_prepare_replay(
    ctx: typer.Context,
    owner: Annotated[str, typer.Option(help="E-mail of who will replay: made owner of each tenant.")],
    limits: Annotated[list[str], typer.Argument(metavar="DIMENSION=AMOUNT", help="Limits of each tenant.")],
    tenants: Tenants = "replay-{}:20",
) -> None:
    """Make the tenants of a replay and set their limits (operators). Safe to repeat."""
    here = session.of(ctx)
    amounts = asks.limits(limits)
    for name in names_of(tenants):
        if here.client.find(f"/tenants/{name}") is None:
            body = {"name": name, "display_name": name, "owner_email": owner, "managed_by": "cli"}
            try:
                here.client.post("/tenants", body)
            except ApiProblem as problem:
                if problem.code != "name-taken":
                    raise
        for dimension, amount in amounts.items():
            here.client.put(f"/tenants/{name}/quotas", {"dimension": dimension, "amount": amount})
        here.screen.note(f"tenant/{name} is ready")
    here.screen.next(f"tenantry sandbox replay TRACE.csv --tenants '{tenants}'")


@sandbox.command("replay")
def sandbox_replay(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="An openb pod list (CSV).")],
    within: Annotated[str, typer.Option(help="Its time is compressed to so long.")] = "15m",
    last: Annotated[int, typer.Option(min=1, help="Only so many GPU requests, from the end.")] = 2000,
    tenants: Tenants = "replay-{}:20",
    product: Annotated[list[str] | None, typer.Option(help="GPU products, taken in turn; they need MIG.")] = None,
    clients: Annotated[int, typer.Option(min=1, max=64, help="So many requests at once.")] = 8,
    settle: Annotated[str, typer.Option(help="At the end wait at most so long until nothing moves any more.")] = "2m",
) -> None:
    """Replay a trace: each pod is an allocation of the tenant that a hash of its name picks.

    Prints throughput and waits, and how each request ended. Ends with 3 when one ended in none of ready,
    released, or waiting with a reason.
    """
    here = session.of(ctx)
    names = names_of(tenants)
    try:
        asked = traces.openb_requests(file, last=last, tenants=len(names), within_s=asks.seconds(within))
    except (ValueError, KeyError) as error:
        raise UsageFault(f"{file} is no openb pod list: {error}") from error
    if not asked:
        raise UsageFault(f"{file} holds no GPU request")
    feeder = replay.Feeder(
        client=here.client,
        tenants=names,
        products=tuple(product or ["H100-80GB", "A100-80GB"]),
        clients=clients,
        tell=here.screen.note,
    )
    report = feeder.run(asked, settle_s=asks.seconds(settle))
    here.screen.document(report.as_json())
    if report.unexplained:
        raise typer.Exit(int(ExitCode.FINDINGS))


def names_of(word: str) -> tuple[str, ...]:
    """Return the tenants of `PATTERN:NUMBER`, numbered from 0. Raises `UsageFault`."""
    pattern, mark, count = word.rpartition(":")
    if not mark or not count.isdigit() or not 1 <= int(count) <= 1000 or pattern.count("{}") != 1:
        raise UsageFault(f"--tenants {word}: write a pattern and a number, as replay-{{}}:20")
    return tuple(pattern.replace("{}", str(number)) for number in range(int(count)))
