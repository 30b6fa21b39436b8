"""Who you are: `login`, `logout`, `who`, `use`, `contexts`, and tokens for programs."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Annotated

import typer

from controlplane.cli import asks, session
from controlplane.cli.config import Context
from controlplane.cli.failures import ApiProblem, UsageFault
from controlplane.cli.nouns import noun

token = typer.Typer(help="Tokens for programs: yours, or a service account's.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(login)
    app.command()(logout)
    app.command()(who)
    app.command()(use)
    app.command()(contexts)
    app.add_typer(token, name="token")


def login(
    ctx: typer.Context,
    email: Annotated[str, typer.Argument(help="Your e-mail address; asked for when left out.")] = "",
    password_stdin: Annotated[bool, typer.Option(help="Read the password from standard input.")] = False,
    name: Annotated[str, typer.Option(help="What the token is called in the list of your tokens.")] = "",
) -> None:
    """Prove who you are and keep a token in the configuration file (0600)."""
    here = session.of(ctx)
    wanted = here.context_name or here.environ.get("TENANTRY_CONTEXT") or here.config.current
    known = here.config.contexts.get(wanted, Context())
    address = (here.url or here.environ.get("TENANTRY_URL") or known.url).rstrip("/")
    if not email:
        email = typer.prompt("E-mail", err=True)
    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = os.environ.get("TENANTRY_PASSWORD") or typer.prompt("Password", hide_input=True, err=True)
    client = here.client_of(Context(address))
    made = client.post("/login", {"email": email, "password": password, "name": name or f"tenantry on {_machine()}"})
    plain = str(made.body["token"])
    kept = Context(address, plain, email, here.tenant_word)
    tenants = [str(each["name"]) for each in here.client_of(kept).items("/tenants", most=2)]
    if not kept.tenant and len(tenants) == 1:
        kept = replace(kept, tenant=tenants[0])
    here.config.with_context(wanted, kept).save()
    where = f", tenant {kept.tenant}" if kept.tenant else ""
    here.screen.note(f"logged in at {address} as {email}{where}; kept as context {wanted}")
    here.screen.next("tenantry who", "tenantry get endpoints")


def logout(ctx: typer.Context) -> None:
    """End the token of the context and forget it."""
    here = session.of(ctx)
    name = here.context_name or here.environ.get("TENANTRY_CONTEXT") or here.config.current
    try:
        here.client.delete("/login")
    except ApiProblem as problem:
        if problem.status != 401:  # ended already: then only the file is left to clean
            raise
    here.config.without_token(name).save()
    here.screen.note(f"logged out of context {name}")


def who(ctx: typer.Context) -> None:
    """Show who you are here, your roles and tenants."""
    here = session.of(ctx)
    here.screen.document(here.client.get("/who"))


def use(
    ctx: typer.Context,
    context: Annotated[str, typer.Argument(help="The context that commands mean from now on.")] = "",
) -> None:
    """Choose context and tenant for the commands that follow (`tenantry use --tenant aurora`)."""
    here = session.of(ctx)
    config = here.config
    name = context or here.context_name or config.current
    known = config.contexts.get(name)
    if known is None:
        raise UsageFault(f"there is no context {name}", hint=f"tenantry login --context {name}")
    if here.tenant_word:
        here.client_of(known).get(f"/tenants/{here.tenant_word}")  # a name that is not there is refused now, not later
        known = replace(known, tenant=here.tenant_word)
    config.with_context(name, known).save()
    here.screen.note(f"context {name}: {known.url}, tenant {known.tenant or 'not chosen'}")


def contexts(ctx: typer.Context) -> None:
    """List the stored contexts, without their tokens."""
    here = session.of(ctx)
    config = here.config
    here.screen.document(
        {
            name: {
                "url": each.url,
                "who": each.who,
                "tenant": each.tenant,
                "logged_in": bool(each.token),
                "current": name == config.current,
            }
            for name, each in sorted(config.contexts.items())
        }
    )


@token.command("create")
def token_create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    service_account: Annotated[str, typer.Option(help="Of this service account of the tenant, not yours.")] = "",
    only_tenant: Annotated[str, typer.Option(help="It opens this tenant only.")] = "",
    read_only: Annotated[bool, typer.Option(help="It may only read.")] = False,
    lasts: Annotated[str, typer.Option("--for", help="How long it lasts: 8h, 90d.")] = "90d",
) -> None:
    """Make a token; its text is printed once, alone on standard output."""
    here = session.of(ctx)
    body = {"name": name, "read_only": read_only, "expires_at": asks.instant(f"+{lasts}")}
    path = "/tokens"
    if service_account:
        path = f"/tenants/{here.tenant()}/service-accounts/{service_account}/tokens"
    elif only_tenant:
        body["tenant"] = only_tenant
    made = here.client.post(path, body).body
    if here.screen.format == "table":
        here.screen.line(made["token"])
        here.screen.note(f"token {made['id']} lasts {lasts}; its text is shown only now")
    else:
        here.screen.document(made)


@token.command("list")
def token_list(ctx: typer.Context) -> None:
    """List your tokens, without their text."""
    here = session.of(ctx)
    here.screen.rows(noun("tokens"), list(here.client.items("/tokens")))


@token.command("revoke")
def token_revoke(
    ctx: typer.Context,
    token_id: Annotated[str, typer.Argument(help="Its id, as `token list` shows it.")],
    service_account: Annotated[str, typer.Option(help="Of this service account of the tenant.")] = "",
) -> None:
    """End a token; from the next request on it opens nothing."""
    here = session.of(ctx)
    path = f"/tokens/{token_id}"
    if service_account:
        path = f"/tenants/{here.tenant()}/service-accounts/{service_account}/tokens/{token_id}"
    here.client.delete(path)
    here.screen.note(f"token {token_id} is revoked")


def _machine() -> str:
    return os.uname().nodename[:40]
