"""Stories over several parts, told on the sandbox's core: kills at every commit of the workers, and what must hold.

A story is driven by sweeps of `tests.drive.World`. `Deaths` ends a sweep at the commit of each distinct place of
the workers' code once, before or after it takes effect, as a lost process would: the connection is closed,
nothing else runs, leases stay. `Story.at_rest` says what must be true whenever a story pauses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any, Final

from django.db import connections

from provisioners.sandbox import files, views
from tenants import audit, costs, hour_account
from tenants.actor import SYSTEM, Actor
from tenants.hour_account import EstateAccount
from tenants.models import Finding, GpuDevice, Hold, Host, Intent, Price, PriceList, ServedModel, Tenant
from tenants.operations import endpoints, machines, namespaces
from tenants.pricing import HOUR_US, MICROSECOND, Use
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, MachineAsk, NamespaceAsk, RevisionAsk, UnitAsk, Where
from tenants.states import BoundaryKind, PlatformRole, Role
from tenants.transactions import reading
from tests import factories
from tests.conftest import NOW
from tests.drive import World, world

ROOT: Final = Path(__file__).resolve().parents[2]
WORKERS: Final = (f"{ROOT}/provisioners/", f"{ROOT}/tenants/")
SLICE_PRICE: Final = {"H100-80GB": Decimal("0.31"), "A100-80GB": Decimal("0.17")}
Place = tuple[str, ...]


class Killed(BaseException):
    """The process ends here; nothing catches it but the story."""


@dataclass(slots=True)
class Deaths:
    """Dies once at the commit of each distinct place."""

    before: bool
    """The commit is lost with the process; else it has taken effect and nobody knows."""
    places: set[Place] = field(default_factory=set)

    @contextmanager
    def threatening(self) -> Iterator[None]:
        """Let this thread's connection die while the block runs."""
        connection = connections["default"]
        commit = connection.commit

        def dying() -> None:
            place = _place()
            if place in self.places:
                commit()
                return
            self.places.add(place)
            if not self.before:
                commit()
            connection.close()
            raise Killed

        connection.commit = dying  # type: ignore[method-assign]
        try:
            yield
        finally:
            del connection.commit


def _place() -> Place:
    """Return the two innermost functions that a commit belongs to; none for an operation called by a test."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(found) < 2:
        name = frame.f_code.co_filename
        if name.startswith(WORKERS) and not name.endswith("tenants/transactions.py"):
            found.append(f"{Path(name).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return tuple(found)


@dataclass(slots=True)
class Story:
    """One estate, its operator, prices, and who dies on the way."""

    here: World
    operator: Actor
    deaths: Deaths | None = None
    began: datetime = NOW
    kills: int = 0

    @property
    def now(self) -> datetime:
        """Return the story's time."""
        return self.here.clock()

    def sweep(self) -> bool:
        """Run what is due; False when the worker was killed, and its leases have to run out first.

        Whatever happened: nothing runs on room that the ledger believes to be free.
        """
        try:
            return self._sweep()
        finally:
            assert unheld(self.here) == []

    def _sweep(self) -> bool:
        if self.deaths is None:
            self.here.sweep()
            return True
        try:
            with self.deaths.threatening():
                self.here.sweep()
        except Killed:
            self.kills += 1
            self.here.clock.move(self.here.engine.ttl.total_seconds() + 0.1)
            return False
        return True

    def drive(self, until: Callable[[], bool], *, most: int = 60, step_s: float = 1.0) -> None:
        """Sweep until a condition holds; sweeps that were killed do not count."""
        lived = 0
        while lived < most:
            if self.sweep():
                if until():
                    return
                lived += 1
                self.here.clock.move(step_s)
        raise AssertionError(f"not reached after {most} sweeps:\n{self.here.explain()}")

    def settle(self, *, looks: int = 3) -> None:
        """Let the provider be looked at a few more times."""
        for _ in range(looks):
            self.here.clock.move(61)
            while not self.sweep():
                pass

    # --- what must hold -------------------------------------------------------------------------------

    def at_rest(self, *, findings: int = 0) -> EstateAccount:
        """Assert that ledger, truth and account agree, and that nothing is under way; return the account.

        Where the worker was to die, it must have: in dozens of places, once in each.
        """
        assert self.deaths is None or self.kills == len(self.deaths.places) >= 20
        self.settle()
        assert audit.findings() == []
        assert ledger_view(occupied=True) == truth(self.here)
        assert Finding.objects.filter(resolved_at__isnull=True).count() == findings
        assert Intent.objects.filter(settled_at__isnull=True).count() == 0
        return self.accounted()

    def accounted(self) -> EstateAccount:
        """Assert the account of every GPU and hour since the story began, exactly; return it."""
        with reading(SYSTEM):
            account = hour_account.of_estate(self.began, self.now, now=self.now)
        assert account.mismatches == []
        for hour, capacity in account.capacity.items():
            assert sum(account.by_use[hour].values()) == capacity, hour
        assert account.capacity_slot_hours == self._capacity()
        assert sum(account.slot_hours(use) for use in Use) == account.capacity_slot_hours
        billed, exact = self._billed()
        assert sum(billed.values()) == account.slot_hours(Use.BILLED)
        assert exact == sum(hours * Fraction(SLICE_PRICE[product]) for product, hours in billed.items())
        return account

    def _capacity(self) -> Fraction:
        """Return slots × time, from the GPUs' rows alone."""
        total = 0
        for gpu in GpuDevice.objects.all():
            until = self.now if gpu.removed_at is None else gpu.removed_at
            total += gpu.slots * ((until - max(gpu.created_at, self.began)) // MICROSECOND)
        return Fraction(total, HOUR_US)

    def _billed(self) -> tuple[Mapping[str, Fraction], Fraction]:
        """Return product → slice-hours that all tenants are billed for, and what that costs."""
        hours: dict[str, Fraction] = {}
        exact = Fraction(0)
        with reading(SYSTEM):
            for tenant in Tenant.objects.all():
                for line in costs.cost_lines(tenant, self.began, self.now, now=self.now, children=False):
                    if line.item.startswith("gpu."):
                        product = line.item.split(".")[1]
                        hours[product] = hours.get(product, Fraction(0)) + line.billable
                        exact += line.exact
        return hours, exact


def ledger_view(*, occupied: bool = False) -> set[tuple[str, str, int, int]]:
    """Return (host, device, start, size) of every hold of a tenant or of somebody foreign.

    `occupied`: only where something should run. Namespaces and bare capacity are room that people use or do not,
    and what is switched off keeps its hold.
    """
    rows = Hold.objects.filter(kind__in=["tenant", "foreign"]).select_related("device", "host")
    if occupied:
        rows = rows.exclude(unit__allocation__product_kind__in=["namespace", "bare"])
    return {(row.host.provider_ref, row.device.provider_ref, row.start, row.size) for row in rows}


def truth(here: World) -> set[tuple[str, str, int, int]]:
    """Return (host, device, start, size) of what is really used."""
    return {(use.host, use.device, use.start, use.size) for use in views.truth(here.estate.state)}


def unheld(here: World) -> list[str]:
    """Return what really runs on slots that no hold of any kind keeps."""
    kept: dict[str, int] = {}
    for ref, start, size in Hold.objects.values_list("device__provider_ref", "start", "size"):
        kept[ref] = kept.get(ref, 0) | ((1 << size) - 1) << start
    return [
        f"{use.name} on {use.device} at {use.start}"
        for use in views.truth(here.estate.state)
        if ((1 << use.size) - 1) << use.start & ~kept.get(use.device, 0)
    ]


# --- making stories -------------------------------------------------------------------------------------


def story(*hosts: Mapping[str, Any], deaths: Deaths | None = None, delays: bool = False) -> Story:
    """Begin a story: an estate, an operator, a served model and prices from the first moment on."""
    document = {"schema": files.SCHEMA, "hosts": list(hosts)}
    here = world(document, snapshots=True, delays=delays)
    factories.served_model("llama-3-1-8b")
    prices = PriceList.objects.create(name="first", currency="EUR", valid_from=NOW, created_at=NOW)
    for product, amount in SLICE_PRICE.items():
        Price.objects.create(price_list=prices, item=f"gpu.{product}.slices", amount=amount)
    operator = factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))
    return Story(here, operator, deaths)


