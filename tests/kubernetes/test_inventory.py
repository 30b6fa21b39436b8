"""A cluster's lists as a snapshot: hosts, uses of ours and of others, contradictions, objects with our mark."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from provisioners.driver import Binding, BoundaryKind, Capabilities, ObservedHost, ObservedProvider
from provisioners.kubernetes import inventory
from provisioners.kubernetes.inventory import Listed
from provisioners.kubernetes.layout_record import Change, Phase
from provisioners.kubernetes.nodes import derived_id
from provisioners.kubernetes.objects import mark
from tests.kubernetes.gpu_objects import (
    BOUNDARY,
    ENDPOINT,
    UNIT,
    bare_node,
    claim,
    every_partition,
    gpu_uuid,
    mig,
    namespace,
    node,
    pod,
    resource_slice,
    whole,
)

CAPABILITIES = Capabilities("kubernetes", "v1.36.3", frozenset({BoundaryKind.NAMESPACE}), frozenset(Binding), {})
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def shown(
    *raw: dict[str, Any],
    pods: Sequence[dict[str, Any]] = (),
    slices: Sequence[dict[str, Any]] = (),
    claims: Sequence[dict[str, Any]] = (),
    marked: Sequence[dict[str, Any]] | None = None,
) -> ObservedProvider:
    own = (namespace(),) if marked is None else tuple(marked)
    listed = Listed(nodes=raw, pods=tuple(pods), slices=tuple(slices), claims=tuple(claims), marked=own, version="7")
    return inventory.provider(listed, CAPABILITIES)


def only(seen: ObservedProvider) -> ObservedHost:
    (host,) = seen.hosts
    return host


def test_a_node_of_the_device_plugin_is_a_host_with_derived_gpus() -> None:
    seen = shown(node(offers={"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 2}))

    host = only(seen)
    assert (host.host, host.binding, host.vcpu, host.memory_gib) == ("n1", Binding.HOST, 64, 512)
    assert host.boundary_kinds == {BoundaryKind.NAMESPACE}
    assert [(one.device, one.product, one.index, one.mode, one.windows) for one in host.gpus] == [
        ("n1-gpu-0", "H100-80GB", 0, "mig", ((0, 4, "3g.40gb"), (4, 4, "3g.40gb"))),
        ("n1-gpu-1", "H100-80GB", 1, "empty", ()),
    ]
    assert (seen.complete, seen.version) == (True, "v1.36.3 at 7")


def test_a_use_of_ours_names_its_row_and_unit_and_a_foreign_one_neither() -> None:
    slice_ = {"nvidia.com/mig-1g.10gb": "1"}
    seen = shown(
        node(offers={"nvidia.com/mig-1g.10gb": 14}),
        pods=[pod("a", resources=slice_), pod("b", namespace="lab", ours=False, resources=slice_)],
    )

    assert [
        (use.name, use.ref, use.unit, use.device, use.start, use.size, use.profile, use.vcpu, use.memory_gib)
        for use in seen.uses
    ] == [
        (f"{BOUNDARY.name}/a", ENDPOINT, UNIT, "", None, 1, "1g.10gb", 4, 16),
        ("lab/b", None, None, "", None, 1, "1g.10gb", 4, 16),
    ]


def test_pods_without_gpus_that_are_not_ours_are_one_use_of_room_per_node() -> None:
    small = pod("c", namespace="kube-system", ours=False)
    small["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "100m", "memory": "70Mi"}}

    (use,) = shown(node(), pods=[small, pod("d", namespace="kube-system", ours=False)]).uses

    assert (use.size, use.device, use.ref, use.vcpu, use.memory_gib) == (0, "", None, 5, 17)


@pytest.mark.parametrize("where", ["elsewhere", "other tenant"])
def test_our_mark_in_a_namespace_that_is_not_ours_is_foreign(where: str) -> None:
    other = namespace()
    if where == "other tenant":
        other["metadata"]["labels"]["tenantry.internal/tenant"] = str(UUID(int=9))
    seen = shown(
        node(),
        pods=[pod("p", resources={"nvidia.com/gpu": "1"})],
        marked=[other] if where == "other tenant" else [],
    )

    assert [(use.ref, use.unit) for use in seen.uses] == [(None, None)]


def test_with_partitions_windows_are_those_in_use_and_shared_claims_count_once() -> None:
    seen = shown(
        bare_node(),
        slices=[resource_slice("n1", [*every_partition("n1", 0), *every_partition("n1", 1)])],
        claims=[claim("c", devices=["gpu-1-mig-3g40gb-9-4"], pods=["old", "new"])],
        pods=[pod("old", claims=["c"]), pod("new", claims=["c"])],
    )

    gpus = only(seen).gpus
    assert [(one.mode, one.windows, one.layout_change) for one in gpus] == [
        ("empty", (), "dynamic"),
        ("mig", ((4, 4, "3g.40gb"),), "dynamic"),
    ]
    assert [(use.device, use.start, use.unit) for use in seen.uses if use.size] == [(gpu_uuid("n1", 1), 4, UNIT)]
    assert only(seen).contradictions == ()


def test_an_allocated_claim_without_a_pod_still_uses_its_device() -> None:
    seen = shown(
        bare_node(),
        slices=[resource_slice("n1", [whole("n1", 0)])],
        claims=[claim("c", namespace="lab", ours=False, devices=["gpu-0"])],
    )

    (use,) = seen.uses
    assert (use.name, use.device, use.start, use.size, use.ref) == ("claim lab/c", gpu_uuid("n1", 0), 0, 8, None)
    assert only(seen).gpus[0].mode == "full"


def test_a_missing_slice_makes_the_snapshot_incomplete() -> None:
    assert not shown(bare_node(), slices=[resource_slice("n1", [whole("n1", 0)], count=2)]).complete


def test_a_cordoned_node_is_in_maintenance_and_one_that_is_not_ready_is_not_healthy() -> None:
    cordoned, lost = shown(node("a", cordoned=True), node("b", ready=False)).hosts

    assert (cordoned.in_maintenance, cordoned.healthy) == (True, True)
    assert (lost.in_maintenance, lost.healthy, lost.message) == (False, False, "it is not ready: kubelet stopped")


def test_a_node_that_is_being_carved_is_in_maintenance_and_says_so() -> None:
    config = {"nvidia.com/mig.config": "x", "nvidia.com/mig.config.state": "rebooting"}

    host = only(shown(node(labels=config)))

    assert host.in_maintenance
    assert host.contradictions == ("it reboots to be carved as x",)


def test_a_stuck_layout_change_is_a_contradiction() -> None:
    change = Change("e", "e-back", {}, {}, False, True, NOW, NOW, Phase.STUCK, "It stays cordoned.")

    host = only(shown(node(annotations={"tenantry.internal/layout-change": change.text()})))

    assert host.in_maintenance
    assert host.contradictions == ("It stays cordoned.",)


def test_pods_that_have_more_than_is_offered_are_a_contradiction() -> None:
    pods = [pod(f"p{n}", resources={"nvidia.com/gpu": "1"}) for n in range(3)]

    assert only(shown(node(), pods=pods)).contradictions == ("its pods have 3 whole GPUs and it offers 2",)


@pytest.mark.parametrize(("used", "modes"), [(0, ["empty"] * 2), (1, ["empty"] * 2), (2, ["full"] * 2)])
def test_gpus_that_are_not_carved_stay_places_for_whole_gpus_until_all_are_taken(used: int, modes: list[str]) -> None:
    pods = [pod(f"p{n}", resources={"nvidia.com/gpu": "1"}) for n in range(used)]

    assert [one.mode for one in only(shown(node(), pods=pods)).gpus] == modes


def test_a_device_that_is_given_twice_is_a_contradiction() -> None:
    seen = shown(
        bare_node(),
        slices=[resource_slice("n1", every_partition("n1", 0))],
        claims=[
            claim("a", devices=["gpu-0-mig-3g40gb-9-4"], pods=["p"]),
            claim("b", devices=["gpu-0-mig-1g10gb-19-5"], pods=["q"]),
        ],
        pods=[pod("p", claims=["a"]), pod("q", claims=["b"])],
    )

    (text,) = only(seen).contradictions
    assert text == f"{gpu_uuid('n1', 0)} is used twice at once, by {BOUNDARY.name}/p and by {BOUNDARY.name}/q"


def test_a_tainted_gpu_is_not_healthy() -> None:
    device = whole("n1", 0) | {"taints": [{"key": "xid", "value": "79", "effect": "NoExecute"}]}

    (one,) = only(shown(bare_node(), slices=[resource_slice("n1", [device])])).gpus

    assert (one.healthy, one.message) == (False, "its driver took it out of service: xid=79:NoExecute")


def test_gpus_of_a_fixed_layout_keep_their_windows_whoever_uses_them() -> None:
    found = [mig("n1", 0, "3g.40gb", 0, uuid="MIG-a"), mig("n1", 0, "3g.40gb", 4, uuid="MIG-b")]

    (one,) = only(shown(bare_node(), slices=[resource_slice("n1", found)])).gpus

    assert (one.windows, one.layout_change) == (((0, 4, "3g.40gb"), (4, 4, "3g.40gb")), "fixed")


def test_a_mig_manager_carves_nothing_because_a_unit_was_placed() -> None:
    (one, _) = only(shown(node(labels={"nvidia.com/gpu.deploy.mig-manager": "true"}))).gpus

    assert (one.layout_change, one.device) == ("fixed", derived_id("n1", 0))


def test_objects_are_counted_to_their_row_only_where_they_can_belong_to_it() -> None:
    def config_map(name: str, at: str) -> dict[str, Any]:
        return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": at, "labels": dict(mark(ENDPOINT))}}

    alone = shown(marked=[namespace(), config_map("a", BOUNDARY.name)]).objects
    with_stray = shown(marked=[namespace(), config_map("a", BOUNDARY.name), config_map("b", "lab")]).objects
    changed = shown(marked=[namespace(), config_map("c", BOUNDARY.name)]).objects

    assert [one.ref for one in alone] == [BOUNDARY, ENDPOINT]
    assert with_stray == alone
    assert changed[0] == alone[0]
    assert changed[1].fingerprint != alone[1].fingerprint


def test_a_control_plane_node_without_gpus_is_no_host() -> None:
    raw = bare_node("cp", labels={"node-role.kubernetes.io/control-plane": ""})

    assert shown(raw).hosts == ()
