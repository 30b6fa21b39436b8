"""Endpoints: list, and the page of one with its tabs: overview, keys, cost, what was built (revisions: `rollouts`)."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Final

from django.contrib import messages
from django.db.models import Sum
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _

from frontend.design import numbers
from frontend.forms import wishes
from frontend.kernel import key_use, once, outlook, serving_cost, story, token_budgets
from frontend.kernel.page import PageRequest, page
from frontend.views import idling, products
from frontend.views.products import ENDPOINTS
from tenants import addresses, endpoint_trust, fit_checks, queries, served_facts
from tenants.errors import Conflict, InvalidSpec, NotVisible
from tenants.fit_corrections import SizeKey
from tenants.models import AddressCheck, Endpoint, EndpointKey, EndpointUsage, Revision, Unit
from tenants.operations import endpoints, fit_corrections
from tenants.operations.pricing import all_prices, currency
from tenants.states import KeyScope, ModelTask
from tenants.transactions import reading

OVERLAPS: Final = (0, 3600, 86400, 7 * 86400)
"""Seconds that a rolled key goes on."""
DAY: Final = timedelta(days=1)
SAYS_BUDGETS: Final = frozenset({"overview", "keys", "playground", "cost"})
"""Tabs that say when the tenant's budgets of tokens refuse requests."""


@page("endpoints.list")
def listed(request: PageRequest) -> HttpResponse:
    """List the endpoints of a tenant."""
    return products.listed(ENDPOINTS, request)


# --- overview -------------------------------------------------------------------------------------


@page("endpoints.read")
def show(request: PageRequest, name: str) -> HttpResponse:
    """Show one endpoint; while it is built the page builds itself."""
    row = products.find(ENDPOINTS, request, name)
    secret = once.peek(request)
    values = frame(request, row, "overview") | products.state(row, request) | _use(row, request)
    values |= (
        idling.offered(row)
        | _log(request, row)
        | _address(row)
        | {
            "servers": model_servers(row),
            "secret": secret,
            "twins": connect(row, ""),
            "events": story.events(row),
            "plan": products.deletion_plan(row, request)
            | {"live_keys": _live_keys(row), "calls": values["requests_day"]},
            "days_options": [{"value": days, "label": str(days)} for days in wishes.DAYS],
        }
    )
    response = render(request, "frontend/pages/endpoints/show.html", values)
    if secret:
        once.forget(request, response)
    return response


@page("endpoints.read")
def state(request: PageRequest, name: str) -> HttpResponse:
    """Return the part of the overview that changes while it is built."""
    row = products.find(ENDPOINTS, request, name)
    values = products.frame(ENDPOINTS, request, row, current="overview")
    values |= products.state(row, request) | _use(row, request) | {"twins": connect(row, "")}
    values |= _log(request, row) | _address(row) | {"servers": model_servers(row)}
    return render(request, "frontend/pages/endpoints/_state_answer.html", values)


def frame(request: PageRequest, row: Endpoint, current: str) -> dict[str, Any]:
    """Return what every tab of an endpoint shows around its content."""
    tabs = [
        ("overview", _("Overview"), "endpoint"),
        ("live", _("Live"), "endpoint-live"),
        ("playground", _("Playground"), "endpoint-playground"),
        ("keys", _("Keys"), "endpoint-keys"),
        ("revisions", _("Revisions"), "endpoint-revisions"),
        ("moves", _("Place"), "endpoint-moves"),
        ("benchmarks", _("Benchmarks"), "endpoint-benchmarks"),
        ("cost", _("Cost"), "endpoint-cost"),
        ("logs", _("Log"), "endpoint-logs"),
        ("built", _("What was built"), "endpoint-built"),
    ]
    if not request.portal.can_write:
        tabs = [tab for tab in tabs if tab[0] not in {"playground", "keys", "logs"}]
    where = {"tenant": request.tenant.name, "name": row.name}
    return {
        **products.frame(ENDPOINTS, request, row, current=current),
        "tabs": [
            {"label": label, "url": reverse(f"frontend:{route}", kwargs=where), "current": key == current}
            for key, label, route in tabs
        ],
        "token_troubles": token_budgets.troubles(request.tenant, now=request.now) if current in SAYS_BUDGETS else [],
    }


