"""The platform for its operators: `host …`, `provider …`, `finding …`, `person …`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from controlplane.cli import asks, session
from controlplane.cli.client import Json
from controlplane.cli.failures import UsageFault
from controlplane.cli.nouns import noun

host = typer.Typer(
    help="Hosts: accept, open, cordon, drain, layout, maintenance, return, remove.", no_args_is_help=True
)
person = typer.Typer(help="People: make, suspend, resume, leave, roles.", no_args_is_help=True)

HostName = Annotated[str, typer.Argument(metavar="HOST", help="A host, by name or id.")]
Email = Annotated[str, typer.Argument(metavar="E-MAIL", help="A person's e-mail address.")]
Reason = Annotated[str, typer.Option(help="Why, for the record and for the people it touches.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(host, name="host")
    app.add_typer(provider, name="provider")
    app.add_typer(finding, name="finding")
    app.add_typer(person, name="person")


def _host_verb(verb: str, words: str, *states: str) -> None:
    def command(
        ctx: typer.Context,
        name: Annotated[str, typer.Argument(metavar="[HOST]", help="A host, by name or id.")] = "",
        provider: Annotated[str, typer.Option(help="Every host of this provider that it applies to.")] = "",
    ) -> None:
        here = session.of(ctx)
        if bool(name) == bool(provider):
            raise UsageFault("name one host, or --provider for all of its hosts")
        for path in [_host(here, name)] if name else _hosts_of(here, provider, states):
            after = here.client.post(f"{path}/{verb}").body
            _say(here, after, f"host/{after['name']} is {after['state']}")
        if verb == "accept":
            here.screen.next("tenantry get hosts --watch", f"tenantry host open {name or f'--provider {provider}'}")

    host.command(verb, help=words)(command)


def _hosts_of(here: session.Session, provider: str, states: tuple[str, ...]) -> list[str]:
    """Return the addresses of a provider's hosts in these states."""
    return [
        f"/hosts/{each['id']}"
        for state in states
        for each in here.client.items("/hosts", provider=provider, state=state)
    ]


_host_verb("accept", "Ask for a host's acceptance run; it is accepted once every check has passed.", "joining")
_host_verb("open", "Let units be placed on an accepted host.", "accepted")
_host_verb("cordon", "Place nothing new on a host; what runs goes on.", "open")
_host_verb("uncordon", "Open a cordoned host again.", "cordoned")


@host.command("remove")
def host_remove(ctx: typer.Context, name: HostName) -> None:
    """Take an empty host out for good."""
    here = session.of(ctx)
    path = _host(here, name)
    after = here.client.delete(path, version=here.client.get(path)["version"]).body
    _say(here, after, f"host/{after['name']} is {after['state']}")


@host.command("drain")
def host_drain(
    ctx: typer.Context,
    name: HostName,
    reason: Reason,
    at: Annotated[str, typer.Option(help="Begins then, after notice to its tenants: +1h.")] = "",
    until: Annotated[str, typer.Option(help="The windows are held free until then.")] = "",
    only_plan: Annotated[bool, typer.Option("--plan", help="Only say who is touched and what moves where.")] = False,
) -> None:
    """Empty a host with notice: what can move moves, the rest is stopped at its time."""
    here = session.of(ctx)
    if only_plan:
        here.screen.document(here.client.post(f"{_host(here, name)}/preview-drain").body)
        return
    body: Json = {"reason": reason}
    body |= {"starts_at": asks.instant(at)} if at else {}
    body |= {"ends_at": asks.instant(until)} if until else {}
    _planned(here, name, "drain", body)


