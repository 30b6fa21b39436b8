"""Getting things, changing them, giving them back: `create`, `delete`, `renew`, `power`, `revise`, `key` and others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import asks, courses, session
from controlplane.cli.client import Json
from controlplane.cli.commands.reading import wait_for
from controlplane.cli.failures import UsageFault
from controlplane.cli.nouns import Column, Noun, noun, split_object
from controlplane.cli.screen import plan_tables
from controlplane.cli.words import chat_command

create = typer.Typer(help="Ask for an endpoint, a machine, a namespace, or bare capacity.", no_args_is_help=True)
key = typer.Typer(help="Keys of an endpoint.", no_args_is_help=True)
rollout = typer.Typer(help="Another revision taking over at an endpoint.", no_args_is_help=True)
KeyLimit = Annotated[
    list[str] | None,
    typer.Option("--limit", help="requests_per_minute=60 tokens_per_minute=… tokens=5000000 money=250.00 per=month"),
]
resize = typer.Typer(help="Give a machine that is off another size.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A DNS label: a-z, 0-9, '-'; unique in the tenant.")]
GpuWord = Annotated[
    str, typer.Option("--gpu", help="PRODUCT[/PROFILE][xN]: H100-80GB, H100-80GBx2, H100-80GB/1g.10gb.")
]
Vcpu = Annotated[int, typer.Option(min=1, help="vCPUs of each unit.")]
Memory = Annotated[int, typer.Option("--memory", min=1, help="GiB of memory of each unit.")]
Provider = Annotated[str, typer.Option(help="On this provider only.")]
Site = Annotated[str, typer.Option(help="At this site only.")]
Kind = Annotated[str, typer.Option(help="namespace or vm; default: whatever fits.")]
Tier = Annotated[str, typer.Option(help="shared, exclusive-gpu or dedicated-host.")]
Lasts = Annotated[str, typer.Option("--for", help="How long, from the first Ready: 8h, 7d. Default 30d.")]
NotAfter = Annotated[str, typer.Option(help="Ends then at the latest: 2026-12-31 or +30d.")]
Class = Annotated[str, typer.Option("--class", help="trial, standard or production.")]
Priority = Annotated[str, typer.Option(help="standard or preemptible.")]
Shortage = Annotated[
    str, typer.Option(help="Over quota: fail, request (file the request for what is missing) or wait.")
]
Storage = Annotated[int, typer.Option(min=0, help="GiB of storage.")]
Canary = Annotated[
    str,
    typer.Option(help="Beside the old one, by steps: 10:5m,50:5m; 10 stays until promoted; `now` has no steps."),
]
MaxErrors = Annotated[float, typer.Option(min=0, max=99, help="Percent of its requests that may fail in a canary.")]
MaxLatency = Annotated[int, typer.Option(min=0, help="ms that 95 of 100 answers must keep to; 0: not looked at.")]
MustHaveRoom = Annotated[
    bool, typer.Option("--must-have-room", help="Refuse a canary without room, instead of stopping the old one first.")
]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", help="key=value; may be repeated.")]
Description = Annotated[str, typer.Option(help="A sentence about it.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Only say what would happen: where, quota, cost.")]
Wait = Annotated[str, typer.Option("--wait", help="Stay until it is Ready, at most so long: 5m.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(create, name="create")
    app.command()(delete)
    app.command()(renew)
    app.command()(power)
    app.command()(rebuild)
    app.add_typer(resize, name="resize")
    app.command()(revise)
    app.command()(rollback)
    app.add_typer(rollout, name="rollout")
    app.command()(sleep)
    app.command()(wake)
    app.command()(idle)
    app.add_typer(key, name="key")


@create.command("endpoint")
def create_endpoint(
    ctx: typer.Context,
    name: Name,
    model: Annotated[str, typer.Option(help="A served model: `tenantry get models`.")],
    gpu: GpuWord,
    replicas: Annotated[int, typer.Option(min=1, max=32, help="How many replicas.")] = 1,
    argument: Annotated[
        list[str] | None, typer.Option("--arg", help="Engine argument key=value, of the allowed ones.")
    ] = None,
    vcpu: Vcpu = 8,
    memory: Memory = 64,
    provider: Provider = "",
    site: Site = "",
    kind: Kind = "",
    tier: Tier = "",
    lasts: Lasts = "",
    not_after: NotAfter = "",
    service_class: Class = "",
    priority: Priority = "",
    on_shortage: Shortage = "",
    labels: Labels = None,
    description: Description = "",
    plan: PlanOnly = False,
    wait: Wait = "",
) -> None:
    """Ask for a model behind a URL; its first key is printed once."""
    capacity = asks.Capacity(
        asks.Gpu.parse(gpu), vcpu, memory, replicas, provider, site, kind, tier, lasts, not_after, service_class,
        priority, on_shortage,
    )  # fmt: skip
    body = asks.endpoint(name, model, capacity, asks.Tags(labels or (), description), arguments=argument or ())
    _submit(session.of(ctx), noun("endpoints"), body, plan=plan, wait=wait)


@create.command("machine")
def create_machine(
    ctx: typer.Context,
    name: Name,
    gpu: GpuWord,
    image: Annotated[str, typer.Option(help="As `tenantry get machine-images` lists them.")] = "ubuntu-24.04",
    disk: Annotated[int, typer.Option(min=10, help="GiB of disk.")] = 100,
    ssh_key: Annotated[
        list[str] | None,
        typer.Option(help="Public key that stays, or a file with one, where the policy allows it; may be repeated."),
    ] = None,
    vcpu: Vcpu = 8,
    memory: Memory = 64,
    provider: Provider = "",
    site: Site = "",
    tier: Tier = "",
    lasts: Lasts = "",
    not_after: NotAfter = "",
    service_class: Class = "",
    priority: Priority = "",
    on_shortage: Shortage = "",
    labels: Labels = None,
    description: Description = "",
    plan: PlanOnly = False,
    wait: Wait = "",
) -> None:
    """Ask for a GPU machine with SSH."""
    capacity = asks.Capacity(
        asks.Gpu.parse(gpu), vcpu, memory, 1, provider, site, "", tier, lasts, not_after, service_class, priority,
        on_shortage,
    )  # fmt: skip
    keys = [_public_key(word) for word in ssh_key or []]
    body = asks.machine(name, image, disk, keys, capacity, asks.Tags(labels or (), description))
    _submit(session.of(ctx), noun("machines"), body, plan=plan, wait=wait)


def _of_many(kind: str, words: str) -> None:
    """Add `create namespace` or `create allocation`: the same words, another noun."""

    def command(
        ctx: typer.Context,
        name: Name,
        gpu: GpuWord,
        units: Annotated[int, typer.Option(min=1, max=64, help="How many shares of that size.")] = 1,
        vcpu: Vcpu = 8,
        memory: Memory = 64,
        provider: Provider = "",
        site: Site = "",
        tier: Tier = "",
        lasts: Lasts = "",
        not_after: NotAfter = "",
        service_class: Class = "",
        priority: Priority = "",
        on_shortage: Shortage = "",
        storage: Storage = 0,
        labels: Labels = None,
        description: Description = "",
        plan: PlanOnly = False,
        wait: Wait = "",
    ) -> None:
        capacity = asks.Capacity(
            asks.Gpu.parse(gpu), vcpu, memory, units, provider, site, "", tier, lasts, not_after, service_class,
            priority, on_shortage, storage,
        )  # fmt: skip
        body = asks.units_of_many(name, capacity, asks.Tags(labels or (), description))
        _submit(session.of(ctx), noun(kind), body, plan=plan, wait=wait)

    create.command(noun(kind).singular, help=words)(command)


_of_many("namespaces", "Ask for a namespace with GPUs, handed to people with a kubeconfig.")
_of_many("allocations", "Ask for GPU capacity of a namespace boundary, without a product.")


def _submit(here: session.Session, found: Noun, body: Json, *, plan: bool, wait: str) -> None:
    path = found.collection(tenant=here.tenant())
    if plan:
        plan_tables(here.screen, here.client.post(path, body, plan=True).body)
        return
    answer = here.client.post(path, body)
    made: Json = answer.body
    screen = here.screen
    thing = f"{found.singular}/{made['name']}"
    if screen.format != "table":
        screen.document(made)
    else:
        screen.note(f"{thing} is {made['phase']} ({made['short_id']})")
        if made.get("key"):
            screen.note("its first key, shown only now:")
            screen.line(made["key"])
    if wait:
        ready = wait_for(here, found, made["name"], goals=["Ready"], timeout_s=asks.seconds(wait))
        if ready.get("address"):
            screen.next(chat_command(ready["address"], made["name"], made.get("key") or ""))
    elif made["phase"] == "AwaitingApproval":
        screen.next(f"tenantry explain {thing}", "tenantry get requests")
    else:
        screen.next(f"tenantry wait {thing} --for Ready", f"tenantry explain {thing}")


def delete(
    ctx: typer.Context,
    thing: Annotated[str, typer.Argument(metavar="NOUN/NAME", help="endpoint/chat")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    wait: Annotated[str, typer.Option("--wait", help="Stay until everything is given back, at most so long: 5m.")] = "",
) -> None:
    """Give something back. Keys stop at once, its GPUs are free when its use is seen to be gone."""
    here = session.of(ctx)
    found, name = split_object(thing)
    body = here.read(found, name)
    label = f"{found.singular}/{body.get('name') or name}"
    if not yes and sys.stdin.isatty():
        typer.confirm(f"delete {label} of {body.get('tenant', 'the platform')}?", abort=True, err=True)
    path = here.address(found, str(body.get("id") or name))
    answer = here.client.delete(path, version=body.get("version"))
    after = answer.body if isinstance(answer.body, dict) else {}
    here.screen.note(f"{label} is {after.get('phase', 'deleted')}")
    if after.get("phase") is None:
        return
    if wait:
        wait_for(here, found, str(body["id"]), goals=["Released"], timeout_s=asks.seconds(wait))
    else:
        here.screen.next(f"tenantry wait {found.singular}/{body['id']} --for Released")


def renew(
    ctx: typer.Context,
    thing: Annotated[str, typer.Argument(metavar="NOUN/NAME", help="endpoint/chat or allocation/capacity")],
    lasts: Annotated[str, typer.Option("--for", help="The new term, from now: 30d.")],
) -> None:
    """Give an object a new term; within its grace this is the undo."""
    here = session.of(ctx)
    found, name = split_object(thing)
    body = here.read(found, name)
    allocation = body["id"] if found.name == "allocations" else body["allocation"]
    path = f"/tenants/{body['tenant']}/allocations/{allocation}/renew"
    after = here.client.post(path, {"duration_s": asks.seconds(lasts)}).body
    here.screen.note(
        f"{found.singular}/{body['name']} lasts until {after.get('expires_at') or f'{lasts} after it is Ready'}"
    )


def power(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A machine.")],
    state: Annotated[str, typer.Argument(help="on or off")],
) -> None:
    """Switch a machine on or off; its GPUs stay held."""
    here = session.of(ctx)
    found = noun("machines")
    name = name.removeprefix("machine/")
    after = here.client.post(f"{here.address(found, name)}/power", {"power": state}).body
    here.screen.note(f"machine/{after['name']} shall be {after['power']}")


def rebuild(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A machine.")],
    image: Annotated[str, typer.Option(help="Another image; left out: the one that it was made of.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Make a machine anew: what is on its disk is lost, its GPUs stay held."""
    here = session.of(ctx)
    name = name.removeprefix("machine/")
    if not yes:
        typer.confirm(f"everything on the disk of machine/{name} is lost; make it anew?", abort=True, err=True)
    address = f"{here.address(noun('machines'), name)}/rebuild"
    after = here.client.post(address, {"image": image} if image else {}).body
    here.screen.note(f"machine/{after['name']} is made anew of {after['image']}")
    here.screen.next(f"tenantry wait machine/{after['name']} --for Ready")


