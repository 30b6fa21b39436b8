"""New: three cards, then one screen per kind with everything preset; its preview says what would happen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from django.core.exceptions import ValidationError
from django.http import HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from frontend.design import numbers
from frontend.design.quota_bar import QuotaLine
from frontend.forms import sizes, wishes
from frontend.forms.sizes import Size
from frontend.forms.wishes import CapacityWish, EndpointWish
from frontend.kernel import once, outlook, problems, stock
from frontend.kernel.page import PageRequest, page
from frontend.kernel.stock import Served, Stock
from tenants import fit, machine_images, served_facts
from tenants.errors import ControlPlaneError, InvalidSpec
from tenants.fit import CannotServe, Fit, Offer
from tenants.models import Endpoint, Machine, Namespace, Tenant
from tenants.models.fields import slug_validator
from tenants.models_catalogue import NoSuchQuantisation
from tenants.operations import endpoints, fit_corrections, machines, namespaces
from tenants.operations.allocations import Ask, demand_of
from tenants.operations.pricing import all_prices
from tenants.specs import AllocationSpec, EndpointAsk, MachineAsk, NamespaceAsk, RevisionAsk
from tenants.states import Login, OnShortage, ProductKind, Tier
from tenants.transactions import reading

OFFERS_SHOWN: Final = 4
FIELDS: Final[Mapping[str, str]] = {
    "where.tier": "where",
    "where.kind": "where",
    "where.site": "where",
    "term.duration_s": "days",
    "allocation.units": "size",
}
"""Field of a spec → field of the form; others have the same name."""


@page("endpoints.create")
def choose(request: PageRequest) -> HttpResponse:
    """Show the three cards."""
    held = stock.of(request.tenant)
    return render(request, "frontend/pages/new/choose.html", {"stock": held})


# --- model endpoint ---------------------------------------------------------------------------------


@dataclass(slots=True)
class EndpointScreen:
    """What the screen of a new endpoint shows."""

    stock: Stock
    models: list[Served]
    wish: EndpointWish
    fit: Fit | None = None
    offers: list[Offer] = field(default_factory=list)
    chosen: Offer | None = None
    why_none: str = ""
    price: outlook.Price | None = None
    bars: list[QuotaLine] = field(default_factory=list)
    outlook: outlook.Outlook | None = None

    @property
    def served(self) -> Served | None:
        """Return the chosen model."""
        return next((one for one in self.models if one.name == self.wish.model), None)

    @property
    def why_not_smaller(self) -> str:
        """Return why the size below the chosen one will not do."""
        found = self.fit.why_not_smaller if self.fit is not None else None
        return found.sentence if found is not None and self.chosen is not None and self.chosen is self.fit_best else ""

    @property
    def fit_best(self) -> Offer | None:
        """Return the cheapest that fits."""
        return self.offers[0] if self.offers else None

    def ask(self) -> EndpointAsk:
        """Return what the operation takes. Raises `InvalidSpec` for a bad name, or where no size serves the wish."""
        check_name(self.wish.name)
        spec = self.spec()
        assert self.chosen is not None
        return EndpointAsk(self.wish.name, RevisionAsk(self.wish.model, dict(self.chosen.arguments)), spec)

    def spec(self) -> AllocationSpec:
        """Return the capacity. Raises `InvalidSpec` where no size serves the wish."""
        if self.chosen is None:
            raise InvalidSpec(self.why_none or _("Choose a model."), field="model")
        return AllocationSpec(
            units=(self.chosen.unit,),
            where=self.wish.place.where,
            term=wishes.term_of(self.wish.days),
            on_shortage=OnShortage.REQUEST,
        )


def check_name(name: str) -> None:
    """Raise `InvalidSpec` at the name unless it is a DNS label."""
    try:
        slug_validator(name)
    except ValidationError as error:
        msg = _("Use a-z, 0-9 and hyphens, beginning with a letter, at most 40 characters.")
        raise InvalidSpec(msg, field="name") from error


def size_key(offer: Offer) -> str:
    """Return the value of an offer's radio button."""
    return f"{offer.size.product}/{offer.size.profile or 'whole'}/{offer.size.count}"