def _address(row: Endpoint) -> dict[str, Any]:
    """Return what was seen of its address from outside, and the record that makes it lead there."""
    check = AddressCheck.objects.filter(endpoint=row, address=row.address).first() if row.address else None
    config = {} if row.boundary is None else row.boundary.provider.config
    return {
        "address_check": check,
        "address_missing": [] if check is None else [each["text"] for each in check.findings if not each["ok"]],
        "address_warns": [] if check is None else [each["text"] for each in check.findings if each.get("warns")],
        "address_record": addresses.record_to_set(row.address, str(row.observed.get(addresses.LEADS_TO) or ""), config),
        "certificate": endpoint_trust.look(row) if row.address.startswith("https:") else None,
        "ca_url": reverse("frontend:endpoint-ca", kwargs={"tenant": row.tenant.name, "name": row.short_id}),
        "is_lab_address": row.reachable_from == "lab",
        "is_cluster_address": row.reachable_from == "cluster",
    }


def _log(request: PageRequest, row: Endpoint) -> dict[str, Any]:
    """Return what the log needs that opens by itself when something is wrong; {} where nothing is."""
    from frontend.views import endpoint_logs  # it shows the frame of this module

    return {"log_opens": True} | endpoint_logs.offered(request, row) if endpoint_logs.opens(row, request) else {}


def _use(row: Endpoint, request: PageRequest) -> dict[str, Any]:
    """Return what was asked of it in the last day, by whole hours; None where nothing was."""
    found = EndpointUsage.objects.filter(endpoint_id=row.pk, hour__gte=request.now - DAY).aggregate(
        requests=Sum("requests"), prompt=Sum("prompt_tokens"), written=Sum("completion_tokens")
    )
    tokens = None if found["requests"] is None else (found["prompt"] or 0) + (found["written"] or 0)
    lived = (request.now - max(row.ready_at, request.now - DAY)).total_seconds() if row.ready_at else 0.0
    hour = serving_cost.hour_of(row, now=request.now)
    return {
        "requests_day": found["requests"],
        "tokens_day": tokens,
        "per_million_day": serving_cost.per_million(hour, tokens, lived),
    }


def model_servers(row: Endpoint) -> list[dict[str, Any]]:
    """Return what the model servers of its replicas said of themselves, beside what was estimated; [] for none."""
    units = {unit["unit"]: unit for unit in row.observed.get("units", ()) if unit.get("engine")}
    if row.revision is None or not units:
        return []
    placed = {str(unit.pk): unit for unit in row.allocation.units.all()}
    return [_server(row.revision, placed.get(key), seen["engine"]) for key, seen in units.items()]


def _server(revision: Revision, unit: Unit | None, engine: dict[str, Any]) -> dict[str, Any]:
    found = fit_checks.checks(
        engine,
        model=served_facts.of(revision.model),
        quantisation=served_facts.quantisation_of(revision.model),
        arguments=revision.arguments,
        gpu="" if unit is None else unit.product,
        mig_profile="" if unit is None else unit.profile,
        gpus=1 if unit is None or unit.profile else unit.gpu_count,
    )
    labels = {
        fit_checks.CACHE_TOKENS: _("Tokens its cache has room for"),
        fit_checks.CACHE_PER_TOKEN: _("Cache for each token, bytes"),
        fit_checks.WEIGHTS: _("Weights in memory, bytes"),
    }
    facts = [{"label": _("Program"), "value": engine["program"]}]
    if engine.get("runs_on"):
        facts.append({"label": _("Runs on"), "value": engine["runs_on"]})
    if engine.get("load_s") is not None:
        facts.append({"label": _("Ready after"), "value": _("%(s)s s") % {"s": numbers.number(engine["load_s"])}})
    facts += [
        {"label": labels[one.figure], "value": numbers.number(one.reported), "note": _estimate(one)} for one in found
    ]
    return {"items": facts, "learnt": _learnt(revision, unit)}


