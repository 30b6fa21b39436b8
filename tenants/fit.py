"""Which GPU serves a model for so many people: users × context → the smallest size, its price and its rough speed.

Pure. Bytes come from `models_catalogue`, windows from `gpu_catalogue`, prices from `pricing`; what a GPU reads
and computes per second from `data/gpu-speeds.json`, where each entry names its source. Memory decides what fits;
activation and run-time overhead are estimates, corrected by what real starts on that size reported
(`fit_corrections`), and then the answer says so. Tokens per second are a roofline (reading weights and cache
against computing), never a measurement, and every field made from them begins with `estimated_`.

Invariants: an offer holds its weights and the cache of all its users; the order of offers does not depend on the
number of users, so more users never choose a smaller size.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from fractions import Fraction
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from tenants import gpu_catalogue
from tenants.fit_corrections import Correction, Corrections, SizeKey
from tenants.gpu_catalogue import WHOLE, Product, Profile, SoldByWindow
from tenants.models_catalogue import (
    BIG_DEVICE_GIB,
    GIB,
    NoSuchQuantisation,
    Quantisation,
    ServedModelData,
    memory_need,
)
from tenants.pricing import NoPrice, PriceList, money
from tenants.specs import GpuAsk, UnitAsk

UTILISATION: Final = Decimal("0.92")
"""Part of the memory that the runtime takes; default of vLLM 0.32."""
VISIBLE: Final = Decimal("0.93")
"""Part of the printed memory that programs see, where no driver's figure is known (error correction, firmware)."""
AVERAGE_FILL: Final = Fraction(1, 2)
"""Part of its context that a request fills on average, for speed only; room is kept for all of it."""
READ_EFFICIENCY: Final = 0.6
COMPUTE_EFFICIENCY: Final = 0.4
SPLIT_EFFICIENCY: Final = 0.85
"""Of several GPUs that serve one model together."""
STEP_OVERHEAD_S: Final = 0.0015
"""Scheduling and sampling per step. The four are rules of thumb; a measurement replaces the whole estimate."""
ROOMIER: Final = 2
"""The roomier offer has room for so many times the users that the cheapest has room for."""
FASTER: Final = 1.5
"""The faster offer answers each user so many times as fast."""
LEAST_CONTEXT: Final = 256
"""Tokens; the least that an endpoint may be started with (`serving_arguments`)."""
LEAST_CAPABILITY: Final = Decimal("8.0")
"""CUDA compute capability from which bfloat16 runs. Source: vLLM 0.32 documentation, supported hardware."""


class Rank(StrEnum):
    """Why an offer is where it is in the list."""

    CHEAPEST = "cheapest"
    ROOMIER = "roomier"
    FASTER = "faster"
    ALSO = "also"


class Shortage(StrEnum):
    """What a refused size lacks; each has a sentence in `Refusal.sentence`."""

    WEIGHTS = "weights-too-big"
    CACHE = "cache-too-small"
    CAPABILITY = "too-old"
    MAKE = "other-make"
    UNKNOWN_MEMORY = "memory-unknown"
    SPLIT = "cannot-be-split"


class CannotServe(ValueError):
    """No size of any product can serve this: the sentence says what to change."""


