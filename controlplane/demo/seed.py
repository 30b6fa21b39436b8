"""The director: plays the demo's history on a stage, and leaves behind what people find when they come.

Every change is an operation of the domain under an actor who may, every effect a pass's; what is bent is the
simulated hardware alone. Called once per installation; a second call finds its own mark and changes nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from controlplane.demo import opening, programme, traffic
from controlplane.demo.opening import MARK, Company
from controlplane.demo.programme import DAYS, Item
from controlplane.demo.sites import SITES
from controlplane.demo.stage import Stage, estate_of, rare_snapshots, stage
from provisioners.sandbox import control
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.records import ObjectRecord, PartRecord
from tenants import endpoint_minutes
from tenants.actor import SYSTEM
from tenants.models import Endpoint, GpuDevice, Hold, Host, Machine, Namespace, Provider, Request, Unit
from tenants.operations import (
    accounts,
    endpoints,
    inventory,
    machines,
    namespaces,
    notifications,
    providers,
    requests,
    service_accounts,
)
from tenants.pricing import hour_of
from tenants.specs import (
    AllocationSpec,
    EndpointAsk,
    GpuAsk,
    MachineAsk,
    NamespaceAsk,
    RevisionAsk,
    Term,
    UnitAsk,
    Where,
)
from tenants.states import BoundaryKind, HoldKind, OnShortage, ProductKind, RequestKind, Role
from tenants.transactions import reading

SMALL: Final = timedelta(days=3)
FULL: Final = timedelta(days=DAYS)
COMPLETE: Final = "complete"
"""Opens nothing: nobody has its other half, and there is no machine behind a simulated one."""
LAST_ACT: Final = timedelta(hours=2)
"""Before the end: what people find under way happens then."""


class DemoBroken(RuntimeError):
    """An earlier seeding did not come to its end."""


@dataclass(slots=True)
class Seeded:
    """What was made."""

    estates: dict[str, Estate]
    """By provider; empty where nothing was made."""
    objects: int = 0
    hours: int = 0
    """Hours of usage that were reported."""
    sweeps: int = 0


@dataclass(slots=True)
class _Play:
    stage: Stage
    company: Company
    start: datetime
    length: timedelta
    made: dict[str, tuple[Item, Any]] = field(default_factory=dict)
    reported: datetime | None = None
    """Until when usage was reported."""
    hours: int = 0
    """Hours of usage reported so far."""

    def day(self, number: float) -> datetime:
        """Return the moment of a day of the programme."""
        return self.start + self.length * (number / DAYS)

    def time_of(self, number: float) -> datetime:
        """Return when something is asked for: the first decimal is the time of day, the second tells who is first."""
        hundredths = round(number * 100)
        return self.day(hundredths // 10 / 10) + timedelta(seconds=20 * (hundredths % 10))

    def product(self, name: str) -> Any:
        """Return an endpoint, machine or namespace as it is now."""
        row = self.made[name][1]
        with reading(SYSTEM):
            return type(row)._base_manager.select_related("tenant", "allocation", "boundary").get(pk=row.pk)


def is_seeded() -> bool:
    """Whether the history is there. Raises `DemoBroken` for half of one."""
    with reading(SYSTEM):
        marks = dict(Provider.objects.filter(name__in=[s.provider for s in SITES]).values_list("name", "config"))
    if not marks:
        return False
    if all(marks.get(site.provider, {}).get("history") == COMPLETE for site in SITES):
        return True
    msg = "an earlier seeding of the demo did not come to its end; begin anew with `make reset`"
    raise DemoBroken(msg)


def seed(
    *,
    url: str,
    now: datetime,
    small: bool = False,
    hand_over: Callable[[Mapping[str, Estate]], None] = lambda _: None,
) -> Seeded:
    """Play the history up to `now` and return the estates as they are then; nothing if it was played before.

    `url` is where the sandbox server serves them afterwards; `hand_over` gives it to it before the history counts
    as complete. Raises `DemoBroken`.
    """
    if is_seeded():
        return Seeded({})
    length = SMALL if small else FULL
    start = (now - length).replace(minute=0, second=0, microsecond=0)
    items = programme.items(small=small)
    place = stage(start, url=url, small=small)
    with rare_snapshots():
        company = opening.open_up(place, items)
        play = _Play(place, company, start, now - start)
        for moment, act in sorted(_acts(play, items), key=lambda pair: pair[0]):
            place.until(moment)
            act()
        place.clock.set(now - timedelta(minutes=20))
        place.look(1)
        _report(play, until=place.now, closely_from=now - endpoint_minutes.KEPT)
        place.calm_down()
        place.clock.set(now)
        _report(play, until=now, closely_from=now - endpoint_minutes.KEPT)
        hand_over(place.estates)
        _complete(play)
    return Seeded(dict(place.estates), len(play.made), play.hours, place.sweeps)


def _complete(play: _Play) -> None:
    for name in play.stage.estates:
        with reading(SYSTEM):
            row = Provider.objects.get(name=name)
        providers.update(
            provider=row, config={**row.config, "history": COMPLETE}, actor=play.company.actor("ole"),
            now=play.stage.now,
        )  # fmt: skip


# --- the acts -----------------------------------------------------------------------------------------


def _acts(play: _Play, items: tuple[Item, ...]) -> list[tuple[datetime, Callable[[], object]]]:
    """Return what happens when."""
    acts: list[tuple[datetime, Callable[[], object]]] = []
    for item in items:
        acts.append((play.time_of(item.day), functools.partial(_ask, play, item)))
        if item.until_day is not None:
            acts.append((play.day(item.until_day), functools.partial(_give_back, play, item.name)))
    end = play.start + play.length
    acts += [
        *((play.day(number), lambda: _report(play, until=hour_of(play.stage.now))) for number in range(3, DAYS, 3)),
        (play.day(3.5), lambda: _request_stale(play)),
        (play.day(6.0), lambda: _request_decided(play, "imaging", "ben", "A second reader for the night.", "approve")),
        (play.day(6.2), lambda: _empty_host(play)),
        (play.day(14.0), lambda: _foreign(play)),
        (play.day(14.2), lambda: _request_decided(play, "genomics", "chen", "A bigger assembly.", "reduce")),
        (play.day(18.5), lambda: _request_decided(play, "grid", "lars", "All of it, to be sure.", "deny")),
        (play.day(20.6), lambda: _removed_behind_our_back(play, "assistant")),
        (play.day(21.5), lambda: _ways_in(play)),
        (play.day(27.4), lambda: _requests_of_the_last_days(play)),
        (end - LAST_ACT, lambda: _drain(play, "notebook", end)),
        (end - LAST_ACT + timedelta(minutes=20), lambda: _request_for_more(play)),
        (end - LAST_ACT + timedelta(minutes=30), lambda: _orphan(play)),
        (end - LAST_ACT + timedelta(minutes=60), lambda: _fault(play, "reports")),
    ]
    return acts


def _ask(play: _Play, item: Item) -> None:
    play.stage.vary()
    tenant, actor, now = play.company.tenants[item.tenant], play.company.actor(item.who), play.stage.now
    if item.kind is ProductKind.ENDPOINT:
        ask = EndpointAsk(item.name, RevisionAsk(item.model), item.spec(), labels=MARK)
        row: Any = endpoints.create(tenant=tenant, ask=ask, actor=actor, now=now).endpoint
    elif item.kind is ProductKind.MACHINE:
        box = MachineAsk(item.name, item.spec(), "ubuntu-24.04", 40, labels=MARK)
        row = machines.create(tenant=tenant, ask=box, actor=actor, now=now)
    else:
        row = namespaces.create(
            tenant=tenant, ask=NamespaceAsk(item.name, item.spec(), labels=MARK), actor=actor, now=now
        )
    play.made[item.name] = (item, row)


def _report(play: _Play, *, until: datetime, closely_from: datetime | None = None) -> None:
    """Let every gateway say what its endpoints served since the last time; from `closely_from` on by the minute."""
    since = play.reported or play.start
    for item, row in play.made.values():
        if item.kind is ProductKind.ENDPOINT:
            play.hours += traffic.report(
                row.pk, item, since=since, until=until, dice=play.stage.dice, closely_from=closely_from
            )
    play.reported = until


def _give_back(play: _Play, name: str) -> None:
    item, _ = play.made[name]
    actor, now = play.company.actor(item.who), play.stage.now
    match play.product(name):
        case Endpoint() as endpoint:
            _report(play, until=hour_of(now))
            endpoints.delete(endpoint=endpoint, actor=actor, now=now)
        case Machine() as machine:
            machines.delete(machine=machine, actor=actor, now=now)
        case Namespace() as namespace:
            namespaces.delete(namespace=namespace, actor=actor, now=now)


# --- people and programs --------------------------------------------------------------------------------


def _ways_in(play: _Play) -> None:
    """Omar lets a program into aurora, and sets up a webhook that he switches off again."""
    omar, aurora, now = play.company.actor("omar"), play.company.tenants["aurora"], play.stage.now
    robot = service_accounts.create(
        tenant=aurora, name="nightly-evals", role=Role.MEMBER, actor=omar, now=now, expires_at=now + timedelta(days=365)
    )
    service_accounts.issue_token(account=robot, name="pipeline", actor=omar, now=now)
    hook, _secret = notifications.create_webhook(
        tenant=aurora, name="chat-room", url="https://hooks.example.org/tenantry", kinds=[], actor=omar, now=now
    )
    notifications.disable_webhook(webhook=hook, actor=omar, now=now)


# --- requests -----------------------------------------------------------------------------------------


def _quota(play: _Play, tenant: str, who: str, limits: dict[str, int], reason: str, **more: Any) -> Request:
    return requests.submit(
        kind=RequestKind.QUOTA.value, payload={"mode": "add", "limits": limits, **more}, reason=reason,
        tenant=play.company.tenants[tenant], actor=play.company.actor(who), now=play.stage.now,
    )  # fmt: skip


def _request_decided(play: _Play, tenant: str, who: str, reason: str, verdict: str) -> None:
    """Ask at the root for more than a rule would give, and have every stage decided."""
    root = {"imaging": "helios", "genomics": "helios", "grid": "nordwind"}[tenant]
    limits = {"gpu.H100-80GB.slices": 24}
    owner = {"helios": "noor", "nordwind": "freja"}[root]
    request = _quota(play, root, owner, limits, f"{reason} For {tenant}; asked by {who}.")
    play.stage.work(3600)
    less = {"limits": {"gpu.H100-80GB.slices": 8}} if verdict == "reduce" else None
    words = {"approve": "Fits well.", "reduce": "A third of it, for now.", "deny": "Nothing of it is in use yet."}
    requests.decide(
        request=request, version=request.version, verdict=verdict, granted=less, reason=words[verdict],
        actor=play.company.actor("ana"), now=play.stage.now,
    )  # fmt: skip


def _request_stale(play: _Play) -> None:
    """Asked long ago, decided by nobody."""
    _quota(play, "campus", "ito", {"gpu.A100-80GB.slices": 16}, "For the summer school.")


def _requests_of_the_last_days(play: _Play) -> None:
    """A wish that no hardware here can serve, one for a tenant, one to join, one with an end."""
    _deploy(play, "nordwind", "freja", "giant", GpuAsk("H100-80GB", count=8), BoundaryKind.VM)
    requests.submit(
        kind=RequestKind.TENANT.value, reason="The drone team shows its manuals at the fair.",
        payload={
            "name": "drones", "display_name": "Drone laboratory",
            "until": (play.stage.now + timedelta(days=30)).isoformat(),
            "wish": {
                "endpoint": {
                    "name": "manuals", "model": "llama-3-2-3b", "product": "A100-80GB", "profile": "1g.20gb",
                    "vcpu": 4, "memory_gib": 32, "days": 30,
                },
            },
        },
        actor=play.company.actor("mia"), now=play.stage.now,
    )  # fmt: skip
    requests.submit(
        kind=RequestKind.JOIN.value, payload={"role": "member"}, reason="I help Mia with the evaluation.",
        join="aurora", actor=play.company.actor("petra"), now=play.stage.now,
    )  # fmt: skip
    accounts.invite(
        tenant=play.company.tenants["aurora"], email="lea@demo.test", role=Role.MEMBER,
        actor=play.company.actor("omar"), now=play.stage.now,
    )  # fmt: skip
    until = (play.stage.now + timedelta(days=21)).isoformat()
    _quota(play, "helios", "noor", {"gpu.H100-80GB.slices": 32}, "A study until the end of the month.", until=until)


def _request_for_more(play: _Play) -> None:
    """Mia deploys beyond aurora's limits: the request for exactly what is missing comes with the submit."""
    _deploy(play, "aurora", "mia", "review", GpuAsk("H100-80GB", "3g.40gb"), BoundaryKind.NAMESPACE)


