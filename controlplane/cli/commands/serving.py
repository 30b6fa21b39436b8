"""On the machine that runs Tenantry: `up`, `demo`, `down`, `reset`, `status`, `doctor`, `ledger audit`, `audit verify`.

Each starts `python -m controlplane…` as a child process and ends with its status; nothing of Django is imported here.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import session
from controlplane.cli.config import DEFAULT_URL
from controlplane.cli.failures import UsageFault

ledger = typer.Typer(help="The ledger of GPU windows.", no_args_is_help=True)
audit = typer.Typer(help="The trail of events.", no_args_is_help=True)

ANY_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    for verb, words in (
        ("up", "Start everything on this machine and stay until Ctrl-C."),
        ("demo", "Start everything, walk the golden path, then stay (--exit: stop, with its status)."),
        ("down", "Stop everything that runs from this state folder."),
        ("reset", "Stop everything and delete all its data (--yes asks nothing)."),
        ("status", "Show what runs."),
        ("doctor", "Check this machine and everything that runs."),
    ):
        _embedded_verb(app, verb, words)
    app.add_typer(ledger, name="ledger")
    app.add_typer(audit, name="audit")
    _management_verb(
        ledger, "audit", "ledger_audit", "Compare holds, masks, counters, quotas, usage. 0 clean, 3 findings."
    )
    _management_verb(audit, "verify", "audit_verify", "Recompute every event hash and chain. 0 whole, 3 broken.")
    _management_verb(
        app, "bootstrap", "bootstrap", "Make the first operator (and with --demo, the demo's people).", "owner"
    )
    app.command("demo-walk", hidden=True)(demo_walk)


def _embedded_verb(app: typer.Typer, verb: str, words: str) -> None:
    def command(ctx: typer.Context) -> None:
        raise typer.Exit(run_child("controlplane.embedded", verb, *ctx.args))

    app.command(verb, help=words, context_settings=ANY_WORDS)(command)


def _management_verb(app: typer.Typer, verb: str, name: str, words: str, process: str = "worker") -> None:
    """Add a management command; without a database in the environment it runs in the embedded installation."""

    def command(ctx: typer.Context) -> None:
        given = [*ctx.args]
        if session.of(ctx).screen.format == "json" and process == "worker":
            given.append("--json")
        words = [name, "--skip-checks", *given]
        if "DATABASE_URL" in os.environ:
            os.environ.setdefault("TENANTRY_PROCESS", process)
            raise typer.Exit(run_child("controlplane", *words))
        raise typer.Exit(
            run_child("controlplane.embedded", "exec", process, sys.executable, "-m", "controlplane", *words)
        )

    app.command(verb, help=words, context_settings=ANY_WORDS)(command)


def demo_walk(
    ctx: typer.Context,
    logins: Annotated[Path | None, typer.Option(help="File with the demo people's log-ins.")] = None,
) -> None:
    """Walk the golden path against a running control plane with the demo's people."""
    from controlplane.cli import walk

    here = session.of(ctx)
    url = here.url or os.environ.get("TENANTRY_PUBLIC_URL") or here.context.url or DEFAULT_URL
    state = os.environ.get("TENANTRY_STATE_DIR")
    if logins is None and state is None:
        raise UsageFault("where are the log-ins? Give --logins FILE or TENANTRY_STATE_DIR")
    raise typer.Exit(walk.main(url, logins or Path(str(state)) / "demo-logins.json"))


def run_child(module: str, *words: str) -> int:
    """Run `python -m module words…` to its end, handing signals on; returns its exit status."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:  # pragma: no cover - only in a broken installation
        raise UsageFault(f"{module} is not installed here")
    child = subprocess.Popen([sys.executable, "-m", module, *words])
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: child.send_signal(got))
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the terminal sent it to the child too: wait for its orderly end
            continue