@dataclass(frozen=True, slots=True)
class Size:
    """One thing that can be bought: a window of one GPU, or whole GPUs of one host."""

    product: str
    profile: str
    """MIG profile; `WHOLE` ("") for whole GPUs."""
    count: int
    """GPUs; 1 with a profile."""
    device_bytes: int
    """Memory that programs see on each device; 0 where nobody knows it."""
    slices: int
    """Memory slices of all its GPUs: what quota counts and prices multiply."""
    read_bytes_s: int
    """Bytes per second from memory, one device, by data sheet."""
    compute_s: int
    """Operations per second, one device, by data sheet."""

    @property
    def name(self) -> str:
        """Return it as people say it: `H100-80GB 1g.20gb`, `2 × H100-80GB`."""
        if self.profile:
            return f"{self.product} {self.profile}"
        return self.product if self.count == 1 else f"{self.count} × {self.product}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A size that fits, with what it would be like."""

    size: Size
    rank: Rank
    users: int
    """As asked."""
    context_tokens: int
    """As asked, at least `LEAST_CONTEXT`."""
    most_users: int
    """How many users of this context the memory has room for at once."""
    weights_bytes: int
    """Of the whole model."""
    kv_bytes: int
    """Cache of all users with full context, over all devices."""
    overhead_bytes: int
    """Activation and run time, over all devices; estimated."""
    memory_bytes: int
    """What the runtime may use (`UTILISATION` of what there is), over all devices."""
    unit: UnitAsk
    """What to order: GPU, vCPU and main memory."""
    arguments: Mapping[str, Any]
    """Serving arguments that go with it, of the typed allow-list."""
    estimated_tokens_s: int
    """Over all users together, when all of them write."""
    estimated_tokens_s_per_user: int
    price_hour: Decimal | None
    """None: nobody has set a price for it."""
    estimated_price_million_tokens: Decimal | None
    """At full load; idle time costs the same by the hour."""
    estimated: bool = True
    """Speed is estimated until it was measured."""
    correction: Correction | None = None
    """What real starts on this size have made of the estimate of its memory."""

    @property
    def free_bytes(self) -> int:
        """Return what is left when all users fill their contexts; never negative."""
        return self.memory_bytes - self.weights_bytes - self.kv_bytes - self.overhead_bytes

    @property
    def sentence(self) -> str:
        """Return it in words for people."""
        room = f"room for {self.most_users} at {self.context_tokens:,} tokens each"
        speed = f"about {self.estimated_tokens_s_per_user} tokens per second for each of {self.users} (estimated)"
        return f"{self.size.name}: {speed}, {room}.{_corrected(self.correction)}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A size that does not fit, and the number that is missing."""

    size: Size
    shortage: Shortage
    needed: int
    """Bytes on each device; for `too-old` ten times the capability."""
    available: int
    """The same, as it is there."""
    users: int = 0
    """As asked; 0 where they are not what it fails by."""
    context_tokens: int = 0
    """As asked; 0 where it is not what it fails by."""
    most_users: int = 0
    """How many users of the context would fit; 0 where not even the weights do."""
    longest_context: int = 0
    """The context with which the users would fit, at least 256 tokens; 0 for none."""
    correction: Correction | None = None
    """What real starts on this size have made of the estimate of its memory."""

    @property
    def missing(self) -> int:
        """Return what is missing, in the unit of `needed`."""
        return max(self.needed - self.available, 0)

    @property
    def sentence(self) -> str:
        """Return it in words for people, with the number that is missing."""
        return f"{self._why}{_corrected(self.correction)}"

    @property
    def _why(self) -> str:
        name = self.size.name
        match self.shortage:
            case Shortage.WEIGHTS:
                return f"{name} is {_gib(self.missing)} short of the weights and the runtime alone."
            case Shortage.CACHE:
                asked = f"{self.users} × {self.context_tokens:,} tokens"
                other = f", or all of them with {self.longest_context:,} tokens" if self.longest_context else ""
                least = f"It has room for {self.most_users} of them{other}"
                return f"{name} is {_gib(self.missing)} short of the cache for {asked}. {least}."
            case Shortage.CAPABILITY:
                return f"{name} is too old: compute capability {self.available / 10}, needed is {self.needed / 10}."
            case Shortage.MAKE:
                return f"{name} is not made by NVIDIA, and the runtime here needs that."
            case Shortage.UNKNOWN_MEMORY:
                return f"{name}: its memory is not known before a provider has reported one."
            case Shortage.SPLIT:
                together = "one GPU alone" if self.size.count == 1 else f"{self.size.count} GPUs together"
                return f"{name}: this model does not run on {together}."


