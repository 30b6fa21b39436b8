"""The lab's real node: what a real kubelet and containerd make of the driver's objects, with made-up MIG devices."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest
from aiohttp import web

from controlplane.labs.kubernetes import build, real_node
from controlplane.labs.kubernetes.credentials import NODE_ADDRESS
from controlplane.labs.kubernetes.real_node import NAME, RealNode
from provisioners.driver import GatewaySpec, Kind, Ref, Secret
from provisioners.kubernetes import gpu, nodes, slices
from provisioners.kubernetes.gateways import gateway_objects
from provisioners.kubernetes.nodes import derived_id
from provisioners.kubernetes.settings import Settings
from tests.gateway_lab import ControlPlane

pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver, pytest.mark.timeout(300)]

DEVICE = "nvidia.com/mig-1g.10gb"


@pytest.fixture(scope="module")
def node(kube_clusters):
    if why := real_node.why_not_here():
        pytest.skip(why)
    if not build.is_built(build.REAL_NODE):
        pytest.skip("the real node's programs are not built: make test-real NODE=real")
    cluster = kube_clusters("real", pods="ready")
    made = RealNode(cluster)
    made.start()
    yield made
    made.stop()
    cluster.stop()


@pytest.fixture(scope="module")
def image(node):
    return node.gateway_image()


@pytest.fixture
def api(node):
    with node.cluster.api() as found:
        yield found


@pytest.fixture
def restricted(api):
    """A namespace under Pod Security `restricted`, in the shape of a boundary's."""
    ref = Ref(Kind.BOUNDARY, uuid4(), uuid4())
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "v1.36"}
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ref.name, "labels": labels}})
    until(lambda: api.get("v1", "ServiceAccount", "default", ref.name), "the service account")
    yield ref
    api.delete("v1", "Namespace", ref.name)
    until(lambda: api.get("v1", "Namespace", ref.name) is None, "the namespace gone", 90)


class Home(ControlPlane):
    """The control plane of a gateway in a pod: on the node's own address, in a thread."""

    def __init__(self, uid: Any) -> None:
        super().__init__(uid)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, NODE_ADDRESS, 0).start()
        self.port = self._runner.addresses[0][1]

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self.publish)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.2)  # noqa: TID251 - asks a real server again
    return found


def is_true(obj: dict[str, Any], kind: str) -> bool:
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)


def pod(ref: Ref, image: Any, script: str) -> dict[str, Any]:
    contained = {
        "name": "c",
        "image": image.pinned,
        "command": ["python", "-c", script],
        "resources": {"limits": {DEVICE: "1"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    spec = {"containers": [contained], "restartPolicy": "Never", "automountServiceAccountToken": False}
    meta = {"name": "gpu", "namespace": ref.name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def test_the_node_is_a_real_kubelet_that_counts_made_up_devices(api, node):
    seen = api.get("v1", "Node", NAME)

    assert seen["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3"
    assert seen["status"]["nodeInfo"]["containerRuntimeVersion"] == "containerd://2.4.2"
    assert seen["status"]["allocatable"][DEVICE] == "7"
    assert seen["metadata"]["labels"]["nvidia.com/mig-1g.10gb.count"] == "7"
    assert seen["metadata"]["annotations"]["lab.tenantry.internal/simulated-gpus"] == "true"


def test_the_gateway_runs_as_a_real_container_under_restricted_and_answers(api, image, restricted):
    gateway_uid = uuid4()
    settings = Settings(slug="real", url="https://lab.invalid", gateway_image=image.pinned)
    with Home(gateway_uid) as home:
        spec = GatewaySpec(gateway_uid, f"http://{NODE_ADDRESS}:{home.port}", Secret(home.token))
        for made in gateway_objects(restricted, spec, settings):
            api.apply(made)

        def running() -> list[dict[str, Any]]:
            found = api.list("v1", "Pod", namespace=restricted.name)
            return [one for one in found if is_true(one, "Ready")]

        (one,) = until(
            running,
            f"a gateway that is ready: {[p['status'] for p in api.list('v1', 'Pod', namespace=restricted.name)]}",
            90,
        )
        answer = httpx.get(f"http://{one['status']['podIP']}:8080/readyz", timeout=5, trust_env=False)
        refused = httpx.get(f"http://{one['status']['podIP']}:8080/v1/models", timeout=5, trust_env=False)

    assert answer.status_code == 200
    assert refused.status_code == 401
    assert one["spec"]["nodeName"] == NAME
    assert one["status"]["containerStatuses"][0]["containerID"].startswith("containerd://")
    assert [asked.gateway_uid for asked in home.enrolments] == [gateway_uid]


def test_the_device_that_the_kubelet_chose_is_read_back(api, node, image, restricted):
    before = len(node.allocations())

    api.create(pod(restricted, image, "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'], os.getuid())"))
    seen = until(
        lambda: (
            (p := api.get("v1", "Pod", "gpu", restricted.name))
            and p["status"]["phase"] in {"Succeeded", "Failed"}
            and p
        ),
        "the pod's end",
    )

    log = api.request("GET", f"/api/v1/namespaces/{restricted.name}/pods/gpu/log").split()
    assert seen["status"]["phase"] == "Succeeded", log
    (given,) = node.allocations()[before:]
    assert (given["resource"], log) == (DEVICE, [given["devices"][0], "65532"])
    assert given["devices"][0] in node._devices()[DEVICE]


def test_the_driver_reads_the_choice_from_what_the_kubelet_publishes(api, node, image, restricted):
    before = len(node.allocations())

    api.create(pod(restricted, image, "import time; time.sleep(240)"))
    seen = until(
        lambda: (p := api.get("v1", "Pod", "gpu", restricted.name)) and gpu.reported(p) and p, "a reported device"
    )
    (taken,) = gpu.taken_by(seen, nodes.read(api.get("v1", "Node", NAME)), {}, slices.read([]))

    (given,) = node.allocations()[before:]
    assert gpu.reported(seen) == {DEVICE: tuple(given["devices"])}
    # Which slots a bare UUID is nobody in the cluster says; of the only GPU of a node it is plain which one it is.
    assert (taken.device, taken.start, taken.profile) == (derived_id(NAME, 0), None, "1g.10gb")


def test_a_pod_that_may_not_run_under_restricted_never_reaches_the_node(api, image, restricted):
    loose = pod(restricted, image, "pass")
    loose["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0

    with pytest.raises(Exception, match="violates PodSecurity"):
        api.create(loose)


def test_a_stopped_node_leaves_no_process_mount_or_bridge(node):
    pids = list(node.pids().values())
    assert len(pids) == 3

    node.stop()

    assert node.pids() == {}
    assert list(real_node._shims(str(node._socket))) == []
    assert real_node._mounts_below(node.folder) == []
    assert real_node.why_not_here() == ""
    node.start()  # as it was, for whoever comes after
    assert set(node.pids()) == {"containerd", "kubelet", "device-plugin"}