def endpoint_screen(tenant: Tenant | None, given: QueryDict, *, now: datetime) -> EndpointScreen:
    """Return the screen for half-filled input, in the caller's read block; without a tenant that of a first wish."""
    held = stock.of(tenant if tenant is not None else Tenant(path=[]))
    models = stock.models(held.policy, tenant.path if tenant is not None else ())
    taken = Endpoint.objects.filter(tenant=tenant, released_at__isnull=True).values_list("name", flat=True)
    with_facts = [one.name for one in models if one.facts is not None]
    wish = EndpointWish.read(given, models=[*with_facts, *(one.name for one in models)], name="")
    if not wish.name:
        preset = wishes.free_name(wish.model or "model", taken)
        wish = EndpointWish(wish.model, wish.users, wish.context, wish.place, wish.days, preset, wish.size)
    screen = EndpointScreen(held, models, wish)
    _choose(screen, now=now)
    if screen.chosen is not None:
        demand = demand_of(Ask(wish.name, screen.spec(), ProductKind.ENDPOINT))
        screen.price = outlook.price(demand, now, wishes.ends(now, wish.days))
        screen.bars = outlook.bars(tenant, demand) if tenant is not None else []
    return screen


def _choose(screen: EndpointScreen, *, now: datetime) -> None:
    served, wish = screen.served, screen.wish
    if served is None or served.facts is None:
        screen.why_none = _("The memory that this model needs is not known here; order it by the command line.")
        return
    try:
        found = fit.choose(
            served.facts,
            users=wish.users,
            context_tokens=wish.context,
            products=screen.stock.products,
            prices=all_prices(),
            at=now,
            quantisation=served_facts.quantisation_of(served.row),
            corrections=fit_corrections.corrections_of(served.row),
        )
    except (CannotServe, NoSuchQuantisation) as error:
        screen.why_none = str(error)
        return
    usable = [offer for offer in found.offers if _allowed(offer, wish)]
    screen.fit = found
    screen.offers = usable[:OFFERS_SHOWN]
    screen.chosen = next((offer for offer in usable if size_key(offer) == wish.size), usable[0] if usable else None)
    if screen.chosen is not None and screen.chosen not in screen.offers:
        screen.offers.append(screen.chosen)
    if screen.chosen is None:
        screen.why_none = found.sentence


def _allowed(offer: Offer, wish: EndpointWish) -> bool:
    return wish.place.tier is Tier.SHARED or not offer.size.profile


def _dry_endpoint(request: PageRequest, screen: EndpointScreen) -> outlook.Outlook:
    if screen.chosen is None:
        return outlook.Outlook(outlook.NEVER, screen.why_none or _("Nothing here fits."))
    return outlook.of(
        lambda: endpoints.create(
            tenant=request.tenant, ask=screen.ask(), actor=request.actor, now=request.now, managed_by="portal"
        )
    )


@page("endpoints.create", methods=("GET", "POST"), own_blocks=True)
def endpoint(request: PageRequest) -> HttpResponse:
    """Show the screen of a new endpoint, or deploy it: one submit, and its page builds itself."""
    given = request.POST if request.method == "POST" else request.GET
    with reading(request.actor):
        screen = endpoint_screen(request.tenant, given, now=request.now)
    if request.method != "POST":
        screen.outlook = _dry_endpoint(request, screen)
        name = "frontend/pages/new/endpoint.html"
        if request.htmx:
            name = "frontend/pages/new/_endpoint_answer.html"
        return _shown(request, name, screen, {})
    try:
        made = endpoints.create(
            tenant=request.tenant, ask=screen.ask(), actor=request.actor, now=request.now, managed_by="portal"
        )
    except ControlPlaneError as error:
        screen.outlook = outlook.Outlook(outlook.NEVER, error.detail)
        return _shown(
            request, "frontend/pages/new/endpoint.html", screen, _fields(error), status=problems.status_of(error)
        )
    address = reverse("frontend:endpoint", kwargs={"tenant": request.tenant.name, "name": made.endpoint.name})
    response = HttpResponseRedirect(address)
    once.put(request, response, made.secret, path=address)
    return response