@dataclass(frozen=True, slots=True)
class Fit:
    """What fits, best first, and what does not, largest first."""

    offers: tuple[Offer, ...]
    refused: tuple[Refusal, ...]
    why_not_smaller: Refusal | None
    """The size just below the first offer, of the same product where there is one; None if it is the smallest."""

    @property
    def best(self) -> Offer | None:
        """Return the cheapest that fits, None for nothing."""
        return self.offers[0] if self.offers else None

    @property
    def sentence(self) -> str:
        """Return the answer in one or two sentences."""
        if self.best is None:
            nearest = self.refused[0].sentence if self.refused else "No GPU was given to choose from."
            return f"Nothing here fits. {nearest}"
        smaller = f" {self.why_not_smaller.sentence}" if self.why_not_smaller else ""
        return f"{self.best.sentence}{smaller}"


def choose(
    model: ServedModelData,
    *,
    users: int,
    context_tokens: int,
    products: Collection[str],
    prices: PriceList,
    at: datetime,
    reported: Collection[str] = (),
    quantisation: Quantisation = Quantisation.NATIVE,
    kv_bits: int = 16,
    most_gpus: int = 8,
    provider: str = "",
    site: str = "",
    corrections: Corrections | None = None,
) -> Fit:
    """Return what serves `model` for `users` at once with `context_tokens` each (their words and its answers).

    `products` are the catalogue ids to choose from; windows are offered of those sold by window, and of those in
    `reported` (a provider showed a layout that explains them); whole GPUs up to `most_gpus` of one host. Prices
    are those in force `at` a moment (`tenants.operations.pricing.all_prices()`; an empty `PriceList()` will do,
    then nothing is priced and sizes are ordered by memory). `offers` begin with the cheapest that fits, then one
    with room for twice as many, then one half as fast again, then the others by price. `Offer.unit` and
    `Offer.arguments` are ready to be ordered. `corrections`: what real starts of this model have taught about sizes.

    Raises `UnknownProduct`, `NoSuchQuantisation`, and `CannotServe` for users below 1 or a context that the model
    does not take.
    """
    if users < 1:
        raise CannotServe("Ask for at least one user.")
    if not 1 <= context_tokens <= model.max_context:
        msg = f"{model.id} takes contexts of up to {model.max_context:,} tokens, not {context_tokens:,}."
        raise CannotServe(msg)
    if quantisation not in model.weights:
        msg = f"no figure for the {quantisation} weights of {model.id}; known: {', '.join(model.weights)}"
        raise NoSuchQuantisation(msg)
    ask = _Ask(model, users, max(context_tokens, LEAST_CONTEXT), quantisation, kv_bits, corrections or {})
    sizes = [
        size
        for name in dict.fromkeys(products)
        for size in _sizes(gpu_catalogue.product(name), windows=name in reported, most_gpus=most_gpus)
    ]
    found: list[Offer] = []
    refused: list[Refusal] = []
    for size in sizes:
        answer = _try(ask, size)
        if isinstance(answer, Refusal):
            refused.append(answer)
        else:
            found.append(_priced(answer, _price(prices, answer.unit, size, at, provider, site)))
    refused.sort(key=lambda one: (one.size.device_bytes * one.size.count, one.size.name), reverse=True)
    offers = _ranked(found)
    return Fit(offers, tuple(refused), _below(offers[0].size, refused) if offers else None)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a replica takes of each of its devices, in bytes, before any correction."""

    token_bytes: int
    """Cache of one token."""
    weights_bytes: int
    overhead_bytes: int
    """Activation and run time."""
    budget_bytes: int
    """What the runtime may use."""

    @property
    def fixed_bytes(self) -> int:
        """Return what does not grow with requests."""
        return self.weights_bytes + self.overhead_bytes

    @property
    def cache_tokens(self) -> int:
        """Return how many tokens of cache there is room for, over all requests; 0 if not even the weights fit."""
        return max(self.budget_bytes - self.fixed_bytes, 0) // self.token_bytes


def estimate_of(
    model: ServedModelData,
    *,
    product: str,
    profile: str,
    gpus: int,
    utilisation: Decimal = UTILISATION,
    quantisation: Quantisation = Quantisation.NATIVE,
    kv_bits: int = 16,
) -> Estimate | None:
    """Return the estimate that `choose` makes of one size; None where nobody knows its memory.

    Raises `UnknownProduct`, `UnknownProfile`, `NoSuchQuantisation`.
    """
    made = gpu_catalogue.product(product)
    part = gpu_catalogue.profile(made, profile) if profile else None
    known = _visible_gib(made) if part is None else part.memory_gib_planning
    if not known:
        return None
    if quantisation not in model.weights:
        msg = f"no figure for the {quantisation} weights of {model.id}; known: {', '.join(model.weights)}"
        raise NoSuchQuantisation(msg)
    ask = _Ask(model, 1, LEAST_CONTEXT, quantisation, kv_bits)
    device_bytes = int(known * GIB)
    return Estimate(
        token_bytes=kv_bytes_per_token(model, devices=gpus, kv_bits=kv_bits),
        weights_bytes=-(-ask.weights // gpus),
        overhead_bytes=ask.overhead(device_bytes),
        budget_bytes=int(device_bytes * utilisation),
    )


def kv_bytes_per_token(model: ServedModelData, *, devices: int = 1, kv_bits: int = 16) -> int:
    """Return the cache of one token on each of `devices` that serve together.

    Heads are shared out, but a device keeps at least one; a compressed cache (`mla`) is repeated on every device.
    Source: vLLM 0.32, v1/core/kv_cache_utils.py. Raises `ValueError` but for 8 and 16 bits.
    """
    whole = model.kv_bytes_per_token(kv_bits=kv_bits)
    if model.attention == "mla" or model.kv_heads is None:
        return whole
    return -(-whole // min(devices, model.kv_heads))


# --- sizes ---------------------------------------------------------------------------------------


def _sizes(product: Product, *, windows: bool, most_gpus: int) -> Iterator[Size]:
    """Yield what can be bought of a product: base windows smaller than the GPU, then 1, 2, 4, 8 whole GPUs."""
    reads, computes = _speeds()[product.id]
    if product.sold_by_window is SoldByWindow.ALWAYS or windows:
        for part in product.placeable:
            if part.kind in {"base", "double-memory"} and part.size < product.slices:
                yield Size(
                    product.id,
                    part.name,
                    1,
                    int((part.memory_gib_planning or 0) * GIB),
                    part.size,
                    int(reads * Fraction(part.size, product.slices)),
                    int(computes * _compute_share(product, part)),
                )
    count = 1
    while count <= most_gpus:
        memory = int(_visible_gib(product) * GIB)
        yield Size(product.id, WHOLE, count, memory, product.slices * count, reads, computes)
        count *= 2


def _compute_share(product: Product, part: Profile) -> Fraction:
    if part.compute_slices is None or not product.whole.compute_slices:
        return Fraction(part.size, product.slices)
    return Fraction(part.compute_slices, product.whole.compute_slices)


def _visible_gib(product: Product) -> Decimal:
    """Return what a whole GPU shows: what its largest profile does, else a cautious part of the printed size."""
    full = [part.memory_gib_planning for part in product.profiles if part.size == product.slices]
    known = [memory for memory in full if memory is not None]
    return max(known) if known else product.total_memory_gib * VISIBLE


@cache
def _speeds() -> Mapping[str, tuple[int, int]]:
    """Return product → bytes read and operations done per second, by data sheet."""
    text = files("tenants").joinpath("data", "gpu-speeds.json").read_text(encoding="utf-8")
    return MappingProxyType(
        {
            entry["id"]: (int(entry["memory_bandwidth_gb_s"] * 10**9), int(entry["dense_16bit_tflops"] * 10**12))
            for entry in json.loads(text)["products"]
        }
    )


# --- one size ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ask:
    model: ServedModelData
    users: int
    context: int
    quantisation: Quantisation
    kv_bits: int
    corrections: Corrections = field(default_factory=dict)

    def correction(self, size: Size) -> Correction | None:
        """Return what is known of the estimate for a size, None where nothing was measured."""
        return self.corrections.get(SizeKey(size.product, size.profile, size.count))

    @property
    def weights(self) -> int:
        return self.model.weights[self.quantisation]

    def overhead(self, device_bytes: int) -> int:
        """Return activation and run time on each device of so much memory."""
        big = device_bytes >= BIG_DEVICE_GIB * GIB
        need = memory_need(self.model, context=1, sequences=1, quantisation=self.quantisation, big_device=big)
        return need.activation + need.runtime


def _try(ask: _Ask, size: Size) -> Offer | Refusal:
    """Return the offer of a size, without price, or why there is none."""
    product = gpu_catalogue.product(size.product)
    if product.vendor != "nvidia":
        return Refusal(size, Shortage.MAKE, 0, 0)
    if product.compute_capability is not None and Decimal(product.compute_capability) < LEAST_CAPABILITY:
        seen = int(Decimal(product.compute_capability) * 10)
        return Refusal(size, Shortage.CAPABILITY, int(LEAST_CAPABILITY * 10), seen)
    if not size.device_bytes:
        return Refusal(size, Shortage.UNKNOWN_MEMORY, 0, 0)
    if size.count not in ask.model.tensor_parallel_sizes:
        return Refusal(size, Shortage.SPLIT, 0, 0)
    budget = int(size.device_bytes * UTILISATION)
    fixed = -(-ask.weights // size.count) + ask.overhead(size.device_bytes)
    token = kv_bytes_per_token(ask.model, devices=size.count, kv_bits=ask.kv_bits)
    learnt = ask.correction(size)
    if learnt is not None:
        fixed, token = learnt.fixed_bytes(fixed), learnt.token_bytes(token)
    tokens = max(budget - fixed, 0) // token
    needed = fixed + token * ask.context * ask.users
    if fixed + token > budget:
        return Refusal(size, Shortage.WEIGHTS, fixed + token, budget, correction=learnt)
    if needed > budget:
        longest = min(tokens // ask.users // LEAST_CONTEXT * LEAST_CONTEXT, ask.model.max_context)
        most = tokens // ask.context
        return Refusal(size, Shortage.CACHE, needed, budget, ask.users, ask.context, most, longest, learnt)
    rate = _tokens_s(ask, size)
    weights = min(ask.weights, fixed * size.count)
    return Offer(
        size=size,
        rank=Rank.ALSO,
        users=ask.users,
        context_tokens=ask.context,
        most_users=tokens // ask.context,
        weights_bytes=weights,
        kv_bytes=token * ask.context * ask.users * size.count,
        overhead_bytes=fixed * size.count - weights,
        memory_bytes=budget * size.count,
        unit=_unit(ask, size),
        arguments=_arguments(ask),
        estimated_tokens_s=max(int(rate), 1),
        estimated_tokens_s_per_user=max(int(rate / ask.users), 1),
        price_hour=None,
        estimated_price_million_tokens=None,
        correction=learnt,
    )


def _tokens_s(ask: _Ask, size: Size) -> float:
    """Return tokens per second of all users together: one step writes one token for each.

    A step reads the weights it uses once and every user's cache; of a mixture of experts, more users use more.
    """
    model = ask.model
    active = model.params_active / model.params_total
    used = ask.weights * (1 - (1 - active) ** ask.users if active < 1 else 1.0)
    token = kv_bytes_per_token(model, devices=size.count, kv_bits=ask.kv_bits)
    cache_read = token * ask.users * float(ask.context * AVERAGE_FILL)
    together = SPLIT_EFFICIENCY if size.count > 1 else 1.0
    reading = (used / size.count + cache_read) / (size.read_bytes_s * READ_EFFICIENCY * together)
    operations = 2 * model.params_active * ask.users / size.count
    computing = operations / (size.compute_s * COMPUTE_EFFICIENCY * together)
    return ask.users / (max(reading, computing) + STEP_OVERHEAD_S)


def _unit(ask: _Ask, size: Size) -> UnitAsk:
    """Return what to order: main memory to load the weights through, and processors for the web server and sampling.

    Source: kubernetes-gpu facts, "host memory: request at least the weights"; a quarter more, 8 GiB beside it.
    """
    memory = int((Decimal(ask.weights) / GIB * Decimal("1.25") + 8).to_integral_value(rounding=ROUND_CEILING))
    vcpu = 4 if size.profile and size.slices <= 2 else 8 * size.count
    return UnitAsk(GpuAsk(size.product, size.profile, size.count), vcpu=vcpu, memory_gib=max(16, -(-memory // 8) * 8))


def _arguments(ask: _Ask) -> Mapping[str, Any]:
    arguments: dict[str, Any] = {"max_model_len": ask.context, "max_num_seqs": min(ask.users, 4096)}
    if ask.kv_bits == 8:
        arguments["kv_cache_dtype"] = "fp8"
    return MappingProxyType(arguments)


# --- price and order -----------------------------------------------------------------------------


def _price(prices: PriceList, unit: UnitAsk, size: Size, at: datetime, provider: str, site: str) -> Decimal | None:
    demand = {
        gpu_catalogue.slices_dimension(size.product): size.slices,
        "vcpu": unit.vcpu,
        "memory_gib": unit.memory_gib,
    }
    total = Decimal(0)
    for item, amount in demand.items():
        try:
            total += prices.hourly({item: amount}, at, provider=provider, site=site)
        except NoPrice:
            if item.startswith("gpu."):
                return None  # without the price of the GPU the sum would say nothing
    return total


def _priced(offer: Offer, price: Decimal | None) -> Offer:
    if price is None:
        return offer
    million = money(Fraction(price) * 10**6 / (offer.estimated_tokens_s * 3600), places=2)
    return replace(offer, price_hour=price, estimated_price_million_tokens=million)


def _order(offer: Offer) -> tuple[bool, Decimal, int, int, str]:
    """Cheapest first, unpriced last, then the least memory; nothing of it depends on the number of users."""
    size = offer.size
    unpriced = offer.price_hour is None
    return unpriced, offer.price_hour or Decimal(0), size.device_bytes * size.count, size.slices, size.name


def _ranked(found: list[Offer]) -> tuple[Offer, ...]:
    rest = sorted(found, key=_order)
    if not rest:
        return ()
    first = rest.pop(0)
    ranked = [replace(first, rank=Rank.CHEAPEST)]
    roomier = next((one for one in rest if one.most_users >= ROOMIER * first.most_users), None)
    if roomier is not None:
        rest.remove(roomier)
        ranked.append(replace(roomier, rank=Rank.ROOMIER))
    quick = FASTER * max(one.estimated_tokens_s_per_user for one in ranked)
    faster = next((one for one in rest if one.estimated_tokens_s_per_user >= quick), None)
    if faster is not None:
        rest.remove(faster)
        ranked.append(replace(faster, rank=Rank.FASTER))
    return (*ranked, *rest)


def _below(best: Size, refused: list[Refusal]) -> Refusal | None:
    """Return the largest refused size below the best one, of its own product first."""
    total = best.device_bytes * best.count
    below = [one for one in refused if 0 < one.size.device_bytes * one.size.count < total]
    same = [one for one in below if one.size.product == best.product]
    return next(iter(same or below), None)


def _corrected(learnt: Correction | None) -> str:
    return "" if learnt is None else f" {learnt.sentence}"


def _gib(amount: int) -> str:
    return f"{(Decimal(amount) / GIB).quantize(Decimal('0.1'), rounding=ROUND_CEILING)} GiB"
