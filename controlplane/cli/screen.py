"""What a person or a machine sees: tables, YAML, JSON on stdout; notes, errors and NEXT on stderr.

Text of the API is shown as text: no markup of a name or description reaches the terminal as such.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from controlplane.cli.cells import said
from controlplane.cli.failures import ApiProblem, CliError
from controlplane.cli.nouns import Column, Noun, cell
from controlplane.cli.words import ago, amount, moment, until

Format = Literal["table", "json", "yaml"]
FORMATS: Final[tuple[Format, ...]] = ("table", "json", "yaml")
COLOURS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("Ready", "approved", "open", "active", "done"), "green"),
    **dict.fromkeys(("Failed", "Degraded", "denied"), "red"),
    **dict.fromkeys(("AwaitingApproval", "Waiting", "Expiring", "submitted", "reduced", "draining"), "yellow"),
    **dict.fromkeys(("Suspended", "suspended", "keys", "network", "power"), "magenta"),
    **dict.fromkeys(("Provisioning", "Deleting", "running"), "cyan"),
    **dict.fromkeys(("Released", "closed", "removed", "cancelled"), "bright_black"),
}
COLOURED: Final = frozenset({"phase", "state", "status", "suspended"})
LONG: Final = frozenset({"why", "names", "pairs", "prices"})
"""Forms of cells that may take several lines."""
WIDE: Final = 1000
"""Columns of a table that goes into a file or pipe: nothing is cut."""


@dataclass
class Screen:
    """Both streams and how they are wanted."""

    format: Format = "table"
    quiet: bool = False
    colour: bool = True
    out: Console = field(init=False)
    err: Console = field(init=False)

    def __post_init__(self) -> None:
        """Open the consoles on the streams of now."""
        plain = None if self.colour else True
        self.out = Console(no_color=plain, highlight=False, width=None if sys.stdout.isatty() else WIDE)
        self.err = Console(
            stderr=True, no_color=plain, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else WIDE
        )

    # --- data, on stdout ------------------------------------------------------------------------------

    def document(self, body: Any) -> None:
        """Show one object: JSON or YAML as it came, else its fields line by line."""
        if self.format == "json":
            sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
        elif self.format == "yaml" or not isinstance(body, Mapping):
            sys.stdout.write(as_yaml(body))
        else:
            self.out.print(fields_table(body))

    def rows(self, noun: Noun, items: Sequence[Mapping[str, Any]], *, wide: bool = False) -> None:
        """Show a list: JSON or YAML whole, else a table of the noun's columns."""
        if self.format != "table":
            self.document(list(items))
            return
        if not items:
            self.note(f"no {noun.name}")
            return
        self.out.print(table_of(noun, items, wide=wide))

    def line(self, text: str) -> None:
        """Show one line of data (an id, a key): plain, so that it can be piped."""
        sys.stdout.write(text + "\n")

    # --- words for people, on stderr --------------------------------------------------------------------

    def note(self, text: str, *, style: str = "") -> None:
        """Say something beside the data."""
        if not self.quiet:
            self.err.print(Text(text, style=style))

    def next(self, *commands: str) -> None:
        """Say what to do next."""
        if self.quiet or self.format != "table":
            return
        for command in commands:
            self.err.print(Text.assemble(("NEXT: ", "bold"), command))

    def failure(self, error: CliError) -> None:
        """Say what went wrong; also when quiet. A problem as JSON when JSON is wanted."""
        if isinstance(error, ApiProblem):
            self._problem(error)
        else:
            self.err.print(Text.assemble(("error: ", "bold red"), error.message))
        if error.hint and self.format == "table":
            self.err.print(Text.assemble(("NEXT: ", "bold"), error.hint))

    def _problem(self, problem: ApiProblem) -> None:
        if self.format == "json":
            body = {
                "status": problem.status, "code": problem.code, "title": problem.title, "detail": problem.detail,
                "errors": list(problem.faults), "data": dict(problem.data),
            }  # fmt: skip
            self.err.file.write(json.dumps(body, ensure_ascii=False) + "\n")
            return
        self.err.print(Text.assemble(("error: ", "bold red"), f"{problem.title} ({problem.status} {problem.code})"))
        reasons = {fault.get("reason") for fault in problem.faults}
        if problem.detail and problem.detail != problem.title and problem.detail not in reasons:
            self.err.print(Text(f"  {problem.detail}"))
        for fault in problem.faults:
            self.err.print(Text(f"  {fault.get('field') or 'request'}: {fault.get('reason')}"))
        if shortages := problem.data.get("shortages"):
            self.err.print(shortage_table(shortages))
        if earliest := problem.data.get("earliest"):
            self.err.print(Text(f"  earliest without a decision: {earliest}"))
        if problem.request_id:
            self.err.print(Text(f"  quote to the operators: {problem.request_id}"))