# --- machine and namespace --------------------------------------------------------------------------


@dataclass(slots=True)
class CapacityScreen:
    """What the screen of a new machine or namespace shows."""

    stock: Stock
    sizes: list[Size]
    wish: CapacityWish
    chosen: Size | None
    prices: dict[str, outlook.Price] = field(default_factory=dict)
    price: outlook.Price | None = None
    bars: list[QuotaLine] = field(default_factory=list)
    outlook: outlook.Outlook | None = None
    images: tuple[str, ...] = ()
    """Slugs of what a machine can be made of."""
    takes_keys: bool = False
    """Whether policy allows keys that stay on a machine."""

    def spec(self) -> AllocationSpec:
        """Return the capacity. Raises `InvalidSpec` where there is nothing to choose from."""
        if self.chosen is None:
            raise InvalidSpec(_("No GPU is open here at the moment."), field="size")
        whole = self.chosen.is_whole
        units = (self.chosen.unit(self.wish.count if whole else 1),) * (1 if whole else self.wish.count)
        return AllocationSpec(
            units=units,
            where=self.wish.place.where,
            term=wishes.term_of(self.wish.days),
            on_shortage=OnShortage.REQUEST,
        )


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the two kinds that are plain capacity."""

    product: ProductKind
    model: type[Any]
    template: str
    route: str
    create: Callable[[PageRequest, CapacityScreen], Any]


def _machine(request: PageRequest, screen: CapacityScreen) -> Machine:
    keys = tuple(line.strip() for line in screen.wish.ssh_key.splitlines() if line.strip())
    check_name(screen.wish.name)
    spec = screen.spec()
    ask = MachineAsk(screen.wish.name, spec, screen.wish.image, screen.wish.disk_gib, keys)
    return machines.create(tenant=request.tenant, ask=ask, actor=request.actor, now=request.now, managed_by="portal")


def _namespace(request: PageRequest, screen: CapacityScreen) -> Namespace:
    check_name(screen.wish.name)
    ask = NamespaceAsk(screen.wish.name, screen.spec())
    return namespaces.create(tenant=request.tenant, ask=ask, actor=request.actor, now=request.now, managed_by="portal")


MACHINE: Final = Kind(ProductKind.MACHINE, Machine, "machine", "frontend:machine", _machine)
NAMESPACE: Final = Kind(ProductKind.NAMESPACE, Namespace, "namespace", "frontend:namespace", _namespace)


def capacity_screen(tenant: Tenant, kind: Kind, given: QueryDict, request: PageRequest) -> CapacityScreen:
    """Return the screen for half-filled input, in the caller's read block."""
    held = stock.of(tenant)
    taken = kind.model.objects.filter(tenant=tenant, released_at__isnull=True).values_list("name", flat=True)
    preset = wishes.free_name({"machine": "machine", "namespace": "space"}[kind.template], taken)
    takes_keys = kind is MACHINE and held.policy.forbids("logins", Login.KEY) is None
    keys = _last_keys(request) if takes_keys else ""
    images = machine_images.offered() if kind is MACHINE else ()
    wish = CapacityWish.read(given, name=preset, image=machine_images.first(images), ssh_key=keys)
    offered = sizes.of(held.products, whole_only=wish.place.tier is not Tier.SHARED)
    screen = CapacityScreen(held, offered, wish, sizes.find(offered, wish.size), images=images, takes_keys=takes_keys)
    known = all_prices()
    end = wishes.ends(request.now, wish.days)
    for size in offered:
        spec = AllocationSpec(units=(size.unit(),))
        demand = demand_of(Ask(wish.name, spec, kind.product))
        screen.prices[size.key] = outlook.price(demand, request.now, end, prices=known)
    if screen.chosen is not None:
        demand = demand_of(Ask(wish.name, screen.spec(), kind.product))
        screen.price = outlook.price(demand, request.now, end, prices=known)
        screen.bars = outlook.bars(tenant, demand)
    return screen


