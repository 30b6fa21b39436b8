"""`tenantry logs endpoint/NAME`, `address ENDPOINT`, `benchmark …`: looking at an endpoint through a worker."""

from __future__ import annotations

import time
from typing import Annotated, Any, Final

import typer

from controlplane.cli import session
from controlplane.cli.client import Json
from controlplane.cli.failures import CliError, TimedOut, UsageFault
from controlplane.cli.nouns import noun, split_object

LOG_PATIENCE_S: Final = 60.0
LOG_PAUSE_S: Final = 0.3
BENCHMARK_PAUSE_S: Final = 1.0
LIVE: Final = frozenset({"waiting", "running"})

benchmark = typer.Typer(help="Bounded loads on an endpoint, measured through its own address.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="ENDPOINT", help="An endpoint, by name or id.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(logs)
    app.command()(address)
    benchmark.command("run")(run)
    benchmark.command("show")(show)
    benchmark.command("cancel")(cancel)
    app.add_typer(benchmark, name="benchmark")


def logs(
    ctx: typer.Context,
    thing: Annotated[str, typer.Argument(metavar="NOUN/NAME", help="endpoint/chat")],
    tail: Annotated[int, typer.Option(min=1, max=1000, help="So many lines.")] = 100,
) -> None:
    """Show the end of the log of what serves an endpoint, read at its provider."""
    here = session.of(ctx)
    found, name = split_object(thing)
    if found.name != "endpoints":
        raise CliError(
            f"this control plane shows no logs of {found.name} yet",
            hint=f"tenantry events --for {found.singular}/{name}",
        )
    path = f"{here.address(found, name)}/logs"
    told: Json = here.client.post(path, {"tail": tail}).body
    began = time.monotonic()
    while told["state"] == "asked":
        if time.monotonic() - began > LOG_PATIENCE_S:
            raise TimedOut(f"no log of {thing} within {LOG_PATIENCE_S:.0f} s", hint="tenantry doctor")
        here.client.pause(LOG_PAUSE_S)
        told = here.client.get(f"{path}/{told['id']}")
    if told["state"] == "refused":
        raise CliError(f"{thing}: {told['error']}", hint=f"tenantry explain {thing}")
    if here.screen.format != "table":
        here.screen.document(told)
        return
    for line in told["lines"]:
        here.screen.line("  ".join(part for part in (line["at"], line["source"], line["text"]) if part))
    if not told["lines"]:
        here.screen.note("nothing of it has written a line yet")


def address(
    ctx: typer.Context,
    name: Name,
    ca: Annotated[
        bool, typer.Option("--ca", help="Print whom callers must trust there, as PEM, and nothing else.")
    ] = False,
) -> None:
    """Show an endpoint's address, its DNS record, whether it was reached from outside; 3 where something is missing."""
    here = session.of(ctx)
    told: Json = here.client.get(f"{noun('endpoints').collection(tenant=here.tenant())}/{name}/address")
    certificate: Json = told.get("certificate") or {}
    if ca:
        if not certificate.get("ca_pem"):
            msg = f"{name} needs no authority beside those that callers trust anyway."
            raise UsageFault(msg)
        here.screen.line(certificate["ca_pem"])
        return
    if here.screen.format != "table":
        here.screen.document(told)
    else:
        here.screen.line(told["address"] or "it has no address yet")
        if told["record"] is not None:
            here.screen.line(f"  {told['record']['name']}. {told['record']['kind']} {told['record']['value']}")
        for finding in told["findings"]:
            word = "ends   " if finding.get("warns") else "ok     " if finding["ok"] else "missing"
            here.screen.line(f"  {word} {finding['text']}")
        if certificate.get("trouble"):
            here.screen.line(f"  missing A gateway has not got its certificate: {certificate['trouble']}")
        if told["ok"] is None:
            here.screen.note("nobody looks at it from outside: it is an address of a laboratory or of a cluster")
    if told["ok"] is False:
        raise typer.Exit(3)


def run(
    ctx: typer.Context,
    name: Name,
    requests: Annotated[int, typer.Option(min=1, help="How many are sent in all.")] = 100,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Tokens of each prompt, about.")] = 512,
    output_tokens: Annotated[int, typer.Option("--output-tokens", min=1, help="Tokens of each answer.")] = 128,
    concurrency: Annotated[int, typer.Option(min=1, help="How many are being answered at once.")] = 8,
    wait: Annotated[bool, typer.Option(help="Stay until it has ended.")] = True,
) -> None:
    """Put a bounded load on an endpoint and measure it; Ctrl-C leaves it running, `benchmark cancel` ends it."""
    here = session.of(ctx)
    body = {
        "requests": requests, "input_tokens": input_tokens, "output_tokens": output_tokens, "concurrency": concurrency,
    }  # fmt: skip
    path = _path(here, name)
    told: Json = here.client.post(path, body).body
    if not wait:
        here.screen.note(f"{told['short_id']} waits; tenantry benchmark show {name}")
        _print(here, told)
        return
    shown = -1
    while told["state"] in LIVE:
        if told["sent"] != shown:
            shown = told["sent"]
            here.screen.note(f"{told['short_id']}: {shown} of {requests} requests, {told['failed']} failed")
        here.client.pause(BENCHMARK_PAUSE_S)
        told = here.client.get(f"{path}/{told['id']}")
    _print(here, told)
    if told["state"] == "failed":
        raise CliError(f"endpoint/{name}: {told['reason']}", hint=f"tenantry explain endpoint/{name}")


def show(
    ctx: typer.Context,
    name: Name,
    key: Annotated[str, typer.Argument(metavar="[BENCHMARK]", help="bm-7k2m; left out: the newest.")] = "",
) -> None:
    """Show what came of a benchmark."""
    here = session.of(ctx)
    if key:
        _print(here, here.client.get(f"{_path(here, name)}/{key}"))
        return
    newest = next(iter(here.client.items(_path(here, name), most=1)), None)
    if newest is None:
        raise CliError(f"endpoint/{name} was never measured", hint=f"tenantry benchmark run {name}")
    _print(here, newest)


def cancel(
    ctx: typer.Context,
    name: Name,
    key: Annotated[str, typer.Argument(metavar="BENCHMARK", help="bm-7k2m")],
) -> None:
    """End a benchmark now; what it measured so far is kept."""
    here = session.of(ctx)
    told: Json = here.client.post(f"{_path(here, name)}/{key}/cancel", {}).body
    here.screen.note(f"{told['short_id']} ends" if told["state"] in LIVE else f"{told['short_id']} has ended")


def _path(here: session.Session, name: str) -> str:
    return f"{noun('endpoints').collection(tenant=here.tenant())}/{name}/benchmarks"


def _print(here: session.Session, told: Json) -> None:
    if here.screen.format != "table":
        here.screen.document(told)
        return
    load, result = told["load"], told["result"]
    here.screen.line(
        f"{told['short_id']}  revision {told['revision']}  {told['state']}  {load['requests']} requests of about "
        f"{load['input_tokens']} tokens, {load['output_tokens']} written, {load['concurrency']} at once"
    )
    if told["reason"]:
        here.screen.line(f"  {told['reason']}")
    if result is None:
        return
    for label, value in (
        ("answered", f"{result['answered']}, failed {result['failed']} {_errors(result['errors'])}".rstrip()),
        ("throughput", f"{_of(result['requests_s'])} requests/s, {_of(result['written_tokens_s'])} tokens/s written"),
        ("first token", _times(result["ttft_ms"])),
        ("between tokens", _times(result["between_ms"])),
        ("whole request", _times(result["request_ms"])),
        ("tokens", f"{result['prompt_tokens']} read, {result['completion_tokens']} written"),
    ):
        here.screen.line(f"  {label:<15} {value}")
    if result["simulated"]:
        words = {"gpu": "a real model server, its GPU is simulated", "all": "simulated: no model ran"}
        here.screen.note(words.get(result["simulated"], "simulated"))


def _of(value: float | None) -> str:
    return "--" if value is None else f"{value:.2f}"


def _times(value: dict[str, Any]) -> str:
    return f"p50 {_of(value['p50'])} ms, p99 {_of(value['p99'])} ms"


def _errors(value: dict[str, int]) -> str:
    return f"({', '.join(f'{count} × {kind}' for kind, count in value.items())})" if value else ""
