"""What the Kubernetes lab is built of, and its workshop (`controlplane.labs.building`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlplane.labs import building
from controlplane.labs.building import PLAIN_LINKER_FLAGS, Module, Programs, Tell, Workshop
from controlplane.labs.errors import LabError

SOURCES: Final = building.SOURCES / "kubernetes"
KUBERNETES_VERSION: Final = "v1.36.3"
_VERSION_FLAGS: Final = f"{PLAIN_LINKER_FLAGS} -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}"

ETCD: Final = Module("etcd", ("go.etcd.io/etcd/server/v3",), renamed=(("v3", "etcd"),))
KWOK: Final = Module("kwok", ("sigs.k8s.io/kwok/cmd/kwok",), minutes=2)
KUBERNETES: Final = Module(
    "kubernetes",
    tuple(
        f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    ),
    linker_flags=_VERSION_FLAGS,
    minutes=8,
)
CONTROL_PLANE: Final = (ETCD, KWOK, KUBERNETES)
"""What a cluster of simulated nodes needs."""

KUBELET: Final = Module("kubernetes", ("k8s.io/kubernetes/cmd/kubelet",), linker_flags=_VERSION_FLAGS)
CONTAINERD: Final = Module(
    "containerd",
    tuple(
        f"github.com/containerd/containerd/v2/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    ),
    linker_flags=f"{PLAIN_LINKER_FLAGS} -X github.com/containerd/containerd/v2/version.Version=2.4.2",
    minutes=2,
)
RUNC: Final = Module("runc", ("github.com/opencontainers/runc",), tags="seccomp", cgo=True, minutes=0.5)
"""Links Debian's libseccomp (`libseccomp-dev`): without it no pod may have the seccomp profile RuntimeDefault."""
CNI: Final = Module(
    "cni",
    tuple(
        f"github.com/containernetworking/plugins/plugins/{name}"
        for name in ("main/bridge", "main/loopback", "ipam/host-local")
    ),
    minutes=0.5,
)
DEVICE_PLUGIN: Final = Module(
    "device-plugin", ("tenantry.internal/lab/device-plugin", "tenantry.internal/lab/device-plugin/pause"), minutes=0.5
)
REAL_NODE: Final = (KUBELET, CONTAINERD, RUNC, CNI, DEVICE_PLUGIN)
"""What a real node needs beside `CONTROL_PLANE`."""


def cache_folder() -> Path:
    """Return the folder of all built programs."""
    return _workshop().cache_folder()


def folder_of(module: Module) -> Path:
    """Return where a module's programs lie for the versions that its go.mod and go.sum name now."""
    return _workshop().folder_of(module)


def is_built(modules: Sequence[Module] = CONTROL_PLANE) -> bool:
    """Whether every program of `modules` is in the cache."""
    return _workshop().is_built(modules)


def why_not_here(modules: Sequence[Module] = CONTROL_PLANE) -> str:
    """Return why the programs can neither be found nor built here; empty when they can."""
    return _workshop().why_not_here(modules)


def ensure(modules: Sequence[Module] = CONTROL_PLANE, *, tell: Tell | None = None) -> Programs:
    """Return the programs of `modules`, built first where the cache lacks them. Raises as `Workshop.ensure`."""
    return _workshop().ensure(modules, tell=tell)


def _workshop() -> Workshop:
    return Workshop("kubernetes", "the Kubernetes lab", SOURCES)


def main() -> int:
    """`python -m controlplane.labs.kubernetes.build`: build what is missing; needs the standard library only."""
    try:
        for folder in ensure().folders:
            print(folder)
    except LabError as error:
        building.say_on_stderr(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
