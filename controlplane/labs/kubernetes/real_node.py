"""One real node for a lab cluster: kubelet, containerd and runc of our own build, with GPUs that do not exist.

Needs root, cgroups and Debian's libseccomp; one per machine, because the kubelet's device plugins register at a fixed
place and pods have one bridge. Containers are real, under Pod Security and seccomp; only the MIG devices are made up:
`device-plugin` offers them, the kubelet counts and chooses, and what it chose stands in `allocations()`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from controlplane.embedded import ports, processes, programs
from controlplane.embedded.places import Places, is_root
from controlplane.embedded.ports import LOOPBACK
from controlplane.embedded.programs import Program, Running
from controlplane.labs import waiting
from controlplane.labs.building import Programs, Tell
from controlplane.labs.kubernetes import build, images, nodes, stages
from controlplane.labs.kubernetes.client import Object
from controlplane.labs.kubernetes.cluster import Cluster
from controlplane.labs.kubernetes.credentials import NODE_ADDRESS, kubeconfig, store_private
from controlplane.labs.kubernetes.errors import LabError
from controlplane.labs.kubernetes.images import Image
from controlplane.labs.kubernetes.nodes import Node, gpu_node

NAME: Final = "real-0"
NAMES: Final = ("containerd", "kubelet", "device-plugin")
BRIDGE: Final = "tenantry-lab0"
_SUBNET: Final = "10.88.0.0/24"
_PLUGINS: Final = Path("/var/lib/kubelet/device-plugins")
"""Fixed in the kubelet: pkg/apis/deviceplugin/v1beta1 DevicePluginPath."""
_PORTS: Final = ("kubelet", "kubelet-health")
_STARTED: Final[list[Running]] = []


def why_not_here() -> str:
    """Return why this machine can have no real node; empty when it can."""
    if sys.platform != "linux" or not is_root():
        return "a real node needs root on Linux: it makes containers, mounts and a bridge"
    if not Path("/sys/fs/cgroup").is_dir() or not _is_mounted("/sys/fs/cgroup"):
        return "a real node needs cgroups, and none are mounted here"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "a real node needs overlayfs, which this kernel has not"
    if not build.is_built(build.REAL_NODE):
        # Linux's own header of that name, linux/seccomp.h, is on every machine with a compiler.
        if not any(found.parent.name != "linux" for found in Path("/usr/include").glob("**/seccomp.h")):
            return "runc is built with libseccomp: apt-get install libseccomp-dev pkg-config gcc"
        return build.why_not_here(build.REAL_NODE)
    return ""


class RealNode:
    """The real node of one cluster, which must run."""

    def __init__(self, cluster: Cluster, *, gpus: Node | None = None) -> None:
        """`gpus` says which MIG devices the device plugin offers (default: seven 1g.10gb of one H100)."""
        ones = tuple(("1g.10gb", start) for start in range(7))
        self.cluster = cluster
        self.gpus = gpus or gpu_node(NAME, "H100-80GB", count=1, layouts={0: ones})
        self.folder = cluster.folder / "node"
        self.places = Places(self.folder)

    # --- life -------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 120, tell: Tell | None = None) -> None:
        """Start what does not run and return when the node is Ready and offers its devices; adopts what runs.

        Raises `LabError` where this machine can have no real node, or a program ends or is not ready in time.
        """
        if why := why_not_here():
            raise LabError(why)
        built = build.ensure(build.REAL_NODE, tell=tell)
        self.places.make()
        if not any(self._recorded(name) for name in NAMES):
            self._clear()
            if Path(f"/sys/class/net/{BRIDGE}").exists():
                raise LabError(
                    "another cluster has this machine's real node", mend=f"stop it, or: ip link del {BRIDGE}"
                )
        self._bridge()
        self._write_files(built)
        deadline = time.monotonic() + timeout_s
        self._bring_up("containerd", self._containerd(built), lambda: self._ctr(built, "version") is not None, deadline)
        for image in self._images(built):
            self._import(built, image)
        self._bring_up("kubelet", self._kubelet(built), self._kubelet_is_well, deadline)
        self._bring_up("device-plugin", self._device_plugin(built), self._offers, deadline)
        self._label()
        self._wait(self._is_ready, "the node is not Ready", deadline, self.places.logs / "kubelet.log")

    def stop(self) -> bool:
        """End its containers and programs and take away mounts and bridge; false when nothing ran."""
        ran = any(self._recorded(name) for name in NAMES)
        for name in ("device-plugin", "kubelet"):
            self._stop(name)
        if self._recorded("containerd") is not None:
            self._end_containers(build.ensure(build.REAL_NODE))
        self._stop("containerd")
        if ran or self.folder.is_dir():
            self._clear()
            subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)
        return ran

    def pids(self) -> dict[str, int]:
        """Return name → pid of what runs."""
        found = {name: self._recorded(name) for name in NAMES}
        return {name: process.pid for name, process in found.items() if process is not None}

    def allocations(self) -> list[dict[str, Any]]:
        """Return what the kubelet gave out, oldest first: at, resource, devices."""
        file = self.folder / "allocations.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def gateway_image(self) -> Image:
        """Make the gateway's image from this checkout and give it to the node."""
        made = images.gateway(self.folder / "images")
        self._import(build.ensure(build.REAL_NODE), made)
        return made

    # --- programs ---------------------------------------------------------------------------------

    def _containerd(self, built: Programs) -> tuple[str, ...]:
        return (str(built.path("containerd")), "--config", str(self.folder / "containerd.toml"))

    def _kubelet(self, built: Programs) -> tuple[str, ...]:
        return (
            str(built.path("kubelet")),
            f"--config={self.folder / 'kubelet.json'}",
            f"--kubeconfig={self.folder / 'kubelet.kubeconfig'}",
            f"--root-dir={self.folder / 'kubelet'}",
            f"--hostname-override={NAME}",
            f"--node-ip={NODE_ADDRESS}",
        )

    def _device_plugin(self, built: Programs) -> tuple[str, ...]:
        offered = [f"{resource}={','.join(ids)}" for resource, ids in self._devices().items()]
        log = str(self.folder / "allocations.jsonl")
        return (str(built.path("device-plugin")), "-kubelet", str(_PLUGINS), "-log", log, *offered)

    def _devices(self) -> dict[str, list[str]]:
        """Return resource → ids of the devices that are offered."""
        found: dict[str, list[str]] = {}
        for gpu in self.gpus.gpus:
            if gpu.mig is None:
                found.setdefault(nodes.GPU, []).append(gpu.uuid(NAME))
            for profile, start in gpu.mig or ():
                resource = self.gpus.model.profiles[profile].resource_name
                found.setdefault(resource, []).append(self.gpus.mig_uuid(gpu, profile, start))
        return found

    def _bring_up(self, name: str, command: tuple[str, ...], ready: Callable[[], bool], deadline: float) -> None:
        work = self.folder / "work" / name
        work.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")])
        environ = {"PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8"}
        one = Running(Program(name, command, environ, lambda _: ready(), work, survives=True), self.places)
        one.process = self._recorded(name)
        if not one.is_alive():
            one.start()
            _STARTED[:] = [kept for kept in (*_STARTED, one) if kept.is_alive()]
        self._wait(ready, f"{name} is not ready", deadline, one.log_file, alive=one.is_alive)

    def _wait(
        self,
        ready: Callable[[], bool],
        what: str,
        deadline: float,
        log: Path,
        *,
        alive: Callable[[], bool] | None = None,
    ) -> None:
        def ended() -> bool:
            return alive is not None and not alive()

        if not waiting.until(lambda: ended() or ready(), deadline) or not ready():
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
            raise LabError(f"{what}{' and has ended' if ended() else ''}:\n{tail}", mend=f"see {log}")

    def _recorded(self, name: str) -> processes.ProcessId | None:
        return programs.recorded(self.places.run / f"{name}.json")

    def _stop(self, name: str) -> None:
        programs.stop_recorded(self.places.run / f"{name}.json", self.folder / "work" / name, grace_s=5)
        _STARTED[:] = [one for one in _STARTED if one.is_alive()]

    # --- readiness --------------------------------------------------------------------------------

    def _kubelet_is_well(self) -> bool:
        port = ports.remembered(self.places.ports_file)["kubelet-health"]
        return programs.is_answering(f"http://{LOOPBACK}:{port}/healthz") and self._node() is not None

    def _node(self) -> Object | None:
        with self.cluster.api() as api:
            return api.get("v1", "Node", NAME)

    def _offers(self) -> bool:
        seen = ((self._node() or {}).get("status") or {}).get("allocatable") or {}
        return all(seen.get(resource) == str(len(ids)) for resource, ids in self._devices().items())

    def _is_ready(self) -> bool:
        node = self._node() or {}
        conditions = (node.get("status") or {}).get("conditions") or ()
        is_ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        return is_ready and not node["spec"].get("taints")

    def _label(self) -> None:
        """Publish what GPU feature discovery would, and that the devices are made up."""
        body = {"labels": nodes.labels(self.gpus), "annotations": {f"{stages.SIMULATED}-gpus": "true"}}
        with self.cluster.api() as api:
            api.patch("v1", "Node", NAME, {"metadata": body})

    # --- files and network ------------------------------------------------------------------------

    def _write_files(self, built: Programs) -> None:
        pki = self.cluster.credentials
        pki.client("kubelet", user=f"system:node:{NAME}", groups=("system:nodes",))
        user = {"client-certificate": str(pki.certificate("kubelet")), "client-key": str(pki.key("kubelet"))}
        config = kubeconfig(url=self.cluster.url, ca=pki.ca, user=user)
        store_private(self.folder / "kubelet.kubeconfig", config)
        known = ports.remembered(self.places.ports_file)
        if set(known) != set(_PORTS):
            first = ports.choose(32_000)
            known = dict(zip(_PORTS, (first, ports.choose(first + 1)), strict=True))
            ports.remember(self.places.ports_file, known)
        store_private(self.folder / "kubelet.json", json.dumps(self._kubelet_config(known), indent=1))
        store_private(self.folder / "containerd.toml", self._containerd_config(built))
        network = self.folder / "cni" / "net.d"
        network.mkdir(parents=True, exist_ok=True)
        store_private(network / "10-lab.conflist", json.dumps(self._network(), indent=1))

    def _kubelet_config(self, known: dict[str, int]) -> Object:
        pki = self.cluster.credentials
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "port": known["kubelet"],
            "readOnlyPort": 0,
            "healthzBindAddress": LOOPBACK,
            "healthzPort": known["kubelet-health"],
            "tlsCertFile": str(pki.certificate("apiserver")),
            "tlsPrivateKeyFile": str(pki.key("apiserver")),
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(pki.ca)}},
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            # this machine's cgroups may be v1 and are not ours to arrange
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "clusterDomain": "cluster.local",
            "clusterDNS": ["10.96.0.10"],
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "shutdownGracePeriod": "0s",
            "nodeStatusUpdateFrequency": "5s",
        }

    @property
    def _socket(self) -> Path:
        return self.folder / "containerd.sock"

    def _containerd_config(self, built: Programs) -> str:
        runtime = "plugins.'io.containerd.cri.v1.runtime'"
        return f"""version = 3
root = '{self.folder / "containerd"}'
state = '{self.folder / "state"}'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.tracing.processor.v1.otlp']

[grpc]
  address = '{self._socket}'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{images.PAUSE}'

[{runtime}]
  # without CAP_SYS_RESOURCE nobody may lower an oom score
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

[{runtime}.cni]
  bin_dirs = ['{built.path("bridge").parent}']
  conf_dir = '{self.folder / "cni" / "net.d"}'

[{runtime}.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[{runtime}.containerd.runtimes.runc.options]
  BinaryName = '{built.path("runc")}'
  SystemdCgroup = false
"""

    def _network(self) -> Object:
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": _SUBNET}]],
            "dataDir": str(self.folder / "cni" / "data"),
        }
        bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "ipam": addresses}
        return {"cniVersion": "1.0.0", "name": "tenantry-lab", "plugins": [bridge]}

    def _bridge(self) -> None:
        """Make the bridge before its first pod: the kubelet listens on its address."""
        if Path(f"/sys/class/net/{BRIDGE}").exists():
            return
        for words in (
            ("link", "add", BRIDGE, "type", "bridge"),
            ("addr", "add", f"{NODE_ADDRESS}/24", "dev", BRIDGE),
            ("link", "set", BRIDGE, "up"),
        ):
            answer = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                raise LabError(f"ip {' '.join(words)}: {answer.stderr.strip()}")

    # --- containers -------------------------------------------------------------------------------

    def _ctr(self, built: Programs, *words: str) -> str | None:
        """Run ctr in the kubelet's namespace; None when it failed."""
        command = [str(built.path("ctr")), "--address", str(self._socket), "--namespace", "k8s.io", *words]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        return answer.stdout if answer.returncode == 0 else None

    def _images(self, built: Programs) -> list[Image]:
        return [images.pause(built.path("pause"), self.folder / "images")]

    def _import(self, built: Programs, image: Image) -> None:
        """Give an image to containerd, by tag and by digest. Raises `LabError`."""
        imported = self._ctr(built, "images", "import", "--local", str(image.file))
        tagged = self._ctr(built, "images", "tag", "--force", image.tagged, image.pinned)
        if imported is None or tagged is None:
            raise LabError(f"containerd did not take {image.file}", mend=f"see {self.places.logs / 'containerd.log'}")

    def _end_containers(self, built: Programs) -> None:
        for name in (self._ctr(built, "tasks", "list", "--quiet") or "").split():
            self._ctr(built, "tasks", "delete", "--force", name)
        for name in (self._ctr(built, "containers", "list", "--quiet") or "").split():
            self._ctr(built, "containers", "delete", name)

    def _clear(self) -> None:
        """End shims that are left and undo every mount below our folder, the last one first."""
        for pid in _shims(str(self._socket)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for place in _mounts_below(self.folder):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        if (
            self.folder / "kubelet"
        ).is_dir():  # ours ran here: what it and our plugin left would be believed by the next
            for left in (*_PLUGINS.glob("lab-*.sock"), _PLUGINS / "kubelet_internal_checkpoint"):
                left.unlink(missing_ok=True)


def _shims(socket: str) -> Iterator[int]:
    """Yield the pids of containerd's shims that talk to our containerd."""
    for pid in processes.running_pids():
        words = processes.arguments(pid)
        if words and words[0].endswith("containerd-shim-runc-v2") and socket in words:
            yield pid


def _mounts_below(folder: Path) -> list[str]:
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in reversed(places) if place.startswith(f"{folder}/")]


def _is_mounted(place: str) -> bool:
    return any(line.split()[4] == place for line in Path("/proc/self/mountinfo").read_text().splitlines())