@resize.command("machine")
def resize_machine(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A machine that is off.")],
    vcpu: Annotated[int | None, typer.Option(min=1, help="vCPUs; left out: as many as it has.")] = None,
    memory_gib: Annotated[int | None, typer.Option(min=1, help="GiB of memory; left out: as much as it has.")] = None,
    disk_gib: Annotated[int | None, typer.Option(min=10, help="GiB of disk: it can only grow.")] = None,
) -> None:
    """Give a machine that is off another size on the host where it is; its GPUs stay."""
    here = session.of(ctx)
    name = name.removeprefix("machine/")
    asked = {"vcpu": vcpu, "memory_gib": memory_gib, "disk_gib": disk_gib}
    body: Json = {field: amount for field, amount in asked.items() if amount is not None}
    if not body:
        raise UsageFault("give at least one of --vcpu, --memory-gib and --disk-gib")
    after = here.client.post(f"{here.address(noun('machines'), name)}/resize", body).body
    unit = after["units"][0]
    size = f"{unit['vcpu']} vCPU, {unit['memory_gib']} GiB of memory, {after['disk_gib']} GiB of disk"
    here.screen.note(f"machine/{after['name']} gets {size}")
    here.screen.next(f"tenantry power {after['name']} on")


def revise(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="An endpoint.")],
    model: Annotated[str, typer.Option(help="A served model; left out: the same.")] = "",
    argument: Annotated[
        list[str] | None, typer.Option("--arg", help="Engine argument key=value; may be repeated.")
    ] = None,
    canary: Canary = "",
    max_errors: MaxErrors = 5.0,
    max_latency: MaxLatency = 0,
    must_have_room: MustHaveRoom = False,
) -> None:
    """Serve something else behind the same address: a new, immutable revision."""
    here = session.of(ctx)
    path = courses.address(here, name)
    if not model:
        model = str(here.client.get(path)["model"])
    body: Json = {"model": model, "arguments": asks.typed_pairs(argument or ())}
    if canary:
        body["rollout"] = asks.canary(canary, max_errors, max_latency, must_have_room=must_have_room)
    made = here.client.post(f"{path}/revisions", body).body
    here.screen.note(f"revision {made['number']} of {name} takes over with {made['model']}")
    _say_rollout(here, name, here.client.get(path).get("rollout"))


