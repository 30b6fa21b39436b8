"""An acceptance run asks every free GPU of a node for its name, and believes nothing but the answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from controlplane.labs.kubernetes import slices as lab_slices
from controlplane.labs.kubernetes.nodes import Kind, as_object, gpu_node
from provisioners.driver import DriverRejected, Secret, TransientDriverError
from provisioners.kubernetes import acceptance, gpu, nodes, slices
from provisioners.kubernetes.settings import Settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CARVED = (("3g.40gb", 4), ("1g.10gb", 0), ("1g.10gb", 1))
SETTINGS = Settings(slug="c", url="https://127.0.0.1:1", token=Secret("t"), vllm_image="r/vllm@sha256:1")
MIG_LIST = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-0000-0000-0000-000000000000)
  MIG 3g.40gb     Device  0: (UUID: MIG-a)
  MIG 1g.10gb     Device  1: (UUID: MIG-b)
  MIG 1g.10gb     Device  2: (UUID: MIG-c)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22222222-0000-0000-0000-000000000000)
"""


def node(kind=Kind.DEVICE_PLUGIN, **changes):
    made = gpu_node("n1", "H100-80GB", count=2, kind=kind, layouts={0: CARVED}, **changes)
    raw = as_object(made)
    raw["metadata"]["uid"] = "node-uid"
    raw["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    pools = slices.read(lab_slices.resource_slices(made))
    return nodes.read(raw, pools.on("n1"))


class Cluster:
    """Holds objects; nothing else of a cluster is asked."""

    def __init__(self):
        self.objects = {}

    def serves(self, api, kind=""):  # noqa: ARG002 - as the client
        return True

    def get(self, api, kind, name, namespace=""):  # noqa: ARG002 - as the client
        return self.objects.get((kind, name))

    def apply(self, obj, *, dry_run=False):  # noqa: ARG002 - as the client
        obj["metadata"].update(uid=f"uid-{obj['kind']}", creationTimestamp=NOW.isoformat())
        self.objects[obj["kind"], obj["metadata"]["name"]] = obj
        return obj

    def delete(self, _api, kind, name, _namespace="", *, uid):
        assert self.objects[kind, name]["metadata"]["uid"] == uid
        del self.objects[kind, name]
        return True


def run(cluster, of, occupied=None, now=NOW):
    return acceptance.run(cluster, SETTINGS, of, occupied or gpu.Occupied(), now=now)


def ended(cluster, message, *, code=0):
    pod = next(found for (kind, _), found in cluster.objects.items() if kind == "Pod")
    state = {"terminated": {"exitCode": code, "reason": "Completed" if not code else "Error", "message": message}}
    pod["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"state": state}]}
    return pod


def test_the_pod_takes_all_that_is_free_and_may_do_next_to_nothing():
    cluster, of = Cluster(), node()

    with pytest.raises(TransientDriverError, match="was started"):
        run(cluster, of)

    (pod,) = cluster.objects.values()
    (container,) = pod["spec"]["containers"]
    asked = {name: n for name, n in container["resources"]["limits"].items() if name.startswith("nvidia.com/")}
    assert asked == {"nvidia.com/gpu": "1", "nvidia.com/mig-1g.10gb": "2", "nvidia.com/mig-3g.40gb": "1"}
    assert pod["spec"]["nodeSelector"] == {"kubernetes.io/hostname": "n1"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_run_passes_where_every_device_answers_and_leaves_nothing():
    cluster, of = Cluster(), node()
    with pytest.raises(TransientDriverError):
        run(cluster, of)
    with pytest.raises(TransientDriverError, match="not ended"):
        run(cluster, of)

    ended(cluster, MIG_LIST)
    found = run(cluster, of)

    assert found.passed
    assert found.checks == (
        ("node is ready", True, "Ready"),
        ("product is as published", True, "NVIDIA H100 80GB HBM3"),
        ("whole GPUs answer", True, "1 of 1"),
        ("1g.10gb answer", True, "2 of 2"),
        ("3g.40gb answer", True, "1 of 1"),
    )
    assert cluster.objects == {}


@pytest.mark.parametrize(
    ("message", "code", "failed"),
    [
        (MIG_LIST.replace("  MIG 1g.10gb     Device  2: (UUID: MIG-c)\n", ""), 0, {"1g.10gb answer"}),
        (MIG_LIST.replace("MIG-c", "MIG-b"), 0, {"1g.10gb answer"}),
        (MIG_LIST.replace("H100 80GB HBM3", "A100-SXM4-80GB"), 0, {"product is as published"}),
        ("No devices found.", 6, {"GPUs answer"}),
    ],
)
def test_a_device_that_does_not_answer_fails_the_run(message, code, failed):
    cluster, of = Cluster(), node()
    with pytest.raises(TransientDriverError):
        run(cluster, of)

    ended(cluster, message, code=code)
    found = run(cluster, of)

    assert not found.passed
    assert {name for name, passed, _ in found.checks if not passed} == failed


def test_what_others_use_is_left_alone_and_a_full_node_is_not_accepted():
    of = node()
    there = acceptance.wanted_of(of, gpu.Occupied())

    half = acceptance.wanted_of(of, gpu.Occupied(carved=there.counts.__class__({"1g.10gb": 2, "": 1})))
    full = run(Cluster(), of, gpu.Occupied(carved=there.counts.__class__(there.counts)))

    assert half.resources == {"nvidia.com/mig-3g.40gb": 1}
    assert not full.passed
    assert "in use by others" in full.checks[1][2]


def test_with_dra_every_published_device_is_claimed_by_its_uuid():
    cluster, of = Cluster(), node(Kind.STATIC)

    with pytest.raises(TransientDriverError):
        run(cluster, of)

    claim = next(found for (kind, _), found in cluster.objects.items() if kind == "ResourceClaim")
    classes = [request["exactly"]["deviceClassName"] for request in claim["spec"]["devices"]["requests"]]
    assert sorted(classes) == ["gpu.nvidia.com", *["mig.nvidia.com"] * 3]
    ended(cluster, MIG_LIST)
    assert run(cluster, of).passed
    assert cluster.objects == {}


def test_gpus_that_are_carved_when_claimed_are_tried_whole():
    found = acceptance.wanted_of(node(Kind.PARTITIONABLE), gpu.Occupied())

    assert found.counts == {"": 2}


def test_a_pod_that_never_starts_is_given_up_with_the_schedulers_words():
    cluster, of = Cluster(), node()
    with pytest.raises(TransientDriverError):
        run(cluster, of)
    pod = next(iter(cluster.objects.values()))
    pod["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}

    found = run(cluster, of, now=NOW + timedelta(seconds=acceptance.LIMIT_S + 1))

    assert not found.passed
    assert "0/1 nodes are available" in found.checks[1][2]


def test_a_foreign_pod_of_that_name_is_never_touched():
    cluster, of = Cluster(), node()
    cluster.objects["Pod", acceptance.name_for(of)] = {"kind": "Pod", "metadata": {"name": "x", "uid": "u"}}

    with pytest.raises(DriverRejected, match="not ours"):
        run(cluster, of)
