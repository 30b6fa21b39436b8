"""Which kinds of the VM Service a cluster serves, and what our steps on them are called. Pure.

The newest version is taken of those in which the fields that we write mean the same: `instanceUUID`, `biosUUID` and
`bootstrap.cloudInit.cloudConfig` are all there from v1alpha3 on. Older Supervisors are answered as if they had none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from provisioners.kubernetes.applying import KindRef

GROUP: Final = "vmoperator.vmware.com"
VERSIONS: Final = ("v1alpha6", "v1alpha5", "v1alpha4", "v1alpha3")
"""Newest first."""
FEATURE: Final = "vm-service"
VM: Final = "VirtualMachine"
CLASS: Final = "VirtualMachineClass"
CLONE: Final = "vm.clone"
CONFIGURE: Final = "vm.configure"
POWER: Final = "vm.power"
STEPS: Final = (CLONE, CONFIGURE, POWER)

Serves = Callable[[str, str], bool]
"""(`apps/v1`, `Deployment`) → whether the cluster serves it."""


def api_of(serves: Serves) -> str:
    """Return the API version in which we talk of virtual machines, `""` where there is none that we know."""
    known = (f"{GROUP}/{version}" for version in VERSIONS)
    return next((api for api in known if serves(api, VM) and serves(api, CLASS)), "")


def held(serves: Serves) -> tuple[KindRef, ...]:
    """Return the kinds of ours that hold a boundary up: its machines. Classes are the boundary's own and go with it."""
    api = api_of(serves)
    return (KindRef(api, VM),) if api else ()
