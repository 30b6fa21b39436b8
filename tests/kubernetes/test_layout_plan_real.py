"""A node's layout changed by a plan of the core, through a real API server and the lab's scripted MIG manager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from controlplane.labs.kubernetes.nodes import gpu_node
from provisioners.kubernetes.driver import KubernetesDriver
from provisioners.kubernetes.layout import LAB_TIMING, Layouts, Timing
from provisioners.kubernetes.objects import dig
from tenants.actor import Actor
from tenants.errors import Conflict
from tenants.models import Finding, Hold, Host, HostPlan, Intent, MigDevice
from tenants.operations import inventory, layouts
from tenants.states import PlatformRole
from tests import factories
from tests.conformance.kubernetes_rig import settings_for
from tests.kubernetes.test_layout_real import CONFIG_LABEL, POLICY, POLICY_DEFINITION, SCRIPT, quietly
from tests.kubernetes.worlds import World, connected, fresh_name, worlds_cluster

pytestmark = [
    pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.slow, pytest.mark.timeout(400),
    pytest.mark.usefixtures("db"),
]  # fmt: skip

PRODUCT = "H100-80GB"
SEVEN = tuple(("1g.10gb", start) for start in range(7))
HALVES = ["3g.40gb", "3g.40gb"]
SHORT = Timing(entry_s=8, drain_s=20, carve_s=6, compare_s=30, restore_s=40)
NEVER_BACK = replace(SHORT, restore_s=6)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    made = worlds_cluster(request)
    with made.api() as api:
        if api.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "clusterpolicies.nvidia.com") is None:
            api.create(POLICY_DEFINITION)
    return made


@contextmanager
def estate(cluster: Any, *, timing: Timing = LAB_TIMING) -> Iterator[tuple[World, str, str]]:
    """Two nodes of one GPU each, both cut in seven; the first one's name is to be changed, the second is closed."""
    driver = KubernetesDriver(replace(settings_for(cluster), slug="worlds"))
    driver._layouts = Layouts(driver.cluster, now=lambda: datetime.now(UTC), timing=timing)
    nodes = [gpu_node(fresh_name("mig"), PRODUCT, count=1, layouts={0: SEVEN}) for _ in range(2)]
    a, b = (node.name for node in nodes)
    with connected(cluster, nodes, driver=driver) as world:

        def policy() -> Any:
            driver.cluster.forget_discovery()
            return driver.cluster.apply(POLICY)

        world.eventually(lambda: quietly(policy) is not None, "the GPU operator's policy is served")
        driver.capabilities()  # taken as known for a minute, and before the policy nothing could be carved
        world.look()
        inventory.cordon(host=host(b), actor=operator(), now=world.clock())
        yield world, a, b


def operator() -> Actor:
    return factories.actor(factories.person(platform=(PlatformRole.OPERATOR,)))


def host(name: str) -> Host:
    return Host.objects.select_related("provider").get(provider_ref=name)


def changed(world: World, name: str, **more: Any) -> HostPlan:
    return layouts.change_layout(
        host=host(name), layouts={"0": HALVES}, reason="larger parts", actor=operator(), now=world.clock(), **more
    )


def script(world: World, name: str, word: str) -> None:
    world.api.patch("v1", "Node", name, {"metadata": {"annotations": {SCRIPT: word or None}}})


def fresh(plan: HostPlan) -> HostPlan:
    return HostPlan.objects.get(pk=plan.pk)


def ended(plan: HostPlan, state: str) -> Any:
    def over() -> bool:
        row = fresh(plan)
        assert row.state in {"running", state}, row.observed
        return bool(row.state == state)

    return over


def shown(name: str) -> list[str]:
    found = MigDevice.objects.filter(device__host__provider_ref=name).order_by("profile")
    return list(found.values_list("profile", flat=True))


def named(world: World, name: str) -> str:
    return str(dig(world.api.get("v1", "Node", name) or {}, "metadata", "labels", CONFIG_LABEL, default=""))


def unschedulable(world: World, name: str) -> bool:
    return bool(dig(world.api.get("v1", "Node", name) or {}, "spec", "unschedulable", default=False))


def assert_over(world: World, plan: HostPlan) -> None:
    """See what holds after every end: the ledger is right, no step is open, nothing is kept for the plan."""
    world.assert_nothing_double()
    assert Intent.objects.filter(settled_at=None).count() == 0
    assert Hold.objects.filter(note=f"plan {plan.pk}").count() == 0