def as_yaml(body: Any) -> str:
    """Return YAML that reads back to the same."""
    return str(yaml.safe_dump(body, sort_keys=False, allow_unicode=True, default_flow_style=False))


def table_of(noun: Noun, items: Iterable[Mapping[str, Any]], *, wide: bool = False) -> Table:
    """Return a table of the noun's columns; one that is empty in every row is left out unless `wide`."""
    rows = [[cell(dict(item), column) for column in noun.columns] for item in items]
    kept = [n for n, _ in enumerate(noun.columns) if wide or any(row[n] != "-" for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for n in kept:
        table.add_column(noun.columns[n].head, overflow="fold", no_wrap=noun.columns[n].form not in LONG)
    for row in rows:
        table.add_row(*(_styled(row[n], noun.columns[n]) for n in kept))
    return table


def fields_table(body: Mapping[str, Any]) -> Table:
    """Return one object's fields, one line each; nested ones as YAML."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in body.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping | list):
            text = Text(as_yaml(value).rstrip())
        else:
            text = _styled(said(value), Column("", name))
        table.add_row(escape(name), text)
    return table


def shortage_table(shortages: Iterable[Mapping[str, Any]]) -> Table:
    """Return the limits that are in the way: whose, how much is used, asked and missing, and who holds it."""
    table = _plain_table("LIMIT OF", "DIMENSION", "FROM", "LIMIT", "USED", "ASKED", "MISSING", "HELD BY")
    for short in shortages:
        holders = [
            f"{each.get('tenant')}{'/' + each['name'] if each.get('name') else ''} {each.get('amount')}"
            for each in short.get("held_by") or []
        ]
        numbers = (amount(short.get(key, 0)) for key in ("limit", "used", "asked", "missing"))
        words = (short.get("tenant"), short.get("dimension"), moment(str(short.get("since") or "")), *numbers)
        table.add_row(*(Text(str(word)) for word in words), Text(", ".join(holders) or "-"))
    return table


def _styled(text: str, column: Column) -> Text:
    return Text(text, style=COLOURS.get(text, "") if column.path in COLOURED else "")


def story(screen: Screen, body: Mapping[str, Any]) -> None:
    """Show why an object is as it is: phase and reason first, then where it is, when it ends, what happened."""
    if screen.format != "table":
        screen.document(body)
        return
    facts: dict[str, Any] = {"phase": f"{body['phase']}"}
    if body.get("why"):
        facts["why"] = f"{body['why']} ({body['reason']})"
    facts["next"] = body.get("next_step")
    if step := body.get("running_step"):
        facts["step"] = (
            f"{step['step']}{' (undoing)' if step['undo'] else ''}: {step['outcome']} {step['error']}".rstrip()
        )
    if waiting := body.get("waiting"):
        place = waiting.get("position")
        facts["waiting"] = f"since {ago(str(waiting['since']))}" + (f", number {place} in the queue" if place else "")
        fits = [f"{fit['product']}/{fit['profile']}".rstrip("/") for fit in waiting.get("fits_instead") or []]
        facts["fits now"] = ", ".join(fits)
    for unit in body.get("placement") or []:
        windows = [f"{w['host']} GPU {w['gpu']} [{w['start']}, {w['start'] + w['size']})" for w in unit["windows"]]
        facts[f"unit {unit['unit']}"] = ", ".join(windows)
    if boundary := body.get("boundary"):
        note = " (simulated)" if boundary["simulated"] else ""
        facts["boundary"] = (
            f"{boundary['short_id']}: {boundary['kind']} on {boundary['provider']}{note}, {boundary['phase']}"
        )
    ends = body.get("ends") or {}
    if ends.get("expires_at"):
        facts["ends"] = f"{until(ends['expires_at'])}, class {ends['service_class']}"
    facts["requests"] = ", ".join(f"{each['short_id']} {each['state']}" for each in body.get("requests") or [])
    screen.out.print(Text(f"{body['kind']}/{body.get('name') or body['short_id']} ({body['short_id']})", style="bold"))
    screen.out.print(fields_table(facts))
    table = _plain_table("WHEN", "WHAT", "BY", "TOOK", "OUTCOME")
    for row in body.get("timeline") or []:
        took = f"{row['seconds']:.1f} s" if row.get("seconds") is not None else ""
        words = (moment(row["at"], seconds=True), row["what"], row.get("by") or "", took, row.get("outcome") or "")
        table.add_row(*(Text(str(word)) for word in words))
    screen.out.print(table)


def plan_tables(screen: Screen, plan: Mapping[str, Any]) -> None:
    """Show what a change would do: phase, windows, effect on limits, cost. Nothing was changed."""
    if screen.format != "table":
        screen.document(plan)
        return
    outcome = plan.get("outcome") or {}
    screen.out.print(Text(f"would be {outcome.get('phase', 'done')}: {plan.get('operation')}; nothing was changed"))
    if plan.get("placement"):
        table = _plain_table("UNIT", "HOST", "GPU", "PROFILE", "WINDOW")
        for window in plan["placement"]:
            end = window["start"] + window["size"]
            table.add_row(
                *(Text(str(word)) for word in (
                    window["unit"], window["host"], f"{window['product']} #{window['device']}",
                    window["profile"] or "whole", f"[{window['start']}, {end})",
                ))
            )  # fmt: skip
        screen.out.print(table)
    if plan.get("quota"):
        table = _plain_table("LIMIT OF", "DIMENSION", "LIMIT", "USED NOW", "USED THEN")
        for effect in plan["quota"]:
            words = (effect["tenant"], effect["dimension"], *(
                said(effect[key], "amount") for key in ("limit", "used_before", "used_after")
            ))  # fmt: skip
            table.add_row(*(Text(str(word)) for word in words))
        screen.out.print(table)
    cost = plan.get("cost") or {}
    if cost.get("hourly") is not None:
        screen.out.print(Text(f"cost: {cost['hourly']} an hour, {cost['to_the_end']} to the end"))
    elif cost.get("note"):
        screen.out.print(Text(f"cost: {cost['note']}"))


def level_table(levels: Iterable[Mapping[str, Any]]) -> Table:
    """Return limits and use from the root of the tree down: whose, how much is held, pending and left."""
    table = _plain_table("TENANT", "DIMENSION", "LIMIT", "HELD", "PENDING", "LEFT")
    for level in levels:
        used = level["held"] + level["pending"]
        limit, left = amount(level["limit"]), amount(level["limit"] - used)
        if level["inherits"]:
            limit, left = "inherits", "-"
        elif level["limit"] == 0 and is_profile(level["dimension"]):
            limit, left = "none", "-"
        words = (level["tenant"], level["dimension"], limit, amount(level["held"]), amount(level["pending"]), left)
        table.add_row(*(Text(str(word)) for word in words))
    return table


def is_profile(dimension: str) -> bool:
    """Whether a dimension counts one MIG profile: without a limit of its own it is not limited."""
    parts = dimension.split(".", 2)
    return parts[0] == "gpu" and len(parts) == 3 and parts[2] != "slices"


def _plain_table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table
