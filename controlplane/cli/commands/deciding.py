"""Asking people and answering them: `request …`, `requests`, `approve`, `reduce`, `deny`, `proof`, `withdraw`."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import asks, session
from controlplane.cli.cells import stage
from controlplane.cli.client import Json
from controlplane.cli.failures import ApiProblem, UsageFault
from controlplane.cli.nouns import noun

request = typer.Typer(help="Ask people for quota, a tenant, membership, a model, or a write-off.", no_args_is_help=True)

RequestId = Annotated[str, typer.Argument(metavar="REQUEST", help="Its short id: rq-7k2m.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever decides and for later.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(request, name="request")
    app.command()(inbox)
    app.command()(proof)
    app.command()(approve)
    app.command()(reduce)
    app.command()(deny)
    app.command()(withdraw)
    app.command()(comment)


@request.command("quota")
def request_quota(
    ctx: typer.Context,
    limits: Annotated[
        list[str] | None, typer.Argument(metavar="DIMENSION=AMOUNT", help="gpu.H100-80GB.slices=8")
    ] = None,
    above: Annotated[
        list[str] | None, typer.Option(metavar="TENANT:DIMENSION=AMOUNT", help="What is missing further up the tree.")
    ] = None,
    until: Annotated[str, typer.Option(help="Only until then: 2026-12-31 or +30d.")] = "",
    to: Annotated[bool, typer.Option("--set", help="The amounts are the new limits, not what is added.")] = False,
    reason: Reason = "",
) -> None:
    """Ask for more of a limit."""
    here = session.of(ctx)
    ancestors: dict[str, dict[str, int]] = {}
    for word in above or []:
        name, mark, rest = word.partition(":")
        if not mark:
            raise UsageFault(f"--above {word}: write TENANT:DIMENSION=AMOUNT")
        ancestors.setdefault(name, {}).update(asks.limits([rest]))
    payload = {
        "mode": "set" if to else "add",
        "limits": asks.limits(limits or []),
        "ancestors": ancestors,
        "until": asks.instant(until) if until else None,
    }
    submit(here, f"/tenants/{here.tenant()}/requests", {"kind": "quota", "payload": payload, "reason": reason})


@request.command("tenant")
def request_tenant(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A DNS label for the new tenant.")],
    title: Annotated[str, typer.Option(help="Its name for people.")] = "",
    parent: Annotated[str, typer.Option(help="Below this tenant.")] = "",
    limits: Annotated[list[str] | None, typer.Option("--limit", help="First limits: dimension=amount.")] = None,
    reason: Reason = "",
) -> None:
    """Ask for a tenant of your own."""
    here = session.of(ctx)
    payload = {"name": name, "display_name": title or name, "parent": parent, "limits": asks.limits(limits or [])}
    submit(here, "/requests:tenant", {"payload": payload, "reason": reason})


@request.command("join")
def request_join(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument(help="The tenant to join.")],
    role: Annotated[str, typer.Option(help="viewer, member or owner.")] = "member",
    reason: Reason = "",
) -> None:
    """Ask to become a member of a tenant."""
    here = session.of(ctx)
    submit(here, "/requests:join", {"tenant": tenant, "role": role, "reason": reason})


@request.command("write-off")
def request_write_off(
    ctx: typer.Context,
    allocation: Annotated[str, typer.Argument(help="Allocation on a provider that will not come back.")],
    reason: Annotated[str, typer.Option(help="Why it is lost.")],
) -> None:
    """Ask a second person to give up what stands on a lost provider (operators)."""
    here = session.of(ctx)
    submit(here, "/requests:write-off", {"tenant": here.tenant(), "allocation": allocation, "reason": reason})


def submit(here: session.Session, path: str, body: Json) -> None:
    """File a request and say what becomes of it."""
    made = here.client.post(path, {key: value for key, value in body.items() if value != ""}).body
    if here.screen.format != "table":
        here.screen.document(made)
        return
    here.screen.note(f"request {made['short_id']} is {made['state']}")
    if made["state"] == "submitted":
        here.screen.next(f"tenantry proof {made['short_id']}", f"tenantry withdraw {made['short_id']}")


def inbox(ctx: typer.Context) -> None:
    """List what waits for your decision."""
    here = session.of(ctx)
    found = list(here.client.get("/inbox")["items"])
    here.screen.rows(noun("requests"), found)
    if found:
        first = found[0]["short_id"]
        here.screen.next(f"tenantry proof {first}", f"tenantry approve {first}")


def proof(ctx: typer.Context, request_id: RequestId) -> None:
    """Show what a yes would do: where it would run, what it costs, whom it delays."""
    here = session.of(ctx)
    here.screen.document(here.client.get(f"/requests/{request_id}/proof")["proof"])


def approve(
    ctx: typer.Context,
    request_id: RequestId,
    reason: Reason = "",
    again: Annotated[bool, typer.Option("--accept-worse", help="Also when it comes out worse than shown.")] = False,
) -> None:
    """Say yes to exactly the proof you would see now."""
    _decide(session.of(ctx), request_id, {"verdict": "approve", "reason": reason}, accept_worse=again)


def reduce(
    ctx: typer.Context,
    request_id: RequestId,
    *,
    reason: Annotated[str, typer.Option(help="Why; the requester reads it.")],
    limits: Annotated[
        list[str] | None, typer.Argument(metavar="DIMENSION=AMOUNT", help="What is granted instead.")
    ] = None,
    until: Annotated[str, typer.Option(help="Only until then.")] = "",
    role: Annotated[str, typer.Option(help="A smaller role (requests to join).")] = "",
) -> None:
    """Say yes to less than was asked."""
    granted: Json = {}
    if limits:
        granted["limits"] = asks.limits(limits)
    if until:
        granted["until"] = asks.instant(until)
    if role:
        granted["role"] = role
    if not granted:
        raise UsageFault("say what is granted: DIMENSION=AMOUNT, --until or --role")
    _decide(session.of(ctx), request_id, {"verdict": "reduce", "granted": granted, "reason": reason})


def deny(
    ctx: typer.Context, request_id: RequestId, reason: Annotated[str, typer.Option(help="Why; the requester reads it.")]
) -> None:
    """Say no, with the reason."""
    _decide(session.of(ctx), request_id, {"verdict": "deny", "reason": reason})


def _decide(here: session.Session, request_id: str, body: Json, *, accept_worse: bool = False) -> None:
    """Send a verdict bound to the version that was read and, for a yes, to the proof of now."""
    path = f"/requests/{request_id}"
    bound = {key: value for key, value in body.items() if value not in ("", None)}
    if body["verdict"] == "approve":
        shown = here.client.get(f"{path}/proof")
        bound |= {"version": shown["version"], "expect_proof": shown["proof"]}
    else:
        bound["version"] = here.client.get(path)["version"]
    try:
        after = here.client.post(f"{path}/decide", bound).body
    except ApiProblem as problem:
        if problem.code != "outcome-worse" or not accept_worse:
            raise
        after = here.client.post(f"{path}/decide", {**bound, "expect_proof": problem.data["proof"]}).body
    if here.screen.format != "table":
        here.screen.document(after)
        return
    here.screen.note(f"request {after['short_id']} is {after['state']}")
    if after["state"] == "submitted":
        here.screen.note(f"next to decide: {stage(after['stages'])}")


def withdraw(ctx: typer.Context, request_id: RequestId) -> None:
    """Take your own request back."""
    here = session.of(ctx)
    path = f"/requests/{request_id}"
    after = here.client.delete(path, version=here.client.get(path)["version"]).body
    here.screen.note(f"request {after['short_id']} is {after['state']}")


def comment(
    ctx: typer.Context, request_id: RequestId, text: Annotated[str, typer.Argument(help="What you say.")]
) -> None:
    """Say something to a request."""
    here = session.of(ctx)
    here.client.post(f"/requests/{request_id}/comments", {"text": text})
    here.screen.note(f"said at {request_id}")
