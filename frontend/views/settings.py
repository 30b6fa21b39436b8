"""Settings of a tenant: profile, labels, policy in words, tenants below, suspension, and the way to close it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from frontend.kernel import asks, outlook, problems, twins, words
from frontend.kernel.page import PageRequest, page
from frontend.views.closing import check_typed
from frontend.views.requests import read_number
from tenants import access
from tenants.approval import DEFAULT_STAGES, PLATFORM_APPROVER
from tenants.errors import Conflict, ControlPlaneError, InvalidSpec
from tenants.gpu_catalogue import products
from tenants.models import Host, Provider, ServedModel, Suspension, Tenant
from tenants.models.tenant import MAX_DEPTH
from tenants.operations import tenants
from tenants.policies import ROUTES
from tenants.policy import LIST_KEYS, RATE_KEYS, STANDARD, effective_policy
from tenants.states import Login, StockVisibility, SuspensionDepth, Tier
from tenants.transactions import reading

CHILDREN: Final = 200
DAY_S: Final = 86400
TITLES: Final[Mapping[str, str | Promise]] = {
    "sites": gettext_lazy("Sites"),
    "tiers": gettext_lazy("Kinds of isolation"),
    "products": gettext_lazy("GPUs"),
    "models": gettext_lazy("Models"),
    "runtimes": gettext_lazy("Model servers"),
    "logins": gettext_lazy("Logging in to machines"),
}
HELP: Final[Mapping[str, str | Promise]] = {
    "sites": gettext_lazy("Where things of this tenant may run."),
    "tiers": gettext_lazy("How closely they may sit beside other tenants."),
    "products": gettext_lazy("Which GPUs they may use."),
    "models": gettext_lazy("Which models may be deployed."),
    "runtimes": gettext_lazy("Which programs may serve a model."),
    "logins": gettext_lazy("How people may get into machines by SSH."),
}
TIERS: Final[Mapping[str, str | Promise]] = {
    Tier.SHARED.value: gettext_lazy("Shared hosts"),
    Tier.DEDICATED_HOST.value: gettext_lazy("Own hosts"),
}
LOGINS: Final[Mapping[Login, str | Promise]] = {
    Login.CERTIFICATE: gettext_lazy("With a certificate of some minutes"),
    Login.KEY: gettext_lazy("With keys that stay on the machine"),
}
STOCK: Final[Mapping[StockVisibility, str | Promise]] = {
    StockVisibility.EXACT: gettext_lazy("as exact counts"),
    StockVisibility.BANDS: gettext_lazy("as none, few or many"),
    StockVisibility.YES_NO: gettext_lazy("as there are some or none"),
}
STATUSES: Final[Mapping[str, tuple[str | Promise, str]]] = {
    "active": (gettext_lazy("Active"), "ok"),
    "suspended": (gettext_lazy("Suspended"), "warn"),
    "closing": (gettext_lazy("Closing"), "quiet"),
    "closed": (gettext_lazy("Closed"), "quiet"),
}
DEPTHS: Final[Mapping[SuspensionDepth, tuple[str | Promise, str | Promise]]] = {
    SuspensionDepth.KEYS: (
        gettext_lazy("Keys refused"),
        gettext_lazy("Clients are refused within seconds; everything goes on running and costs as before."),
    ),
    SuspensionDepth.NETWORK: (
        gettext_lazy("Network cut"),
        gettext_lazy("Keys refused, and nothing gets in or out; it goes on running."),
    ),
    SuspensionDepth.POWER: (
        gettext_lazy("Switched off"),
        gettext_lazy("Network cut, and everything is stopped. Its GPUs stay reserved for it."),
    ),
}
FIELDS: Final[Mapping[str, str]] = {
    "display_name": "title", "policy.longest_s": "longest_days", **{f"policy.{key}": key for key in RATE_KEYS},
}  # fmt: skip
AT_FIELDS: Final = frozenset(
    {"title", "description", "labels", "longest_days", *RATE_KEYS, *(f"policy.{key}" for key in LIST_KEYS)}
)
"""Fields whose errors stand beside them; those of dialogs stand above the page."""
DEEDS: Final = {
    "suspend": "tenants.suspend", "resume": "tenants.resume", "close": "tenants.close", "nest": "tenants.create_child",
}  # fmt: skip
"""What the page offers → whose policy says to whom."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the policy as form and sentence."""

    key: str
    title: str
    help: str
    options: list[dict[str, Any]]
    """Value, label, chosen, and whether the tenants above allow it."""
    is_set: bool
    sentence: str
    error: str