def _learnt(revision: Revision, unit: Unit | None) -> str:
    """Return what the next estimate for this model on this size makes of it, `""` where nothing was learnt."""
    if unit is None:
        return ""
    size = SizeKey(unit.product, unit.profile, 1 if unit.profile else max(unit.gpu_count, 1))
    made = fit_corrections.corrections_of(revision.model).get(size)
    return "" if made is None else _("The next estimate: %(said)s") % {"said": made.sentence}


def _estimate(check: fit_checks.Check) -> str:
    if check.estimated is None:
        return ""
    if not check.off_by:
        return _("as estimated")
    return _("estimated %(n)s, %(off)s %% off") % {
        "n": numbers.number(check.estimated), "off": numbers.number(check.off_by * 100, 1),
    }  # fmt: skip


def _live_keys(row: Endpoint) -> int:
    return EndpointKey.objects.filter(endpoint=row, revoked_at__isnull=True).count()


CA_FILE: Final = "endpoint-ca.pem"
"""What calls name the file with the authority that an endpoint's callers trust."""
_WRITES: Final = (
    "answer = client.chat.completions.create(\n"
    '    model="%(name)s",\n'
    '    messages=[{"role": "user", "content": "Hello"}],\n'
    ")\n"
    "print(answer.choices[0].message.content)"
)
_EMBEDS: Final = (
    'answer = client.embeddings.create(model="%(name)s", input="Hello")\nprint(len(answer.data[0].embedding))'
)


def connect(row: Endpoint, secret: str) -> list[dict[str, str]]:
    """Return ready-made calls of an endpoint, with its key where it is still known, and whom to trust where needed."""
    ca = bool(row.boundary and row.address.startswith("https:") and endpoint_trust.ca_pem_of(row.boundary.provider))
    address = row.address or "https://…/v1"
    key = secret or "$TENANTRY_KEY"
    embeds = row.revision is not None and row.revision.model.task == ModelTask.EMBED.value
    asked = '"input": "Hello"' if embeds else '"messages": [{"role": "user", "content": "Hello"}]'
    body = f'{{"model": "{row.name}", {asked}}}'
    curl = (
        f"curl {f'--cacert {CA_FILE} ' if ca else ''}{address}/{'embeddings' if embeds else 'chat/completions'} \\\n"
        f'  -H "Authorization: Bearer {key}" \\\n'
        f'  -H "Content-Type: application/json" \\\n'
        f"  -d '{body}'"
    )
    shown = f'"{secret}"' if secret else 'os.environ["TENANTRY_KEY"]'
    python = (
        ("" if secret and not ca else ("" if secret else "import os\n") + ("import ssl\n" if ca else "") + "\n")
        + ("import httpx\n" if ca else "")
        + "from openai import OpenAI\n\n"
        + (f'trust = ssl.create_default_context(cafile="{CA_FILE}")\n' if ca else "")
        + f'client = OpenAI(base_url="{address}", api_key={shown}'
        + (", http_client=httpx.Client(verify=trust))\n" if ca else ")\n")
        + (_EMBEDS if embeds else _WRITES) % {"name": row.name}
    )
    command = f"tenantry get endpoint/{row.name} -o yaml\ntenantry explain endpoint/{row.name}"
    if ca:
        command = f"tenantry address {row.name} --ca > {CA_FILE}\n{command}"
    return [
        {"label": "curl", "text": curl, "lang": "sh"},
        {"label": "Python", "text": python, "lang": "python"},
        {"label": "CLI", "text": command, "lang": "sh"},
    ]


@page("endpoint-addresses.read")
def authority(request: PageRequest, name: str) -> HttpResponse:
    """Give whom to trust at an endpoint's address, as a file."""
    row = products.find(ENDPOINTS, request, name)
    found = endpoint_trust.look(row).ca_pem
    if not found:
        raise NotVisible
    response = HttpResponse(found + "\n", content_type="application/x-pem-file")
    response["Content-Disposition"] = f'attachment; filename="{CA_FILE}"'
    return response


