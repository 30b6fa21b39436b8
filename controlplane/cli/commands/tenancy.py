"""Tenants for their owners and operators: `tenant …`, `member …`, `quota …`, `service-account …`."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import asks, session
from controlplane.cli.client import Json
from controlplane.cli.failures import UsageFault
from controlplane.cli.nouns import noun
from controlplane.cli.screen import level_table

tenant = typer.Typer(help="Make, change, suspend, resume and close tenants.", no_args_is_help=True)
member = typer.Typer(help="Who belongs to a tenant.", no_args_is_help=True)
quota = typer.Typer(help="Limits of a tenant.", no_args_is_help=True)
account = typer.Typer(help="Principals for programs.", no_args_is_help=True)

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="A tenant.")]
Email = Annotated[str, typer.Argument(metavar="E-MAIL", help="A person's e-mail address.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(tenant, name="tenant")
    app.add_typer(member, name="member")
    app.add_typer(quota, name="quota")
    app.add_typer(account, name="service-account")


@tenant.command("create")
def tenant_create(
    ctx: typer.Context,
    name: TenantName,
    title: Annotated[str, typer.Option(help="Its name for people.")] = "",
    parent: Annotated[str, typer.Option(help="Below this tenant.")] = "",
    owner: Annotated[str, typer.Option(help="E-mail of its first owner.")] = "",
    description: Annotated[str, typer.Option(help="A sentence about it.")] = "",
) -> None:
    """Make a tenant (operators; owners of the parent)."""
    here = session.of(ctx)
    body: Json = {"name": name, "display_name": title or name, "managed_by": "cli"}
    body |= {key: value for key, value in {"owner_email": owner, "description": description}.items() if value}
    made = here.client.post(f"/tenants/{parent}/children" if parent else "/tenants", body).body
    here.screen.note(f"tenant/{made['name']} is {made['status']}")
    here.screen.next(f"tenantry quota set {made['name']} gpu.H100-80GB.slices=8")


@tenant.command("suspend")
def tenant_suspend(
    ctx: typer.Context,
    name: TenantName,
    reason: Annotated[str, typer.Option(help="Why; its members read it.")],
    depth: Annotated[str, typer.Option(help="keys (refused), network (cut off) or power (to zero).")] = "keys",
    until: Annotated[str, typer.Option(help="Resumes by itself then: +2h.")] = "",
) -> None:
    """Suspend a tenant and all below it; what it holds is kept."""
    here = session.of(ctx)
    body: Json = {"depth": depth, "reason": reason, **({"until": asks.instant(until)} if until else {})}
    version = here.client.get(f"/tenants/{name}")["version"]
    here.client.put(f"/tenants/{name}/suspension", body, version=version)
    here.screen.note(f"tenant/{name} is suspended: {depth}")
    here.screen.next(f"tenantry tenant resume {name}")


@tenant.command("resume")
def tenant_resume(ctx: typer.Context, name: TenantName) -> None:
    """End a suspension; everything goes back to what it was."""
    here = session.of(ctx)
    version = here.client.get(f"/tenants/{name}")["version"]
    here.client.delete(f"/tenants/{name}/suspension", version=version)
    here.screen.note(f"tenant/{name} is resumed")


@tenant.command("close")
def tenant_close(ctx: typer.Context, name: TenantName) -> None:
    """Close a tenant that holds nothing any more."""
    here = session.of(ctx)
    version = here.client.get(f"/tenants/{name}")["version"]
    after = here.client.delete(f"/tenants/{name}", version=version).body
    here.screen.note(f"tenant/{name} is {after['status']}")


@tenant.command("policy")
def tenant_policy(
    ctx: typer.Context,
    name: TenantName,
    rules: Annotated[list[str], typer.Argument(metavar="RULE=VALUE,…", help="sites=berlin,munich longest=30d …")],
) -> None:
    """Replace a tenant's policy; a child only narrows what its parents allow."""
    here = session.of(ctx)
    body: Json = {}
    for key, value in asks.pairs(rules).items():
        if key in {"longest", "longest_s"}:
            body["longest_s"] = int(value) if value.isdigit() else asks.seconds(value)
        elif key in {"requests_per_minute", "tokens_per_minute"}:
            body[key] = asks.whole(value, key)
        else:
            body[key] = [word for word in value.split(",") if word]
    version = here.client.get(f"/tenants/{name}")["version"]
    here.screen.document(here.client.put(f"/tenants/{name}/policy", body, version=version).body)


@member.command("add")
def member_add(
    ctx: typer.Context, email: Email, role: Annotated[str, typer.Option(help="viewer, member or owner.")] = "member"
) -> None:
    """Make a person a member."""
    here = session.of(ctx)
    made = here.client.post(f"/tenants/{here.tenant()}/members", {"email": email, "role": role}).body
    here.screen.note(f"{made['email']} is {made['role']} of {made['tenant']}")


