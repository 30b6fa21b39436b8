"""The catalogue of served models: `model …`, and `request model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli import session
from controlplane.cli.client import Json
from controlplane.cli.commands.deciding import Reason, request, submit
from controlplane.cli.failures import UsageFault

model = typer.Typer(help="Served models: what they are and what is known of them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="What people choose it by; a tenant's own begins with its name.")]
Repository = Annotated[str, typer.Option(help="Owner and name where its weights are published.")]
Commit = Annotated[str, typer.Option(help="The full commit; no branch and no tag.")]
Licence = Annotated[str, typer.Option(help="As its publisher names it.")]
Gating = Annotated[str, typer.Option(help="What its publisher asks for before the weights may be loaded.")]
Source = Annotated[str, typer.Option(help="hub, s3://bucket/prefix or nfs://server/export.")]
Task = Annotated[str, typer.Option(help="generate or embed; left out: what it is usually for.")]
Config = Annotated[Path | None, typer.Option(help="Its config.json; needed where the catalogue does not know it.")]
Folder = Annotated[
    Path | None, typer.Option(help="A local copy of the commit: its config.json, and the bytes of each file.")
]
CorrectionId = Annotated[str, typer.Argument(metavar="CORRECTION", help="Its id: `tenantry get fit-corrections`.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(model, name="model")


@model.command("offer")
def offer(
    ctx: typer.Context,
    name: Name,
    repository: Repository,
    commit: Commit,
    licence: Licence = "",
    gating: Gating = "",
    source: Source = "hub",
    task: Task = "",
    config: Config = None,
    folder: Folder = None,
    plan: Annotated[bool, typer.Option("--plan", help="Check it and offer nothing.")] = False,
) -> None:
    """Offer a model at a pinned commit (operators); it is checked without fetching anything."""
    here = session.of(ctx)
    body = asked(name, repository, commit, licence, gating, source, task, config, folder)
    made = here.client.post("/served-models", body, **({"plan": "true"} if plan else {})).body
    if plan or here.screen.format != "table":
        here.screen.document(made)
        return
    here.screen.note(f"served-model/{made['name']} is offered, pinned to {made['commit'][:12]}")


@model.command("retire")
def retire(ctx: typer.Context, name: Name) -> None:
    """Let nobody deploy a model any more (operators); what serves it goes on."""
    _switch(ctx, name, enabled=False)


@model.command("restore")
def restore(ctx: typer.Context, name: Name) -> None:
    """Offer a retired model again (operators)."""
    _switch(ctx, name, enabled=True)


@model.command("stage")
def stage(
    ctx: typer.Context, name: Name, provider: Annotated[str, typer.Option(help="Where its files are to be.")]
) -> None:
    """Have a model's files brought to a provider before an endpoint asks for them (operators)."""
    here = session.of(ctx)
    made = here.client.post("/model-stages", {"model": name, "provider": provider}).body
    if here.screen.format != "table":
        here.screen.document(made)
        return
    here.screen.note(f"the files of {made['model']} are asked for at {made['provider']}")
    here.screen.next("tenantry get model-stages")


@model.command("unstage")
def unstage(
    ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="STAGE", help="Its id: `get model-stages`.")]
) -> None:
    """Have a model's files taken away from a provider (operators); what serves from them goes on."""
    here = session.of(ctx)
    after = here.client.post(f"/model-stages/{name}/remove").body
    if here.screen.format != "table":
        here.screen.document(after)
        return
    here.screen.note(f"the files of {after['model']} leave {after['provider']}")


@request.command("model")
def request_model(
    ctx: typer.Context,
    name: Name,
    repository: Repository,
    commit: Commit,
    licence: Licence = "",
    gating: Gating = "",
    source: Source = "hub",
    task: Task = "",
    config: Config = None,
    folder: Folder = None,
    reason: Reason = "",
) -> None:
    """Ask for a model of the tenant's own, at a pinned commit."""
    here = session.of(ctx)
    payload = asked(name, repository, commit, licence, gating, source, task, config, folder)
    submit(here, f"/tenants/{here.tenant()}/requests:model", {"payload": payload, "reason": reason})


def asked(
    name: str, repository: str, commit: str, licence: str, gating: str, source: str, task: str,
    config: Path | None, folder: Path | None,
) -> Json:  # fmt: skip
    """Return a model as the API takes it. Raises `UsageFault` for files that cannot be read."""
    if config is not None and folder is not None:
        raise UsageFault("give --config or --folder, not both")
    body: dict[str, Any] = {"name": name, "repository": repository, "commit": commit, "source": source}
    body |= {key: value for key, value in {"licence": licence, "gating": gating, "task": task}.items() if value}
    if folder is not None:
        body["files"] = {
            str(each.relative_to(folder)): each.stat().st_size for each in sorted(folder.rglob("*")) if each.is_file()
        }
        config = folder / "config.json"
    if config is not None:
        try:
            body["config"] = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageFault(f"{config}: {error}") from error
    return body


def _switch(ctx: typer.Context, name: str, *, enabled: bool) -> None:
    here = session.of(ctx)
    path = f"/served-models/{name}"
    after = here.client.patch(path, {"enabled": enabled}, version=here.client.get(path)["version"]).body
    if here.screen.format != "table":
        here.screen.document(after)
        return
    here.screen.note(f"served-model/{after['name']} is {'offered again' if enabled else 'retired'}")


@model.command("reset-estimate")
def reset_estimate(ctx: typer.Context, name: CorrectionId) -> None:
    """Forget what starts have taught about a model on one size (operators): the next start teaches anew."""
    here = session.of(ctx)
    after = here.client.post(f"/fit-corrections/{name}/reset").body
    if here.screen.format != "table":
        here.screen.document(after)
        return
    size = f"{after['product']} {after['profile']}".strip()
    here.screen.note(f"{after['model']} on {size}: estimates are as computed until the next start")