def _last_keys(request: PageRequest) -> str:
    """Return the keys of the person's last machine: he will log in with the same ones."""
    found = (
        Machine.objects.filter(owner_id=request.actor.person_id)
        .order_by("-created_at")
        .values_list("ssh_keys", flat=True)
        .first()
    )
    return "\n".join(found or [])


def _capacity(request: PageRequest, kind: Kind) -> HttpResponse:
    given = request.POST if request.method == "POST" else request.GET
    with reading(request.actor):
        screen = capacity_screen(request.tenant, kind, given, request)
    if request.method != "POST":
        screen.outlook = outlook.of(lambda: kind.create(request, screen))
        part = f"_{kind.template}_answer" if request.htmx else kind.template
        return _shown(request, f"frontend/pages/new/{part}.html", screen, {})
    try:
        made = kind.create(request, screen)
    except ControlPlaneError as error:
        screen.outlook = outlook.Outlook(outlook.NEVER, error.detail)
        name = f"frontend/pages/new/{kind.template}.html"
        return _shown(request, name, screen, _fields(error), status=problems.status_of(error))
    return HttpResponseRedirect(reverse(kind.route, kwargs={"tenant": request.tenant.name, "name": made.name}))


@page("machines.create", methods=("GET", "POST"), own_blocks=True)
def machine(request: PageRequest) -> HttpResponse:
    """Show the screen of a new machine, or make it."""
    return _capacity(request, MACHINE)


@page("namespaces.create", methods=("GET", "POST"), own_blocks=True)
def namespace(request: PageRequest) -> HttpResponse:
    """Show the screen of a new namespace, or make it."""
    return _capacity(request, NAMESPACE)


# --- what they share --------------------------------------------------------------------------------


def _fields(error: ControlPlaneError) -> dict[str, str]:
    """Return field of the form → sentence; a conflict of names stands at the name."""
    found: dict[str, str] = {}
    for name, sentence in problems.at_fields(error).items():
        plain = name.removeprefix("allocation.")
        if error.specific_code == "name-taken":
            plain = "name"
        elif plain.startswith("units"):
            plain = "size"
        elif plain.startswith("ssh_keys"):
            plain = "ssh_key"
        found[FIELDS.get(plain, plain)] = sentence
    return found


def _shown(
    request: PageRequest, template: str, screen: Any, errors: Mapping[str, str], *, status: int = 200
) -> HttpResponse:
    wish = screen.wish
    images = screen.images if isinstance(screen, CapacityScreen) else ()
    values: dict[str, Any] = {
        "screen": screen,
        "wish": wish,
        "errors": errors,
        "ends": wishes.ends(request.now, wish.days),
        "place_options": [
            {"value": place.key, "label": place.label, "text": place.help}
            for place in wishes.PLACES
            if _offered(place, screen.stock)
        ],
        "days_options": days_options(wish.days),
        "image_options": [{"value": image, "label": image} for image in images],
        "breadcrumbs": [
            {"label": _("New"), "url": reverse("frontend:new", kwargs={"tenant": request.tenant.name})},
            {"label": _("Model endpoint") if isinstance(screen, EndpointScreen) else _("Capacity"), "url": ""},
        ],
    }
    if isinstance(screen, EndpointScreen):
        values |= endpoint_options(screen)
    else:
        values["size_options"] = [_size_option(size, screen.prices[size.key]) for size in screen.sizes]
    return render(request, template, values, status=status)