@member.command("role")
def member_role(
    ctx: typer.Context, email: Email, role: Annotated[str, typer.Argument(help="viewer, member or owner.")]
) -> None:
    """Give a member another role."""
    here = session.of(ctx)
    found = _member(here, email)
    path = f"/tenants/{here.tenant()}/members/{found['person']}"
    made = here.client.patch(path, {"role": role}, version=found["version"]).body
    here.screen.note(f"{made['email']} is {made['role']} of {made['tenant']}")


@member.command("remove")
def member_remove(ctx: typer.Context, email: Email) -> None:
    """Take a member out; what he owned is listed for handover."""
    here = session.of(ctx)
    found = _member(here, email)
    left = here.client.delete(f"/tenants/{here.tenant()}/members/{found['person']}", version=found["version"]).body
    here.screen.document(left)
    if left and left.get("objects"):
        here.screen.next(f"tenantry member hand-over {email} OTHER-E-MAIL")


@member.command("hand-over")
def member_hand_over(ctx: typer.Context, email: Email, to: Annotated[str, typer.Argument(metavar="TO-E-MAIL")]) -> None:
    """Give what one member owns to another."""
    here = session.of(ctx)
    found, heir = _member(here, email), _member(here, to)
    path = f"/tenants/{here.tenant()}/members/{found['person']}/hand-over"
    here.screen.document(here.client.post(path, {"to": heir["person"]}).body)


def _member(here: session.Session, email: str) -> Json:
    """Return the membership of a person; an id is taken as it is. Raises `UsageFault`."""
    for each in here.client.items(f"/tenants/{here.tenant()}/members"):
        if email.lower() in {str(each["email"]).lower(), each["person"]}:
            return each
    raise UsageFault(f"{email} is no member of {here.tenant()}", hint=f"tenantry get members --tenant {here.tenant()}")


@quota.command("set")
def quota_set(
    ctx: typer.Context,
    name: TenantName,
    limits: Annotated[list[str], typer.Argument(metavar="DIMENSION=AMOUNT", help="or DIMENSION=inherit")],
    until: Annotated[str, typer.Option(help="One more limit that ends then.")] = "",
) -> None:
    """Set limits of a tenant (operators; owners of its parent within their own)."""
    here = session.of(ctx)
    end = asks.instant(until) if until else None
    for dimension, word in asks.pairs(limits).items():
        body: Json = {"dimension": dimension, **({"until": end} if end else {})}
        if word == "inherit":
            body["inherit"] = True
        else:
            body["amount"] = asks.limits([f"{dimension}={word}"])[dimension]
        here.client.put(f"/tenants/{name}/quotas", body)
        here.screen.note(f"{name}: {dimension} = {word}{f' until {end}' if end else ''}")


@quota.command("remove")
def quota_remove(
    ctx: typer.Context,
    name: TenantName,
    dimensions: Annotated[list[str], typer.Argument(metavar="DIMENSION", help="All limits of it.")],
) -> None:
    """Remove limits: the dimension is zero again. Nothing that is held is taken away."""
    here = session.of(ctx)
    rows = [row for row in here.client.items(f"/tenants/{name}/quotas") if row["dimension"] in dimensions]
    if missing := set(dimensions) - {row["dimension"] for row in rows}:
        raise UsageFault(f"{name} has no limit of {', '.join(sorted(missing))}", hint=f"tenantry quota show {name}")
    for row in rows:
        here.client.delete(f"/tenants/{name}/quotas/{row['id']}", version=row["version"])
        here.screen.note(f"{name}: {row['dimension']} is removed")


@quota.command("show")
def quota_show(ctx: typer.Context, name: Annotated[str, typer.Argument(metavar="[TENANT]")] = "") -> None:
    """Show limits and use of a tenant and of those above it."""
    here = session.of(ctx)
    levels = here.client.get(f"/tenants/{name or here.tenant()}/quota-position").get("levels", [])
    if here.screen.format == "table":
        here.screen.out.print(level_table(levels))
    else:
        here.screen.document(levels)


@account.command("create")
def account_create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A DNS label.")],
    role: Annotated[str, typer.Option(help="viewer or member.")] = "member",
    lasts: Annotated[str, typer.Option("--for", help="How long it lasts: 90d.")] = "",
) -> None:
    """Make a service account; you answer for it."""
    here = session.of(ctx)
    body: Json = {"name": name, "role": role, **({"expires_at": asks.instant(f"+{lasts}")} if lasts else {})}
    made = here.client.post(f"/tenants/{here.tenant()}/service-accounts", body).body
    here.screen.note(f"service account {made['name']} is {made['role']} of {made['tenant']}")
    here.screen.next(f"tenantry token create ci --service-account {made['name']} --tenant {made['tenant']}")


@account.command("disable")
def account_disable(ctx: typer.Context, name: Annotated[str, typer.Argument(help="A service account.")]) -> None:
    """End a service account and its tokens."""
    here = session.of(ctx)
    path = here.address(noun("service-accounts"), name)
    here.client.delete(path, version=here.client.get(path)["version"])
    here.screen.note(f"service account {name} is disabled")