def node(name: str, *, gpus: int = 1, product: str = "H100-80GB", **more: Any) -> dict[str, Any]:
    """Return a host for namespaces and VMs whose GPUs we name."""
    return {
        "host": name, "name": name, "binding": "device", "boundary_kinds": ["namespace", "vm"],
        "vcpu": 64, "memory_gib": 512, "gpus": [{"product": product, "count": gpus}], **more,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Customer:
    """A tenant and one of its members."""

    tenant: Tenant
    actor: Actor


def customer(name: str = "", *, role: Role = Role.MEMBER, parent: Tenant | None = None) -> Customer:
    """Make a tenant with room in its quota."""
    tenant = factories.tenant(name=name, parent=parent)
    factories.generous(tenant, *SLICE_PRICE)
    return Customer(tenant, factories.actor(factories.member(tenant, role)))


def unit(profile: str = "1g.10gb", product: str = "H100-80GB") -> UnitAsk:
    """Return the asking for one unit."""
    return UnitAsk(GpuAsk(product, profile), vcpu=4, memory_gib=16)


def endpoint(who: Customer, at: datetime, name: str = "chat", *, profile: str = "1g.10gb", **more: Any) -> Any:
    """Ask for an endpoint in a namespace; `more` goes into the allocation."""
    return endpoints.create(
        tenant=who.tenant, ask=endpoint_ask(name, profile=profile, **more), actor=who.actor, now=at
    ).endpoint


def endpoint_ask(name: str = "chat", *, profile: str = "1g.10gb", **more: Any) -> EndpointAsk:
    """Return the asking for an endpoint."""
    assert ServedModel.objects.exists()
    more = {"where": Where(kind=BoundaryKind.NAMESPACE), **more}
    return EndpointAsk(name, RevisionAsk("llama-3-1-8b"), AllocationSpec(units=(unit(profile),), **more))


def machine(who: Customer, at: datetime, name: str = "box", *, profile: str = "1g.10gb") -> Any:
    """Ask for a machine."""
    ask = MachineAsk(name, AllocationSpec(units=(unit(profile),)), "ubuntu-24.04", 20)
    return machines.create(tenant=who.tenant, ask=ask, actor=who.actor, now=at)


def namespace(who: Customer, at: datetime, name: str = "play", *, profile: str = "1g.10gb") -> Any:
    """Ask for a namespace."""
    ask = NamespaceAsk(name, AllocationSpec(units=(unit(profile),)))
    return namespaces.create(tenant=who.tenant, ask=ask, actor=who.actor, now=at)


def host(name: str) -> Host:
    """Return a host by name."""
    return Host.objects.get(name=name)


def later(at: datetime, **amount: float) -> datetime:
    """Return a moment so much later."""
    return at + timedelta(**amount)