def rollback(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="An endpoint.")],
    to: Annotated[int, typer.Option(min=0, help="Number of the revision; default: the one that served before.")] = 0,
) -> None:
    """Serve an earlier revision again: beside the present one if there is room, and in its place once it works."""
    here = session.of(ctx)
    found = here.client.post(f"{courses.address(here, name)}/rollback", {"revision": to} if to else {}).body
    _say_rollout(here, name, found.get("rollout"))


Endpoint = Annotated[str, typer.Argument(help="An endpoint.")]
DIFFERENCES = Noun(
    "differences", "difference", "tenant",
    (Column("FIELD", "field"), Column("BEFORE", "before"), Column("AFTER", "after")), child_of="revisions",
)  # fmt: skip


def sleep(ctx: typer.Context, name: Endpoint) -> None:
    """Let an endpoint go to zero: no replica runs, and the next request wakes it."""
    here = session.of(ctx)
    here.client.post(f"{courses.address(here, name)}/sleep")
    here.screen.note(f"{name} goes to sleep; running requests end first, the next one wakes it")


def wake(ctx: typer.Context, name: Endpoint) -> None:
    """Start the replicas of an endpoint at zero."""
    here = session.of(ctx)
    here.client.post(f"{courses.address(here, name)}/wake")
    here.screen.next(f"tenantry wait endpoint/{name} --for Ready")