def test_a_tenant_moves_the_node_is_carved_and_takes_larger_parts(cluster: Any) -> None:
    with estate(cluster) as (world, a, b):
        small = world.ask(PRODUCT, "1g.10gb")
        world.drive(lambda: world.ready() == 1)
        inventory.uncordon(host=host(b), actor=operator(), now=world.clock())

        seen = layouts.preview_layout(host=host(a), layouts={"0": HALVES}, actor=operator(), now=world.clock())
        assert [(one["name"], one["action"], one["to"]) for one in seen["touched"]] == [(small.name, "move", b)]
        plan = changed(world, a)
        with pytest.raises(Conflict, match=f"A layout change of {a} is running"):
            changed(world, a)
        world.drive(ended(plan, "done"), most=400)

        assert_over(world, plan)
        assert (shown(a), shown(b)) == (HALVES, ["1g.10gb"] * 7)
        assert (host(a).state, unschedulable(world, a)) == ("open", False)
        assert {use.host for use in world.held("tenant")} == {b}
        world.ask(PRODUCT, "3g.40gb")
        world.drive(lambda: world.ready() == 2 and world.at_rest())
        assert {(use.host, use.profile) for use in world.held("tenant")} == {(a, "3g.40gb"), (b, "1g.10gb")}
        world.assert_same_counts()
        assert world.contradictions() == []


def test_what_the_manager_cannot_do_is_taken_back_and_said(cluster: Any) -> None:
    with estate(cluster) as (world, a, _):
        script(world, a, "fail")
        plan = changed(world, a)
        world.drive(lambda: "-back" in named(world, a), most=300)
        script(world, a, "")
        world.drive(ended(plan, "failed"), most=400)

        assert_over(world, plan)
        assert "the MIG manager failed" in fresh(plan).observed["why"]
        assert shown(a) == ["1g.10gb"] * 7
        assert (host(a).state, unschedulable(world, a)) == ("open", False)
        world.look()
        assert host(a).placeable
        world.ask(PRODUCT, "1g.10gb")
        world.drive(lambda: world.ready() == 1)


def test_a_manager_that_stays_pending_is_given_up(cluster: Any) -> None:
    with estate(cluster, timing=SHORT) as (world, a, _):
        script(world, a, "hang")
        plan = changed(world, a)
        world.drive(lambda: "-back" in named(world, a), most=300)
        script(world, a, "")
        world.drive(ended(plan, "failed"), most=400)

        assert_over(world, plan)
        assert "still says pending" in fresh(plan).observed["why"]
        assert shown(a) == ["1g.10gb"] * 7
        assert (host(a).state, unschedulable(world, a)) == ("open", False)


def test_a_node_that_is_lost_half_way_stays_closed(cluster: Any) -> None:
    with estate(cluster, timing=NEVER_BACK) as (world, a, _):
        script(world, a, "lose")
        plan = changed(world, a)
        world.drive(ended(plan, "failed"), most=400)

        assert_over(world, plan)
        assert "stays cordoned" in fresh(plan).observed["why"]
        world.look()
        assert (host(a).state, host(a).placeable, unschedulable(world, a)) == ("cordoned", False, True)
        assert "contradictory-host" in Finding.objects.filter(resolved_at=None).values_list("kind", flat=True)
        world.ask(PRODUCT, "1g.10gb")
        world.look()
        assert world.held("tenant") == set()


def test_a_pod_that_does_not_leave_is_waited_for_by_name_and_never_evicted(cluster: Any) -> None:
    with estate(cluster) as (world, a, _):
        world.foreign("job", a, profile="1g.10gb")
        world.look()
        seen = layouts.preview_layout(host=host(a), layouts={"0": HALVES}, actor=operator(), now=world.clock())
        assert [name.rpartition("/")[2] for name in seen["foreign"]] == ["job"]

        plan = changed(world, a, evict=True)
        world.drive(lambda: bool(fresh(plan).observed.get("waits_for")), most=40)
        for _ in range(4):
            world.look()
        (text,) = fresh(plan).observed["waits_for"]
        assert text.endswith("job uses it and is not ours")
        assert (fresh(plan).state, named(world, a), world.foreign_runs("job")) == ("running", "", True)

        world.foreign_ends("job")
        world.drive(ended(plan, "done"), most=150)
        assert_over(world, plan)
        assert shown(a) == HALVES


def test_a_change_is_called_off_while_the_manager_is_at_work(cluster: Any) -> None:
    with estate(cluster) as (world, a, _):
        plan = changed(world, a)
        world.drive(lambda: named(world, a).startswith("tn-"), most=300)

        inventory.cancel_plan(plan=fresh(plan), actor=operator(), now=world.clock())
        world.drive(ended(plan, "cancelled"), most=600)

        assert_over(world, plan)
        assert shown(a) == ["1g.10gb"] * 7
        assert (host(a).state, unschedulable(world, a)) == ("open", False)