def endpoint_options(screen: EndpointScreen) -> dict[str, Any]:
    """Return what the fields of an endpoint offer."""
    wish = screen.wish
    longest = screen.served.facts.max_context if screen.served and screen.served.facts else max(wishes.CONTEXTS)
    contexts = sorted({*(value for value in wishes.CONTEXTS if value <= longest), min(wish.context, longest)})
    money_word = screen.price.currency if screen.price is not None else "EUR"
    return {
        "model_options": [_model_option(one) for one in screen.models],
        "context_options": [
            {"value": value, "label": _("%(n)s tokens") % {"n": numbers.number(value)}} for value in contexts
        ],
        "size_options": [_offer_option(offer, money_word) for offer in screen.offers],
        "chosen_size": size_key(screen.chosen) if screen.chosen is not None else "",
    }


def _model_option(one: Served) -> dict[str, Any]:
    figures = [{"label": _("Licence"), "value": one.row.licence or "--"}]
    if one.facts is not None:
        billions = Decimal(one.facts.params_total) / 10**9
        figures.insert(0, {"label": _("Parameters"), "value": f"{numbers.number(billions, 0)} B"})
        figures.append({"label": _("Longest context"), "value": numbers.short(one.facts.max_context)})
    return {"value": one.name, "label": one.name, "text": one.row.repository, "figures": figures}


RANKS: Final = {
    fit.Rank.CHEAPEST: (gettext_lazy("Cheapest that fits"), "ok"),
    fit.Rank.ROOMIER: (gettext_lazy("Roomier"), "info"),
    fit.Rank.FASTER: (gettext_lazy("Faster"), "info"),
}


def _offer_option(offer: Offer, money_word: str) -> dict[str, Any]:
    badge, tone = RANKS.get(offer.rank, ("", "quiet"))
    return {
        "value": size_key(offer),
        "label": offer.size.name,
        "badge": badge,
        "tone": tone,
        "text": _("Room for %(n)s users at %(context)s tokens each.")
        % {"n": numbers.number(offer.most_users), "context": numbers.number(offer.context_tokens)},
        "figures": [
            {"label": _("Tokens/s (estimated)"), "value": numbers.number(offer.estimated_tokens_s, 0)},
            {"label": _("Slots"), "value": numbers.number(offer.size.slices)},
            {"label": _("Per hour"), "value": numbers.money(offer.price_hour, money_word)},
            {
                "label": _("Per million tokens (est.)"),
                "value": numbers.money(offer.estimated_price_million_tokens, money_word),
            },
        ],
    }


def _size_option(size: Size, price: outlook.Price) -> dict[str, Any]:
    unit = size.unit()
    return {
        "value": size.key,
        "label": size.name,
        "text": _("%(vcpu)d vCPU, %(memory)d GiB") % {"vcpu": unit.vcpu, "memory": unit.memory_gib},
        "figures": [
            {"label": _("GPU memory"), "value": f"{numbers.number(size.memory_gib)} GiB" if size.memory_gib else "--"},
            {"label": _("Slots"), "value": f"{size.slices}/{size.of_slices}"},
            {"label": _("Per hour"), "value": numbers.money(price.hour, price.currency)},
        ],
    }


def days_options(present: int) -> list[dict[str, Any]]:
    """Return the terms to choose from, with the present one."""
    found = []
    for days in sorted({*wishes.DAYS, present}):
        text = ngettext("%(n)d day", "%(n)d days", days) % {"n": days}
        found.append(
            {"value": days, "label": _("%(days)s, as a trial") % {"days": text} if days <= wishes.TRIAL_DAYS else text}
        )
    return found


def _offered(place: wishes.Place, held: Stock) -> bool:
    """Whether a place exists here and policy allows its tier."""
    return held.tier_allowed(place.tier.value) and (place.kind is None or place.kind.value in held.kinds)