def idle(
    ctx: typer.Context,
    name: Endpoint,
    after: Annotated[str, typer.Option(help="Without a request for so long: 30m, 2h; `never`.")],
    units: Annotated[
        str, typer.Option(help="keep them, held and billed, or release them: then waking queues.")
    ] = "keep",
    wait: Annotated[str, typer.Option(help="How long a request waits for it to wake.")] = "5m",
) -> None:
    """Say when an endpoint goes to zero by itself."""
    here = session.of(ctx)
    body: Json = {"units": units, "wait_s": asks.seconds(wait)}
    if after != "never":
        body["after_s"] = asks.seconds(after)
    here.client.put(f"{courses.address(here, name)}/idle", body)
    here.screen.note(f"{name} goes to sleep {'never' if after == 'never' else f'after {after} without a request'}")


@rollout.command("show")
def rollout_show(ctx: typer.Context, name: Endpoint) -> None:
    """List the rollouts of an endpoint, the newest first."""
    courses.listed(ctx, name, "rollout")


@rollout.command("diff")
def rollout_diff(
    ctx: typer.Context,
    name: Endpoint,
    before: Annotated[int, typer.Option(min=0, help="Number of the older revision; default: the one before.")] = 0,
    after: Annotated[int, typer.Option(min=0, help="Number of the newer one; default: the one that serves.")] = 0,
) -> None:
    """Show what is different between two revisions."""
    here = session.of(ctx)
    asked = {key: str(number) for key, number in (("before", before), ("after", after)) if number}
    found = here.client.get(f"{courses.address(here, name)}/revisions/diff", **asked)
    here.screen.note(f"revision {found['before']} → {found['after']}")
    here.screen.rows(DIFFERENCES, list(found["differences"]))


@rollout.command("promote")
def rollout_promote(ctx: typer.Context, name: Endpoint) -> None:
    """Let the new revision take over now, whatever steps are left."""
    _change_rollout(ctx, name, "promote", {})


@rollout.command("hold")
def rollout_hold(ctx: typer.Context, name: Endpoint) -> None:
    """Keep a canary at its step; it is aborted all the same when it is bad."""
    _change_rollout(ctx, name, "hold", {})