@page("endpoints.delete", methods=("POST",))
def delete(request: PageRequest, name: str) -> HttpResponse:
    """Delete an endpoint."""
    return products.delete(ENDPOINTS, request, name)


@page("allocations.renew", methods=("POST",))
def renew(request: PageRequest, name: str) -> HttpResponse:
    """Give an endpoint a new term."""
    return products.renew(ENDPOINTS, request, name)


# --- keys -----------------------------------------------------------------------------------------


@page("endpoint-keys.list")
def keys(request: PageRequest, name: str) -> HttpResponse:
    """List the keys of an endpoint; one that was just made is shown once."""
    row = products.find(ENDPOINTS, request, name)
    secret = once.peek(request)
    found = list(EndpointKey.objects.filter(endpoint=row).select_related("replaced_by").order_by("-created_at")[:200])
    used = key_use.used(row, found, now=request.now)
    for key in found:
        key.told = used[key.public_id]  # type: ignore[attr-defined]  # for the page
    values = frame(request, row, "keys") | {
        "currency": currency(),
        "scopes": [{"value": value, "label": label} for value, label in key_use.scopes()],
        "periods": [{"value": value, "label": label} for value, label in key_use.periods()],
        "keys": [key for key in found if _is_live(key, request)],
        "ended": [key for key in found if not _is_live(key, request)],
        "no_keys": not any(_is_live(key, request) for key in found),
        "key_columns": [
            {"key": "name", "label": _("Name")},
            {"key": "made", "label": _("Made")},
            {"key": "used", "label": _("Last used")},
            {"key": "calls", "label": _("Last 30 days")},
            {"key": "limits", "label": _("Limits")},
            {"key": "ends", "label": _("Ends")},
            {"key": "actions", "label": _("Actions"), "hidden_label": True},
        ],
        "secret": secret,
        "overlaps": [{"value": value, "label": numbers.duration(value) if value else _("none")} for value in OVERLAPS],
        "twins": connect(row, secret),
    }
    response = render(request, "frontend/pages/endpoints/keys.html", values)
    if secret:
        once.forget(request, response)
    return response


def _is_live(key: EndpointKey, request: PageRequest) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > request.now)


@page("endpoints.create_key", methods=("POST",))
def create_key(request: PageRequest, name: str) -> HttpResponse:
    """Make a key."""
    with reading(request.actor):
        row = products.find(ENDPOINTS, request, name)
    days = wishes.number(request.POST.get("days"), 0, least=0, most=3650)
    title = request.POST.get("name", "").strip()[:80]
    response = products.back(ENDPOINTS, request, row, "keys")
    if not title:
        messages.error(request, _("Give the key a name: who or what uses it."))
        return response
    try:
        _key, secret = endpoints.create_key(
            endpoint=row,
            name=title,
            expires_at=request.now + timedelta(days=days) if days else None,
            scopes=[request.POST.get("scope") or KeyScope.INFERENCE.value],
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
        return response
    once.put(request, response, secret, path=response["Location"])
    return response


@page("endpoints.roll_key", methods=("POST",))
def roll_key(request: PageRequest, name: str, key: str) -> HttpResponse:
    """Replace a key; the old one goes on for a while."""
    row, found = _key_of(request, name, key)
    response = products.back(ENDPOINTS, request, row, "keys")
    overlap = wishes.number(request.POST.get("overlap_s"), 86400, least=0, most=30 * 86400)
    try:
        _made, secret = endpoints.roll_key(
            endpoint=row, key=found, overlap_s=overlap, actor=request.actor, now=request.now
        )
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
        return response
    once.put(request, response, secret, path=response["Location"])
    return response


@page("endpoints.limit_key", methods=("POST",))
def limit_key(request: PageRequest, name: str, key: str) -> HttpResponse:
    """Replace a key's rates and budgets."""
    row, found = _key_of(request, name, key)
    try:
        limits = key_use.read(request.POST)
        endpoints.limit_key(endpoint=row, key=found, limits=limits, actor=request.actor, now=request.now)
    except (InvalidSpec, Conflict) as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, _("The limits of %(name)s hold within seconds.") % {"name": found.name})
    return products.back(ENDPOINTS, request, row, "keys")


