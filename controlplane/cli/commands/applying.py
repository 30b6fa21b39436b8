"""Objects from files: `apply` and `plan`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from controlplane.cli import asks, documents, session
from controlplane.cli.client import Json
from controlplane.cli.commands.reading import wait_for
from controlplane.cli.documents import Change, Document
from controlplane.cli.failures import CliError, ExitCode, UsageFault
from controlplane.cli.nouns import noun
from controlplane.cli.screen import plan_tables

SIGNS = {"create": ("+", "green"), "change": ("~", "yellow"), "same": ("=", "bright_black"), "delete": ("-", "red")}

Files = Annotated[list[str], typer.Option("--file", "-f", help="YAML file or folder; '-' is standard input.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", "-l", help="key=value, put on each and asked for by --prune.")
]
Prune = Annotated[bool, typer.Option(help="Delete what has these labels and this manager and stands in no file.")]
Manager = Annotated[str, typer.Option(help="git, api or cli: who looks after these objects.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("apply")(apply)
    app.command("plan")(plan)


def plan(
    ctx: typer.Context, files: Files, labels: Labels = None, prune: Prune = False, managed_by: Manager = "git"
) -> None:
    """Say what `apply` would do, changing nothing. Ends with 3 when there is something to do."""
    here = session.of(ctx)
    changes = _changes(here, files, labels or [], prune=prune, managed_by=managed_by)
    if here.screen.format != "table":
        here.screen.document([_as_json(here, change, managed_by) for change in changes])
    else:
        for change in changes:
            _show(here, change)
            if change.verb in {"create", "change"} and change.document is not None:
                plan_tables(here.screen, _planned(here, change, managed_by))
    if any(change.verb != "same" for change in changes):
        raise typer.Exit(int(ExitCode.FINDINGS))


def apply(
    ctx: typer.Context,
    files: Files,
    only_plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    labels: Labels = None,
    prune: Prune = False,
    managed_by: Manager = "git",
    wait: Annotated[str, typer.Option("--wait", help="Stay until all are Ready, at most so long: 10m.")] = "",
) -> None:
    """Bring objects to what the files say. Safe to repeat; what is as it should be is left alone."""
    if only_plan:
        plan(ctx, files, labels, prune, managed_by)
        return
    here = session.of(ctx)
    changes = _changes(here, files, labels or [], prune=prune, managed_by=managed_by)
    failed: list[CliError] = []
    done: list[Json] = []
    for change in changes:
        _show(here, change)
        try:
            answer = _do(here, change, managed_by)
        except CliError as error:
            here.screen.failure(error)
            failed.append(error)
            continue
        done.append({"verb": change.verb, "kind": change.noun.singular, "name": change.name, "object": answer})
        if answer is not None and answer.get("key"):
            here.screen.note(f"first key of {change.name}, shown only now:")
            if here.screen.format == "table":
                here.screen.line(str(answer["key"]))
    if here.screen.format != "table":
        here.screen.document(done)
    if wait and not failed:
        for change in changes:
            if change.verb != "delete":
                local = session.Session(
                    here.screen, here.context_name, here.url, change.tenant, here.environ, here.transport
                )
                wait_for(local, change.noun, change.name, goals=["Ready"], timeout_s=asks.seconds(wait))
    if failed:
        raise typer.Exit(int(failed[0].exit_code))


def _changes(
    here: session.Session, files: Sequence[str], labels: Sequence[str], *, prune: bool, managed_by: str
) -> list[Change]:
    """Read files and live objects; return what to do, deletions last."""
    if managed_by not in documents.MANAGERS:
        raise UsageFault(f"--managed-by {managed_by}: choose one of {', '.join(sorted(documents.MANAGERS))}")
    own = asks.pairs(labels)
    wanted = list(_read(files, here.context.tenant, own))
    documents.check(wanted)
    changes = [documents.change_of(each, _present(here, each), managed_by=managed_by) for each in wanted]
    if prune:
        for tenant in sorted({each.tenant for each in wanted} or {here.tenant()}):
            for kind in documents.KINDS.values():
                of = noun(kind)
                live = here.client.items(
                    of.collection(tenant=tenant),
                    live=True,
                    managed_by=managed_by,
                    label=[f"{k}={v}" for k, v in own.items()],
                )
                found = (item for item in live if kind != "allocations" or item.get("product_kind") == "bare")
                changes += documents.prunable(wanted, found, of=of, labels=own, managed_by=managed_by)
    return changes


def _read(files: Sequence[str], tenant: str, labels: dict[str, str]) -> Iterator[Document]:
    for word in files:
        if word == "-":
            yield from documents.read(sys.stdin.read(), source="standard input", tenant=tenant, labels=labels)
            continue
        path = Path(word)
        found = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
        if not found:
            raise UsageFault(f"no .yaml file in {path}")
        for file in found:
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageFault(f"{file} cannot be read: {error}") from error
            yield from documents.read(text, source=str(file), tenant=tenant, labels=labels)


def _present(here: session.Session, document: Document) -> Json | None:
    """Return the live object of a document, None for none; a released one of the name is none."""
    items = here.client.items(document.noun.collection(tenant=document.tenant), name=document.name, live=True)
    return next(
        (item for item in items if document.noun.name != "allocations" or item.get("product_kind") == "bare"), None
    )


def _do(here: session.Session, change: Change, managed_by: str) -> Json | None:
    path = change.noun.collection(tenant=change.tenant)
    match change.verb:
        case "same":
            return change.present
        case "delete":
            assert change.present is not None
            body = here.client.delete(f"{path}/{change.present['id']}", version=change.present["version"]).body
        case "create" if change.noun.name == "allocations":
            assert change.document is not None
            body = here.client.post(path, {"name": change.name, **change.document.body(managed_by)}).body
        case "change" if change.noun.name == "allocations":
            raise CliError(f"{change.name}: capacity without a product cannot be changed; delete it and apply again")
        case _:
            assert change.document is not None
            version = (change.present or {}).get("version")
            body = here.client.put(f"{path}/{change.name}", change.document.body(managed_by), version=version).body
    return body if isinstance(body, dict) else None


def _planned(here: session.Session, change: Change, managed_by: str) -> Json:
    """Return the API's plan of a creation or change."""
    assert change.document is not None
    path = change.noun.collection(tenant=change.tenant)
    body = change.document.body(managed_by)
    if change.verb == "create":
        found = here.client.post(path, {"name": change.name, **body}, plan=True).body
    else:
        found = here.client.put(f"{path}/{change.name}", body, plan=True).body
    return found if isinstance(found, dict) else {}


def _as_json(here: session.Session, change: Change, managed_by: str) -> Json:
    planned = _planned(here, change, managed_by) if change.verb in {"create", "change"} else None
    return {
        "verb": change.verb,
        "kind": change.noun.singular,
        "tenant": change.tenant,
        "name": change.name,
        "differences": list(change.differences),
        "plan": planned,
    }


def _show(here: session.Session, change: Change) -> None:
    sign, style = SIGNS[change.verb]
    if here.screen.format != "table":
        return
    here.screen.err.print(Text(f"{sign} {change.noun.singular}/{change.name} of {change.tenant}", style=style))
    for difference in change.differences:
        here.screen.err.print(Text(f"    {difference}"))