@page("tenants.update")
def show(request: PageRequest) -> HttpResponse:
    """Show everything about the tenant itself that can be changed, and by whom."""
    return _page(request)


def _page(request: PageRequest, *, errors: Mapping[str, str] | None = None, status: int = 200) -> HttpResponse:
    tenant = request.tenant
    given = request.POST if errors else QueryDict()
    path = Tenant.objects.in_bulk(tenant.path)
    above = [path[key] for key in tenant.path[:-1] if key in path]
    suspension = Suspension.objects.filter(tenant_id__in=tenant.path, ended_at__isnull=True).select_related("tenant")
    live = suspension.order_by("created_at").first()
    values = {
        "row": tenant,
        "errors": errors or {},
        "elsewhere": [text for name, text in (errors or {}).items() if name not in AT_FIELDS],
        "title": given.get("title", tenant.display_name),
        "description": given.get("description", tenant.description),
        "labels_text": given.get("labels", labels_text(tenant.labels)),
        "facts": _facts(tenant),
        "rules": _rules(tenant, above, errors or {}),
        "longest_days": given.get("longest_days", str(tenant.policy.get("longest_s", 0) // DAY_S or "")),
        "longest_sentence": _longest(tenant, above),
        "rates": _rates(tenant, above, given, errors or {}),
        "approvals": _approvals(tenant, above),
        "children": _children(tenant),
        "child_columns": [
            {"key": "title", "label": _("Title")},
            {"key": "name", "label": _("Name")},
            {"key": "state", "label": _("State")},
            {"key": "made", "label": _("Made")},
        ],
        "can_nest": len(tenant.path) < MAX_DEPTH,
        "suspension": live,
        "suspension_words": DEPTHS[SuspensionDepth(live.depth)] if live is not None else None,
        "suspended_here": live is not None and live.tenant_id == tenant.pk,
        "depth_options": [
            {"value": depth.value, "label": title, "text": text} for depth, (title, text) in DEPTHS.items()
        ],
        **{f"may_{word}": access.allowed(request.actor, tenant, ROUTES[name]) for word, name in DEEDS.items()},
        "webhooks_url": reverse("frontend:webhooks", kwargs={"tenant": tenant.name}),
        "given": given,
        "twins": twins.pair(
            f"tenantry tenant policy {tenant.name} {_rule_words(tenant.policy)}",
            twins.api("PUT", f"tenants/{tenant.name}/policy", tenant.policy, version=tenant.version),
        ),
    }
    return render(request, "frontend/pages/settings/show.html", values, status=status)


def _rule_words(policy: Mapping[str, Any]) -> str:
    """Return the lists and the term of a policy as the command line takes them, an example for an empty one."""
    found = [f"{key}={','.join(policy[key])}" for key in LIST_KEYS if key in policy]
    found += [f"longest={policy['longest_s'] // DAY_S}d"] if "longest_s" in policy else []
    found += [f"{key}={policy[key]}" for key in RATE_KEYS if key in policy]
    return " ".join(found) or "sites=berlin longest=90d"


def labels_text(labels: Mapping[str, str]) -> str:
    """Return labels as lines of `key=value`."""
    return "\n".join(f"{key}={value}" for key, value in sorted(labels.items()))


def read_labels(text: str) -> dict[str, str]:
    """Return lines of `key=value` as labels. Raises `InvalidSpec` naming the line."""
    found: dict[str, str] = {}
    for line in filter(None, (each.strip() for each in text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals:
            raise InvalidSpec(_("%(line)s: write key=value.") % {"line": line[:60]}, field="labels")
        found[key.strip()] = value.strip()
    return found


def _facts(tenant: Tenant) -> list[dict[str, Any]]:
    return [
        {"label": _("Name"), "value": tenant.name, "mono": True, "copy_text": tenant.name},
        {"label": _("Short id"), "value": tenant.short_id, "mono": True, "copy_text": tenant.short_id},
        {"label": _("Below"), "value": tenant.parent.display_name if tenant.parent else _("nothing: it is a root")},
        {
            "label": _("Free GPUs are shown"),
            "value": str(STOCK[StockVisibility(tenant.stock_visibility)]),
            "note": _("an operator's to say"),
        },
    ]


def _children(tenant: Tenant) -> list[dict[str, Any]]:
    rows = Tenant.objects.filter(parent=tenant).order_by("name")[:CHILDREN]
    found = []
    for row in rows:
        word, tone = STATUSES.get(row.status, (row.status, "quiet"))
        url = reverse("frontend:home-of", kwargs={"tenant": row.name})
        found.append({"row": row, "url": url, "status": str(word), "tone": tone})
    return found


# --- policy in words --------------------------------------------------------------------------------------


def _known() -> dict[str, dict[str, str]]:
    """Return key of a rule → value → label of everything there is."""
    return {
        "sites": {site: site for site in sorted(set(Provider.objects.values_list("site", flat=True)))},
        "tiers": {tier: str(label) for tier, label in TIERS.items()},
        "products": {name: name for name in _products()},
        "models": {name: name for name in ServedModel.objects.order_by("name").values_list("name", flat=True)},
        "runtimes": {"vllm": "vLLM"},
        "logins": {way.value: str(label) for way, label in LOGINS.items()},
    }


def _products() -> list[str]:
    """Return the GPUs that some host has, in the catalogue's order."""
    there = set(Host.objects.exclude(gpu_product="").values_list("gpu_product", flat=True).distinct())
    return [product.id for product in products() if product.id in there]


def _rules(tenant: Tenant, above: list[Tenant], errors: Mapping[str, str]) -> list[Rule]:
    limits = effective_policy([(row.display_name, row.policy) for row in above])
    found = []
    for key, values in _known().items():
        own = tenant.policy.get(key)
        options = [
            {
                "value": value,
                "label": label,
                "checked": value in own if own is not None else limits.forbids(key, value) is None,
                "disabled": limits.bars(key, value) is not None,
            }
            for value, label in {**values, **{each: each for each in own or () if each not in values}}.items()
        ]
        error = errors.get(f"policy.{key}", "")
        found.append(
            Rule(key, str(TITLES[key]), str(HELP[key]), options, own is not None, _sentence(tenant, key, limits), error)
        )
    return found


def _sentence(tenant: Tenant, key: str, above: Any) -> str:
    """Return what holds now, and who set it."""
    own = tenant.policy.get(key)
    rule = above.rules.get(key)
    if own is not None:
        return _("Only: %(values)s.") % {"values": ", ".join(own) or _("none")}
    if rule is not None:
        return _("As %(tenant)s allows: %(values)s.") % {
            "tenant": rule.tenant,
            "values": ", ".join(rule.allowed) or _("none"),
        }
    if key in STANDARD:
        return _("As the platform has it: %(values)s. An operator can allow more.") % {
            "values": ", ".join(STANDARD[key].allowed)
        }
    return _("Everything there is, also what comes later.")


def _longest(tenant: Tenant, above: list[Tenant]) -> str:
    found = effective_policy([(row.display_name, row.policy) for row in (*above, tenant)])
    if found.longest_s is None:
        return _("No limit: any term may be asked for.")
    days = numbers.number(found.longest_s // DAY_S)
    return _("At most %(days)s days, as %(tenant)s says.") % {"days": days, "tenant": found.longest_by}


def _rates(
    tenant: Tenant, above: list[Tenant], given: Mapping[str, Any], errors: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the rates of all endpoints together: as form, and what holds now in a sentence."""
    found = effective_policy([(row.display_name, row.policy) for row in (*above, tenant)])
    rates = []
    for key, label in (
        ("requests_per_minute", _("Requests per minute")),
        ("tokens_per_minute", _("Tokens per minute")),
    ):
        most = found.most.get(key)
        sentence = _("Of all endpoints together. No limit.")
        if most is not None:
            sentence = _("Of all endpoints together. At most %(n)s, as %(tenant)s says.") % {
                "n": numbers.number(most.number), "tenant": most.tenant,
            }  # fmt: skip
        value = given.get(key, str(tenant.policy.get(key, "")))
        rates.append({"key": key, "label": label, "value": value, "sentence": sentence, "error": errors.get(key, "")})
    return rates


def _approvals(tenant: Tenant, above: list[Tenant]) -> list[dict[str, str]]:
    """Return who decides which kind of request, in words."""
    found = []
    for kind in ("quota", "tenant", "join"):
        stages = DEFAULT_STAGES[kind]
        for row in (*above, tenant):
            stages = tuple(row.policy.get("approvals", {}).get(kind, stages))
        who = ", ".join(outlook.decider(stage) for stage in stages) or outlook.decider(PLATFORM_APPROVER)
        found.append({"label": str(asks.KINDS[kind]), "value": who[:1].upper() + who[1:]})
    return found


# --- changes ----------------------------------------------------------------------------------------------


@page("tenants.update", methods=("POST",))
def save(request: PageRequest) -> HttpResponse:
    """Save title, description and labels."""
    given = request.POST
    try:
        tenants.update(
            tenant=request.tenant,
            display_name=given.get("title", ""),
            description=given.get("description", ""),
            labels=read_labels(given.get("labels", "")),
            version=read_number(given.get("version"), field="version"),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _again(request, error)
    messages.success(request, _("Saved."))
    return back(request)


@page("tenants.set_policy", methods=("POST",))
def set_policy(request: PageRequest) -> HttpResponse:
    """Narrow (or, from above, widen) what may be asked for here; what runs already stays."""
    try:
        tenants.set_policy(
            tenant=request.tenant,
            policy=_given_policy(request.tenant, request.POST),
            version=read_number(request.POST.get("version"), field="version"),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _again(request, error)
    messages.success(request, _("The policy holds from now on; what runs already stays as it is."))
    return back(request)


def _given_policy(tenant: Tenant, given: QueryDict) -> dict[str, Any]:
    """Return the policy of the form; rules the form does not show stay. Raises `InvalidSpec`."""
    policy: dict[str, Any] = {key: value for key, value in tenant.policy.items() if key == "approvals"}
    for key in LIST_KEYS:
        if given.get(f"limit:{key}"):
            policy[key] = given.getlist(key)
    days = given.get("longest_days", "").strip()
    if days:
        policy["longest_s"] = read_number(days, field="policy.longest_s") * DAY_S
    for key in RATE_KEYS:
        if rate := given.get(key, "").strip():
            policy[key] = read_number(rate, field=f"policy.{key}")
    return policy


def _again(request: PageRequest, error: ControlPlaneError) -> HttpResponse:
    found = {FIELDS.get(name, name): words.plain(text) for name, text in problems.at_fields(error).items()}
    with reading(request.actor):
        return _page(request, errors=found, status=problems.status_of(error))


def back(request: PageRequest, name: str = "settings") -> HttpResponse:
    """Return to a page of the settings."""
    return HttpResponseRedirect(reverse(f"frontend:{name}", kwargs={"tenant": request.tenant.name}))


@page("tenants.suspend", methods=("POST",))
def suspend(request: PageRequest) -> HttpResponse:
    """Suspend the tenant and everything below it; its name must be typed."""
    given = request.POST
    try:
        check_typed(request)
        tenants.suspend(
            tenant=request.tenant,
            depth=_depth(given.get("depth", "")),
            reason=given.get("reason", ""),
            until=_until(given.get("until", "")),
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        return _again(request, error)
    messages.success(request, _("%(tenant)s is suspended.") % {"tenant": request.tenant.display_name})
    return back(request)


def _depth(word: str) -> SuspensionDepth:
    try:
        return SuspensionDepth(word)
    except ValueError as error:
        raise InvalidSpec(_("Choose how deep."), field="depth") from error


def _until(text: str) -> datetime | None:
    if not text.strip():
        return None
    try:
        return datetime.fromisoformat(asks.end_of_day(text))
    except ValueError as error:
        raise InvalidSpec(_("Give a day."), field="until") from error


@page("tenants.resume", methods=("POST",))
def resume(request: PageRequest) -> HttpResponse:
    """End the suspension."""
    try:
        tenants.resume(tenant=request.tenant, actor=request.actor, now=request.now)
    except Conflict as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, _("Everything goes back to what it was."))
    return back(request)


@page("tenants.create_child", methods=("POST",))
def create_child(request: PageRequest) -> HttpResponse:
    """Make a tenant below this one; the person owns it through this one."""
    given = request.POST
    try:
        made = tenants.create(
            name=given.get("name", "").strip(),
            display_name=given.get("child_title", ""),
            parent=request.tenant,
            managed_by="portal",
            actor=request.actor,
            now=request.now,
        )
    except (InvalidSpec, Conflict) as error:
        if error.specific_code == "name-taken":
            error = InvalidSpec(error.detail, field="name")
        return _again(request, error)
    messages.success(request, _("%(tenant)s is made. Give it limits under Quota.") % {"tenant": made.display_name})
    return HttpResponseRedirect(reverse("frontend:home-of", kwargs={"tenant": made.name}))