@rollout.command("resume")
def rollout_resume(ctx: typer.Context, name: Endpoint) -> None:
    """Let a canary that is held go on; its step begins anew."""
    _change_rollout(ctx, name, "resume", {})


@rollout.command("abort")
def rollout_abort(
    ctx: typer.Context, name: Endpoint, reason: Annotated[str, typer.Option(help="Why; it stays in the record.")] = ""
) -> None:
    """Go back to the revision that served before."""
    _change_rollout(ctx, name, "abort", {"reason": reason})


def _change_rollout(ctx: typer.Context, name: str, verb: str, body: Json) -> None:
    _say_rollout(session.of(ctx), name, courses.changed(ctx, name, "rollout", verb, body))


def _say_rollout(here: session.Session, name: str, found: Json | None) -> None:
    """Say where a rollout is; nothing where the revision simply serves."""
    if found is None:
        here.screen.next(f"tenantry rollout show {name}")
        return
    share = f", {found['weight']} % of the requests" if found.get("weight") else ""
    held = ", held" if found.get("held") else ""
    line = f"{found['strategy']} {found['before']} → {found['revision']}: {found['state']}{share}{held}"
    courses.say(here, name, "rollout", line, found)


@key.command("create")
def key_create(
    ctx: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The endpoint.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    lasts: Annotated[str, typer.Option("--for", help="How long it lasts; default: as long as the endpoint.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may ask for: chat, completions, embeddings, models; default: inference (all)."),
    ] = None,
    limit: KeyLimit = None,
) -> None:
    """Make another key; its text is printed once, alone on standard output."""
    here = session.of(ctx)
    until: Json = {"expires_at": asks.instant(f"+{lasts}")} if lasts else {}
    may: Json = {"scopes": scope} if scope else {}
    body: Json = {"name": name, **until, **may, **asks.key_limits(limit or ())}
    _show_key(here, here.client.post(f"{_keys_of(here, endpoint)}", body).body)


@key.command("list")
def key_list(ctx: typer.Context, endpoint: Annotated[str, typer.Argument(help="The endpoint.")]) -> None:
    """List the keys of an endpoint, without their text."""
    here = session.of(ctx)
    here.screen.rows(noun("keys"), list(here.client.items(_keys_of(here, endpoint))))


@key.command("roll")
def key_roll(
    ctx: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The endpoint.")],
    key_id: Annotated[str, typer.Argument(help="The key's id: `tenantry key list`.")],
    overlap: Annotated[str, typer.Option(help="The old one goes on so long.")] = "24h",
) -> None:
    """Replace a key; the old one goes on for a while."""
    here = session.of(ctx)
    made = here.client.post(f"{_keys_of(here, endpoint)}/{key_id}/roll", {"overlap_s": asks.seconds(overlap)}).body
    _show_key(here, made)


@key.command("limit")
def key_limit(
    ctx: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The endpoint.")],
    key_id: Annotated[str, typer.Argument(help="The key's id: `tenantry key list`.")],
    limit: KeyLimit = None,
) -> None:
    """Replace a key's rates and budgets; what is not named is not limited."""
    here = session.of(ctx)
    made = here.client.put(f"{_keys_of(here, endpoint)}/{key_id}/limits", asks.key_limits(limit or ())).body
    here.screen.rows(noun("keys"), [made])


@key.command("revoke")
def key_revoke(
    ctx: typer.Context,
    endpoint: Annotated[str, typer.Argument(help="The endpoint.")],
    key_id: Annotated[str, typer.Argument(help="The key's id: `tenantry key list`.")],
) -> None:
    """End a key; gateways refuse it within 5 seconds."""
    here = session.of(ctx)
    here.client.delete(f"{_keys_of(here, endpoint)}/{key_id}")
    here.screen.note(f"key {key_id} is revoked")


def _keys_of(here: session.Session, endpoint: str) -> str:
    return f"{here.address(noun('endpoints'), endpoint.removeprefix('endpoint/'))}/keys"


def _show_key(here: session.Session, made: Json) -> None:
    if here.screen.format != "table":
        here.screen.document(made)
        return
    here.screen.line(str(made["key"]))
    here.screen.note(f"key {made['id']} ({made['name']}); its text is shown only now")


def _public_key(word: str) -> str:
    """Return a public key given as text or file. Raises `UsageFault` for a private one."""
    path = Path(word).expanduser()
    text = word
    if " " not in word and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    if "PRIVATE KEY" in text:
        raise UsageFault(f"{word} is a private key; give the file that ends in .pub")
    return text