@host.command("layout")
def host_layout(
    ctx: typer.Context,
    name: HostName,
    gpu: Annotated[list[str], typer.Option(help="What a GPU becomes: 0=2x3g.40gb,1g.10gb; all=whole. Repeatable.")],
    reason: Annotated[str, typer.Option(help="Why, for the record and for the people it touches.")] = "",
    at: Annotated[str, typer.Option(help="Begins then, after notice to its tenants: +1h.")] = "",
    evict: Annotated[bool, typer.Option("--evict", help="Evict what is left when nobody holds room there.")] = False,
    only_plan: Annotated[bool, typer.Option("--plan", help="Only say whom it concerns.")] = False,
) -> None:
    """Carve GPUs of a host anew: emptied, carved, compared, opened; what fails is taken back."""
    here = session.of(ctx)
    body: Json = {"layouts": asks.layouts(gpu), "evict": evict}
    if only_plan:
        here.screen.document(here.client.post(f"{_host(here, name)}/preview-layout", body).body)
        return
    if not reason:
        raise UsageFault("say why: --reason")
    _planned(here, name, "layout", body | {"reason": reason} | ({"starts_at": asks.instant(at)} if at else {}))


@host.command("maintenance")
def host_maintenance(
    ctx: typer.Context, name: HostName, reason: Reason, until: Annotated[str, typer.Option(help="Ends then.")] = ""
) -> None:
    """Take an empty host into maintenance."""
    here = session.of(ctx)
    _planned(here, name, "maintenance", {"reason": reason, **({"ends_at": asks.instant(until)} if until else {})})


@host.command("return")
def host_return(ctx: typer.Context, name: HostName, reason: Reason) -> None:
    """Bring a host back from maintenance."""
    _planned(session.of(ctx), name, "return", {"reason": reason})


@host.command("cancel-plan")
def host_cancel_plan(ctx: typer.Context, plan: Annotated[str, typer.Argument(help="A plan's short id.")]) -> None:
    """Cancel a running plan: its holds dropped, the host as it was."""
    here = session.of(ctx)
    after = here.client.post(f"/plans/{plan}/cancel").body
    _say(here, after, f"plan/{after['short_id']} is {after['state']}")


@host.command("start-plan")
def host_start_plan(ctx: typer.Context, plan: Annotated[str, typer.Argument(help="A plan's short id.")]) -> None:
    """End the notice of a drain or a layout change early: it begins now, and its tenants are told again."""
    here = session.of(ctx)
    after = here.client.post(f"/plans/{plan}/start").body
    _say(here, after, f"plan/{after['short_id']} has begun")
    here.screen.next(f"tenantry get plan/{after['short_id']} --watch")


def _planned(here: session.Session, name: str, verb: str, body: Json) -> None:
    made = here.client.post(f"{_host(here, name)}/{verb}", body).body
    _say(here, made, f"plan/{made['short_id']} ({made['kind']} of {made['host']}) is {made['state']}")
    here.screen.next(f"tenantry get plan/{made['short_id']} --watch", f"tenantry host cancel-plan {made['short_id']}")


def _host(here: session.Session, name: str) -> str:
    """Return the address of a host; its provider's name for it is looked up."""
    found = list(here.client.items("/hosts", name=name, most=2))
    if len(found) > 1:
        raise UsageFault(f"several hosts are called {name}; give the id", hint="tenantry get hosts")
    return noun("hosts").one(str(found[0]["id"]) if found else name)


def _say(here: session.Session, body: Json, words: str) -> None:
    if here.screen.format == "table":
        here.screen.note(words)
    else:
        here.screen.document(body)


provider = typer.Typer(help="Providers: add, enable, disable, credentials, remove.", no_args_is_help=True)
ProviderName = Annotated[str, typer.Argument(metavar="PROVIDER", help="A provider, by name or id.")]


@provider.command("create")
def provider_create(
    ctx: typer.Context,
    name: ProviderName,
    kind: Annotated[str, typer.Option(help="kubernetes or sandbox; vsphere comes later.")],
    site: Annotated[str, typer.Option(help="Where it stands.")],
    config: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
) -> None:
    """Add a provider; set its credentials next, then accept and open its hosts."""
    here = session.of(ctx)
    body = {"name": name, "kind": kind, "site": site, "config": asks.pairs(config or [])}
    made = here.client.post("/providers", body).body
    _say(here, made, f"provider/{made['name']} is there")
    here.screen.next(f"tenantry provider set-credential {name} token", "tenantry get hosts")