def _deploy(play: _Play, tenant: str, who: str, name: str, gpu: GpuAsk, kind: BoundaryKind) -> None:
    spec = AllocationSpec(
        units=(UnitAsk(gpu, 8 * gpu.count, 48 * gpu.count),),
        where=Where(kind=kind),
        term=Term(duration_s=30 * 86400),
        on_shortage=OnShortage.REQUEST,
    )
    endpoints.create(
        tenant=play.company.tenants[tenant], ask=EndpointAsk(name, RevisionAsk("qwen3-14b"), spec, labels=MARK),
        actor=play.company.actor(who), now=play.stage.now,
    )  # fmt: skip


# --- hardware -----------------------------------------------------------------------------------------


def _empty_host(play: _Play) -> None:
    """New firmware on a host that nobody uses: out and back within the hour."""
    with reading(SYSTEM):
        used = Hold.objects.filter(kind__in=[HoldKind.TENANT.value, HoldKind.FOREIGN.value]).values("host_id")
        host = Host.objects.filter(provider__name__in=list(play.stage.estates)).exclude(pk__in=used).earliest("name")
    operator = play.company.actor("ole")
    inventory.maintenance(host=host, reason="New firmware.", actor=operator, now=play.stage.now)
    play.stage.look(2)
    play.stage.work(2700)
    with reading(SYSTEM):
        host.refresh_from_db()
    inventory.return_host(host=host, reason="Firmware is new.", actor=operator, now=play.stage.now)
    play.stage.look(2)


