"""The root of `tenantry`: global options, the tree of commands, and how a run ends.

Global options may stand anywhere in the line; `hoisted` moves them to the front, where click wants them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Final

import typer

from controlplane.cli import session as sessions
from controlplane.cli.commands import (
    access,
    applying,
    cataloguing,
    console,
    deciding,
    feeding,
    kube,
    machine_login,
    measuring,
    moving,
    operating,
    products,
    reading,
    serving,
    tenancy,
)
from controlplane.cli.failures import CliError, ExitCode, UsageFault
from controlplane.cli.screen import FORMATS, Format, Screen

_WITH_VALUE: Final = {"-o": "--output", "--output": "--output", "-T": "--tenant", "--tenant": "--tenant",
                      "--context": "--context", "--url": "--url"}  # fmt: skip
_FLAGS: Final = {"-q": "--quiet", "--quiet": "--quiet", "--no-color": "--no-color"}
_ENDS: Final = (
    "Global options (-o, -q, --no-color, -T, --context, --url) may stand anywhere. "
    "Exit status: 0 done, 1 failed, 2 wrong words or refused input, 3 findings, 4 not found, "
    "5 not logged in or not allowed, 6 conflict or quota, 7 time is over."
)

app = typer.Typer(
    name="tenantry",
    help="Isolated shares of GPUs and model endpoints: ask, decide, watch, give back.",
    epilog=_ENDS,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (
    access,
    reading,
    products,
    moving,
    kube,
    machine_login,
    console,
    measuring,
    applying,
    deciding,
    tenancy,
    operating,
    serving,
    feeding,
    cataloguing,
):
    part.add_to(app)


@app.callback()
def root(
    ctx: typer.Context,
    output: Annotated[str, typer.Option("--output", "-o", help="table, json or yaml.")] = "table",
    tenant: Annotated[str, typer.Option("--tenant", "-T", help="The tenant that is meant.")] = "",
    context: Annotated[str, typer.Option(help="A context of the configuration file.")] = "",
    url: Annotated[str, typer.Option(help="Address of the control plane.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Data and errors only.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (also: NO_COLOR=1).")] = False,
) -> None:
    """Isolated shares of GPUs and model endpoints: ask, decide, watch, give back."""
    chosen = next((each for each in FORMATS if each == output), None)
    if chosen is None:
        raise UsageFault(f"--output {output}: choose one of {', '.join(FORMATS)}")
    if isinstance(ctx.obj, sessions.Session):  # a test gave its own
        ctx.obj.screen.format, ctx.obj.screen.quiet = chosen, quiet
        ctx.obj.tenant_word, ctx.obj.context_name, ctx.obj.url = tenant, context, url
        return
    screen = Screen(chosen, quiet, not (no_color or os.environ.get("NO_COLOR")))
    ctx.obj = sessions.Session(screen, context, url, tenant)
    ctx.call_on_close(ctx.obj.close)


def hoisted(arguments: Sequence[str]) -> list[str]:
    """Return the line with the global options in front; what follows `--` stays where it is."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
            break
        name, mark, value = word.partition("=")
        if word in _FLAGS:
            front.append(_FLAGS[word])
        elif mark and name in _WITH_VALUE and name.startswith("--"):
            front.append(f"{_WITH_VALUE[name]}={value}")
        elif word in _WITH_VALUE:
            given = next(words, None)
            front += [_WITH_VALUE[word]] if given is None else [f"{_WITH_VALUE[word]}={given}"]
        else:
            rest.append(word)
    return [*front, *rest]


def run(arguments: Sequence[str], *, session: sessions.Session | None = None) -> int:
    """Run one line of words; returns the exit status, never raises for what people can do wrong."""
    words = hoisted(arguments)
    command = _command()
    screen = session.screen if session is not None else _screen_of(words)
    try:
        answer = command.main(args=words, prog_name="tenantry", standalone_mode=False, obj=session)
    except CliError as error:
        screen.failure(error)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the reader is gone; lives as long as the process
        return int(ExitCode.OK)
    except Exception as error:  # noqa: BLE001 - bugs are raised again
        return _of_click(error, screen)
    return answer if isinstance(answer, int) else int(ExitCode.OK)


@cache
def _command() -> Any:
    """Return the tree of commands, built once."""
    return typer.main.get_command(app)


def _of_click(error: Exception, screen: Screen) -> int:
    """Return the status of an error that the parser of options raised; anything else is a bug and goes on."""
    if isinstance(error, typer.Abort):
        return int(ExitCode.ERROR)
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    said = getattr(error, "format_message", None)
    if said is None:
        raise error
    screen.failure(UsageFault(said(), hint="tenantry --help"))
    return int(ExitCode.USAGE)


def _screen_of(words: Sequence[str]) -> Screen:
    """Return a screen for errors before the root callback has run."""
    wanted: Format = next((each for each in FORMATS if f"--output={each}" in words), "table")
    return Screen(wanted, "--quiet" in words, not ("--no-color" in words or os.environ.get("NO_COLOR")))


def main() -> None:
    """Entry of the console script."""
    sys.exit(run(sys.argv[1:]))