@page("endpoints.revoke_key", methods=("POST",))
def revoke_key(request: PageRequest, name: str, key: str) -> HttpResponse:
    """End a key; gateways refuse it within five seconds."""
    row, found = _key_of(request, name, key)
    endpoints.revoke_key(endpoint=row, key=found, actor=request.actor, now=request.now)
    messages.success(request, _("The key %(name)s is revoked.") % {"name": found.name})
    return products.back(ENDPOINTS, request, row, "keys")


def _key_of(request: PageRequest, name: str, key: str) -> tuple[Endpoint, EndpointKey]:
    with reading(request.actor):
        row: Endpoint = products.find(ENDPOINTS, request, name)
        found = EndpointKey.objects.filter(endpoint=row, public_id=key).first()
    if found is None:
        raise NotVisible
    return row, found


# --- cost, what was built -----------------------------------------------------------------------------


@page("costs.list")
def cost(request: PageRequest, name: str) -> HttpResponse:
    """Show what an endpoint costs: by the hour, so far, to its end."""
    row = products.find(ENDPOINTS, request, name)
    known = all_prices()
    provider = row.boundary.provider if row.boundary is not None else None
    demand = {key: int(amount) for key, amount in row.allocation.demand.items()}
    place = {"provider": provider.name, "site": provider.site} if provider is not None else {}
    end = row.allocation.expires_at
    usage = EndpointUsage.objects.filter(endpoint_id=row.pk).aggregate(
        prompt=Sum("prompt_tokens"), written=Sum("completion_tokens")
    )
    tokens = (usage["prompt"] or 0) + (usage["written"] or 0)
    stopped = min(row.deletion_requested_at or request.now, request.now)
    so_far = outlook.price(demand, row.ready_at, stopped, prices=known, **place) if row.ready_at else None
    rest = outlook.price(demand, request.now, end, prices=known, **place) if end and end > request.now else None
    spent = so_far.to_the_end if so_far is not None else None
    values = frame(request, row, "cost") | {
        "hour": outlook.price(demand, request.now, request.now, prices=known, **place).hour,
        "spent": spent,
        "rest": rest.to_the_end if rest is not None else None,
        "per_million": spent / tokens * 1_000_000 if spent is not None and tokens else None,
        "tokens": tokens or None,
        "cost_columns": [
            {"key": "item", "label": _("Item")},
            {"key": "amount", "label": _("Amount"), "numeric": True},
            {"key": "hour", "label": _("Per hour"), "numeric": True},
        ],
        "currency": currency(),
        "lines": [
            {
                "item": outlook.product_of(item),
                "amount": numbers.quantity(amount, "slot") if item.startswith("gpu.") else numbers.number(amount),
                "hour": outlook.price({item: amount}, request.now, request.now, prices=known, **place).hour,
            }
            for item, amount in sorted(demand.items())
            if item != "endpoints" and (not item.startswith("gpu.") or item.endswith(".slices"))
        ],
    }
    return render(request, "frontend/pages/endpoints/cost.html", values)


@page("endpoints.explain")
def built(request: PageRequest, name: str) -> HttpResponse:
    """Show what was built, in the words of the machinery."""
    row = products.find(ENDPOINTS, request, name)
    told = queries.explain(row, now=request.now)
    values = frame(request, row, "built") | {
        "told_text": json.dumps({**told, "asked": row.allocation.spec, "seen": row.observed}, indent=1, default=str),
        "facts": [
            {"label": _("Id"), "value": str(row.pk), "copy": str(row.pk), "mono": True},
            {
                "label": _("Isolation"),
                "value": row.boundary.short_id if row.boundary else "",
                "href": reverse("frontend:isolation", kwargs={"tenant": request.tenant.name}) if row.boundary else "",
                "mono": True,
            },
            {"label": _("Provider"), "value": row.boundary.provider.name if row.boundary else ""},
            {"label": _("Capacity"), "value": row.allocation.short_id, "mono": True},
        ],
    }
    return render(request, "frontend/pages/endpoints/built.html", values)