@provider.command("set-credential")
def provider_set_credential(
    ctx: typer.Context, name: ProviderName, credential: Annotated[str, typer.Argument(help="Which: token, password.")]
) -> None:
    """Store or replace one secret; it is read from standard input or asked for, and never shown again."""
    here = session.of(ctx)
    value = typer.prompt("Secret", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    here.client.put(f"/providers/{name}/credentials/{credential}", {"value": value})
    here.screen.note(f"provider/{name}: {credential} is stored, sealed")


def _provider_verb(verb: str, words: str) -> None:
    def command(ctx: typer.Context, name: ProviderName) -> None:
        here = session.of(ctx)
        after = here.client.post(f"/providers/{name}/{verb}").body
        _say(here, after, f"provider/{after['name']}: {verb} done")

    provider.command(verb, help=words)(command)


_provider_verb("enable", "Let a provider be used.")
_provider_verb("disable", "Place nothing new on a provider.")


@provider.command("test")
def provider_test(ctx: typer.Context, name: ProviderName) -> None:
    """Have a worker call a provider now and say what works."""
    here = session.of(ctx)
    after = here.client.post(f"/providers/{name}/test").body
    _say(here, after, f"provider/{after['name']} is being tested")
    here.screen.next(f"tenantry get provider/{name} -o yaml")


finding = typer.Typer(help="Findings: what does not fit together.", no_args_is_help=True)


@finding.command("resolve")
def finding_resolve(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="FINDING", help="Its short id.")],
    action: Annotated[str, typer.Argument(help="ignore, repair, delete or adopt.")],
    reason: Reason,
) -> None:
    """Say what is to be done about a finding."""
    here = session.of(ctx)
    after = here.client.post(f"/findings/{name}/resolve", {"action": action, "reason": reason}).body
    _say(here, after, f"finding/{after['short_id']}: {after['resolution'] or action}")


@person.command("create")
def person_create(
    ctx: typer.Context,
    email: Email,
    name: Annotated[str, typer.Option(help="Name for people.")],
    roles: Annotated[
        list[str] | None, typer.Option("--role", help="Platform role: operator, approver, auditor.")
    ] = None,
) -> None:
    """Make a person; the first password is asked for."""
    here = session.of(ctx)
    password = typer.prompt("First password", hide_input=True, confirmation_prompt=True, err=True)
    made = here.client.post("/people", {"email": email, "display_name": name, "password": password}).body
    if roles:
        here.client.put(f"/people/{made['id']}/roles", {"roles": roles})
    here.screen.note(f"{email} can log in")


@person.command("leave")
def person_leave(
    ctx: typer.Context,
    email: Email,
    successor: Annotated[str, typer.Option(help="E-mail of who takes over what only he owned.")] = "",
) -> None:
    """End everything a person holds, within seconds; what he owned is listed for handover."""
    here = session.of(ctx)
    body: Json = {"successor": _person(here, successor)["id"]} if successor else {}
    here.screen.document(here.client.post(f"/people/{_person(here, email)['id']}/leave", body).body)


@person.command("suspend")
def person_suspend(ctx: typer.Context, email: Email, reason: Reason) -> None:
    """Let a person do nothing for a while."""
    here = session.of(ctx)
    here.client.post(f"/people/{_person(here, email)['id']}/suspend", {"reason": reason})
    here.screen.note(f"{email} is suspended")


@person.command("resume")
def person_resume(ctx: typer.Context, email: Email) -> None:
    """Let a suspended person work again."""
    here = session.of(ctx)
    here.client.post(f"/people/{_person(here, email)['id']}/resume")
    here.screen.note(f"{email} can work again")


def _person(here: session.Session, email: str) -> Json:
    found = list(here.client.items("/people", email=email, most=1))
    return found[0] if found else here.client.get(f"/people/{email}")
