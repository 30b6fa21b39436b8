"""A cluster that others use too: their room is never ours, what they take is seen, and nobody is evicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.labs.kubernetes.nodes import Kind, gpu_node
from tenants.models import Endpoint, Finding, Host
from tests.kubernetes.worlds import World, connected, fresh_name, worlds_cluster

pytestmark = [
    pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.slow, pytest.mark.timeout(400),
    pytest.mark.usefixtures("db"),
]  # fmt: skip

PRODUCT = "H100-80GB"
ONES = tuple(("1g.10gb", start) for start in range(7))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Any:
    return worlds_cluster(request)


def open_findings() -> list[str]:
    return sorted(Finding.objects.filter(resolved_at__isnull=True).values_list("kind", flat=True))


def by_host(world: World, *kinds: str) -> Counter[str]:
    return Counter(use.host for use in world.held(*kinds))


# --- thirty percent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["", "1g.10gb"], ids=["whole", "carved"])
def test_on_device_plugin_nodes_thirty_percent_foreign_stays_theirs_and_all_the_rest_is_used(
    cluster: Any, profile: str
) -> None:
    layouts = {0: ONES[:5]} if profile else None
    nodes = [
        gpu_node(fresh_name("plugin"), PRODUCT, count=1 if profile else 5, layouts=layouts) for _ in range(2)
    ]  # fmt: skip
    a, b = (node.name for node in nodes)
    with connected(cluster, nodes) as world:
        for name, host in (("one", a), ("two", a), ("three", b)):
            world.foreign(name, host, profile=profile)
        world.look()
        assert by_host(world, "foreign") == {a: 2, b: 1}

        for _ in range(9):
            world.ask(PRODUCT, profile)
        world.drive(lambda: world.at_rest() and world.ready() == 7)
        world.look()
        world.look()

        assert by_host(world, "tenant") == {a: 3, b: 4}
        world.assert_same_counts()
        assert Counter(use.host for use in world.used() if not use.unit) == by_host(world, "foreign") == {a: 2, b: 1}
        assert Endpoint.objects.filter(phase="Waiting").count() == 2
        assert all(world.foreign_runs(name) for name in ("one", "two", "three"))
        assert open_findings() == []


@pytest.mark.parametrize("kind", [Kind.WHOLE, Kind.STATIC, Kind.PARTITIONABLE])
def test_on_dra_nodes_thirty_percent_foreign_stays_theirs_and_units_get_the_very_device_of_the_ledger(
    cluster: Any, kind: Kind
) -> None:
    profile = "" if kind is Kind.WHOLE else "1g.10gb" if kind is Kind.STATIC else "3g.40gb"
    layouts = {0: ONES[:5]} if kind is Kind.STATIC else None
    count = {Kind.WHOLE: 5, Kind.STATIC: 1, Kind.PARTITIONABLE: 3}[kind]
    nodes = [gpu_node(fresh_name("dra"), PRODUCT, count=count, kind=kind, layouts=layouts) for _ in range(2)]
    a, b = (node.name for node in nodes)
    taken = {Kind.WHOLE: ((a, 0, 0), (a, 3, 0), (b, 4, 0)), Kind.STATIC: ((a, 0, 0), (a, 0, 3), (b, 0, 4))}.get(
        kind, ((a, 0, 0), (a, 0, 0), (a, 2, 0), (b, 1, 0))
    )
    with connected(cluster, nodes) as world:
        for number, (host, gpu, start) in enumerate(taken):
            world.foreign(f"theirs-{number}", host, profile=profile, gpu=gpu, start=start)
        world.look()
        theirs = {(use.host, use.gpu, use.start) for use in world.used()}
        assert {(use.host, use.gpu, use.start) for use in world.held("foreign")} == theirs
        room = (12 if kind is Kind.PARTITIONABLE else 10) - len(taken)

        for _ in range(room + 2):
            world.ask(PRODUCT, profile)
        world.drive(lambda: world.at_rest() and world.ready() == room)
        world.look()
        world.look()

        assert len(world.held("tenant")) == room
        world.assert_same_counts()
        world.assert_very_devices()
        assert {(use.host, use.gpu, use.start) for use in world.held("foreign")} == theirs
        assert all(world.foreign_runs(f"theirs-{number}") for number in range(len(taken)))
        assert open_findings() == []


# --- later --------------------------------------------------------------------------------------------


@pytest.fixture
def published(cluster: Any) -> Iterator[World]:
    """Two published MIG devices on one GPU, one of them ours."""
    node = gpu_node(
        fresh_name("dra"), PRODUCT, count=1, kind=Kind.STATIC, layouts={0: (("3g.40gb", 0), ("3g.40gb", 4))}
    )
    with connected(cluster, [node]) as world:
        world.ask(PRODUCT, "3g.40gb")
        world.drive(lambda: world.ready() == 1)
        world.look()
        world.assert_very_devices()
        yield world


def test_foreign_use_that_appears_on_a_free_device_blocks_it_until_two_looks_after_its_end(published: World) -> None:
    world, host = published, published.nodes[0].name
    (ours,) = world.held("tenant")
    other = 4 - (ours.start or 0)

    world.foreign("late", host, profile="3g.40gb", start=other)
    world.look()
    waiting = world.ask(PRODUCT, "3g.40gb")
    world.drive(lambda: Endpoint.objects.get(pk=waiting.pk).phase == "Waiting")

    assert {(use.gpu, use.start) for use in world.held("foreign")} == {(0, other)}
    assert world.held("tenant") == {ours}
    assert open_findings() == []

    world.foreign_ends("late")
    world.look()
    world.look()
    world.drive(lambda: world.ready() == 2)
    world.look()
    world.assert_very_devices()
    assert world.held("foreign") == set()


def test_a_device_taken_between_the_ledgers_choice_and_the_pod_is_not_used_twice(published: World) -> None:
    world, host = published, published.nodes[0].name
    (ours,) = world.held("tenant")
    other = 4 - (ours.start or 0)

    world.foreign("quicker", host, profile="3g.40gb", start=other)  # and no look: the ledger believes it free
    late = world.ask(PRODUCT, "3g.40gb")
    for _ in range(6):
        world.sweep()
        world.clock.move(1)
    world.look()
    world.look()

    assert Endpoint.objects.get(pk=late.pk).phase != "Ready"
    assert world.foreign_runs("quicker")
    assert [(use.start, bool(use.unit)) for use in world.used()] == sorted(
        [(ours.start, True), (other, False)], key=lambda pair: pair[0] or 0
    )

    world.foreign_ends("quicker")
    world.look()
    world.look()
    world.drive(lambda: world.ready() == 2)
    world.look()
    world.assert_very_devices()
    assert open_findings() == []


def test_foreign_use_on_a_held_published_device_is_a_finding_and_never_an_eviction(published: World) -> None:
    world, host = published, published.nodes[0].name
    (ours,) = world.held("tenant")
    world.foreign("usurper", host, profile="3g.40gb", start=ours.start or 0, bound=False)
    (deployment,) = [
        one for one in world.api.list("apps/v1", "Deployment") if one["metadata"]["name"].endswith("-0")
    ]  # fmt: skip
    name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    world.api.patch("apps/v1", "Deployment", name, {"spec": {"replicas": 0}}, namespace=namespace)
    world.await_foreign("usurper")

    for _ in range(3):
        world.look()
        world.clock.move(30)

    assert world.held("tenant") == {ours}
    assert "foreign-use-on-hold" in open_findings()
    assert world.foreign_runs("usurper")
    assert world.ready() == 0
    (theirs,) = world.used()
    assert (theirs.start, theirs.unit) == (ours.start, "")

    world.foreign_ends("usurper")
    world.look()
    world.drive(lambda: world.ready() == 1)
    world.look()
    world.look()
    world.assert_very_devices()
    assert open_findings() == []


def test_a_pod_that_preempts_ours_on_a_device_plugin_node_is_a_finding_and_stays(cluster: Any) -> None:
    node = gpu_node(fresh_name("plugin"), PRODUCT, count=2)
    with connected(cluster, [node]) as world:
        for _ in range(2):
            world.ask(PRODUCT)
        world.drive(lambda: world.ready() == 2)
        world.look()
        world.assert_same_counts()
        before = world.held("tenant")

        world.foreign("first-class", node.name, priorityClassName="system-node-critical")
        for _ in range(3):
            world.look()
            world.clock.move(30)

        assert world.held("tenant") == before
        assert world.foreign_runs("first-class")
        assert open_findings() == ["use-without-place"]
        assert Host.objects.get(provider_ref=node.name).placeable is False
        assert world.ready() == 1

        world.foreign_ends("first-class")
        world.look()
        world.drive(lambda: world.ready() == 2)
        world.look()
        world.look()
        world.assert_same_counts()
        assert open_findings() == []