def _foreign(play: _Play) -> None:
    """Somebody starts a job beside us, on a GPU that is free."""
    with reading(SYSTEM):
        empty = GpuDevice.objects.filter(provider__name="oslo-k8s", product="A100-80GB", free=0xFF)
        free = empty.select_related("host").earliest("number")
    control.add_foreign_use(
        play.stage.estates["oslo-k8s"], "weather-model", free.host.provider_ref, [(free.provider_ref, 0, "3g.40gb")],
        vcpu=8, memory_gib=64,
    )  # fmt: skip
    play.stage.look(2)


def _removed_behind_our_back(play: _Play, name: str) -> None:
    """A careless administrator removes an object; the passes see it and build it again."""
    row = play.product(name)
    control.remove_object(estate_of(play.stage, row.boundary.provider_id), str(row.pk))
    play.stage.look(2)
    play.stage.work(600)


def _fault(play: _Play, name: str) -> None:
    """The GPU under an endpoint breaks."""
    row = play.product(name)
    with reading(SYSTEM):
        hold = Hold.objects.select_related("device").filter(unit__allocation=row.allocation).earliest("device__number")
    estate = estate_of(play.stage, row.boundary.provider_id)
    control.set_gpu_health(estate, hold.device.provider_ref, healthy=False, message="Xid 79: fell off the bus")
    play.stage.look(2)


def _orphan(play: _Play) -> None:
    """An administrator restores a VM with our mark from a backup: nobody's row, so it shows as drift."""
    estate = play.stage.estates["munich-vsphere"]
    tenant = play.company.tenants["genomics"]
    key, parts = uuid4(), {"vm.clone": PartRecord(have="restored")}
    restored = ObjectRecord(str(key), "machine", str(tenant.pk), f"tn-vm-{key.hex}", estate.advance(), parts=parts)
    estate.state.put("objects", str(key), restored)
    play.stage.look(3)


def _drain(play: _Play, name: str, end: datetime) -> None:
    """The host under a machine is announced to be emptied tomorrow."""
    row = play.product(name)
    with reading(SYSTEM):
        unit = Unit.objects.select_related("host").get(allocation=row.allocation)
    assert unit.host is not None
    inventory.drain(
        host=unit.host, reason="A memory module is replaced.", starts_at=end + timedelta(hours=20),
        actor=play.company.actor("ole"), now=play.stage.now,
    )  # fmt: skip
    play.stage.look(2)
