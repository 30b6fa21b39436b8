"""`on-idle`: what waits only because nothing is carved for it has an idle GPU carved; nobody is ever in its way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from provisioners import inventory
from provisioners.driver import Driver, ObservedProvider
from provisioners.sandbox import control
from tenants import audit
from tenants.models import Event, GpuDevice, Hold, Host, HostPlan, Notice, Provider
from tenants.operations.idle_layouts import AGAIN, ON_IDLE, SETTING, filled
from tests.drive import fresh, is_ready
from tests.scenarios.story import Story, customer, endpoint, node, story

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

HALVES = [[0, 4, "3g.40gb"], [4, 4, "3g.40gb"]]


@dataclass
class Planned:
    """A provider whose GPUs are carved by plans alone: what it shows as `on-idle` is fixed for whoever is placed."""

    driver: Driver

    def snapshot(self) -> ObservedProvider:
        seen = self.driver.snapshot()
        hosts = tuple(
            replace(host, gpus=tuple(replace(gpu, layout_change="fixed") for gpu in host.gpus)) for host in seen.hosts
        )
        return replace(seen, hosts=hosts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)


def begun(*hosts: dict[str, Any], policy: str = ON_IDLE) -> Story:
    """Begin a story at a provider whose idle GPUs are carved for what waits."""
    told = story(*hosts)
    driver = Planned(told.here.engine.driver_of(told.here.provider))
    told.here.engine.driver_of = lambda _provider: driver
    Provider.objects.update(config={SETTING: policy})
    told.settle(looks=2)
    return told


def halved(name: str, *, gpus: int = 1) -> dict[str, Any]:
    """Return a host whose GPUs are cut in halves."""
    group = {"product": "H100-80GB", "count": gpus, "layout_change": "on-idle", "layout": HALVES}
    return {**node(name), "gpus": [group]}


def look(told: Story) -> None:
    """Read the provider, and let what follows happen."""
    told.settle(looks=1)


def test_what_waits_for_another_layout_gets_an_idle_gpu_carved_and_nobody_is_told() -> None:
    told = begun(halved("node-1"))
    acme = customer("acme")
    chat = endpoint(acme, told.now)
    waiting = fresh(chat.allocation).observed["why"]["layout_change"]

    told.drive(is_ready(chat), most=120, step_s=20)

    (plan,) = HostPlan.objects.all()
    assert waiting is True
    assert (plan.state, plan.touched, plan.reason) == ("done", [], "on-idle: 1g.10gb of H100-80GB is waited for")
    assert GpuDevice.objects.get().layout.count("1g.10gb") == 7
    assert Host.objects.get().state == "open"
    assert Notice.objects.filter(kind="host-layout").count() == 0
    assert audit.findings() == []


def test_without_the_setting_people_plan_every_change() -> None:
    told = begun(halved("node-1"), policy="fixed")
    chat = endpoint(customer("acme"), told.now)

    told.settle(looks=3)

    assert (HostPlan.objects.count(), fresh(chat).phase) == (0, "Waiting")


def test_a_gpu_that_somebody_uses_is_never_carved() -> None:
    told = begun(halved("node-1", gpus=2))
    control.add_foreign_use(told.here.estate, "squatter", "node-1", [["node-1-gpu-0", 0, "3g.40gb"]])
    look(told)
    chat = endpoint(customer("acme"), told.now)

    told.drive(is_ready(chat), most=120, step_s=20)

    layouts = dict(GpuDevice.objects.values_list("index", "layout"))
    assert layouts[0].count("3g.40gb") == 2
    assert layouts[1].count("1g.10gb") == 7
    assert Hold.objects.get(kind="foreign").device.index == 0


def test_where_somebody_turns_up_before_the_report_it_is_called_off_and_left_alone_for_a_while() -> None:
    told = begun(halved("node-1"))
    driver: Any = told.here.engine.driver_of(told.here.provider)
    chat = endpoint(customer("acme"), told.now)
    seen = driver.snapshot()
    told.here.clock.move(1)
    inventory.run(told.here.provider.pk, driver, told.now, clock=told.here.clock)
    plan = HostPlan.objects.get()
    control.add_foreign_use(told.here.estate, "squatter", "node-1", [["node-1-gpu-0", 0, "3g.40gb"]])

    told.settle(looks=4)

    assert len(seen.hosts) == 1
    assert (fresh(plan).state, Host.objects.get().state) == ("cancelled", "open")
    assert GpuDevice.objects.get().layout.count("3g.40gb") == 2
    control.remove_foreign_use(told.here.estate, "squatter")
    told.settle(looks=4)
    assert HostPlan.objects.count() == 1  # not again so soon
    told.here.clock.move(AGAIN.total_seconds())
    told.drive(is_ready(chat), most=120, step_s=20)
    assert Event.objects.filter(kind="host.layout-changed").count() == 1


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["1g.10gb"], ["1g.10gb"] * 7),
        (["1g.10gb", "3g.40gb"], ["3g.40gb", *["1g.10gb"] * 4]),
        (["7g.80gb"], ["7g.80gb"]),
        (["1g.10gb+me"], ["1g.10gb+me"]),
        (["9g.90gb"], []),
    ],
)
def test_a_gpu_is_filled_with_what_is_waited_for(wanted: list[str], names: list[str]) -> None:
    assert filled("H100-80GB", wanted) == names
