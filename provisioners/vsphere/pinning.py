"""Keeping a VM on the host that the ledger chose: a cluster that balances by itself would power it on elsewhere.

An override of the VM's own switches the cluster's automation off for it (`ClusterDrsVmConfigInfo`); other VMs of the
cluster are balanced as before. It goes with the VM. A restart by HA is not prevented: it is seen, and the ledger
follows.
"""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from provisioners.driver import Done, DriverRejected, Handle
from provisioners.vsphere.client import MoRef, VCenterClient, managed, reference
from provisioners.vsphere.tasks import finish


def pin(client: VCenterClient, cluster: MoRef, vm: MoRef) -> Handle | Done:
    """Take a VM out of a cluster's automation, if there is any."""
    operation = _missing(client, cluster, vm)
    if not operation:
        return Done()

    def change(si: Any) -> Any:
        info = vim.cluster.DrsVmConfigInfo(key=managed(vm, si), enabled=False)
        spec = vim.cluster.ConfigSpecEx(drsVmConfigSpec=[vim.cluster.DrsVmConfigSpec(operation=operation, info=info)])
        return managed(cluster, si).ReconfigureComputeResource_Task(spec, modify=True)

    try:
        return finish(client, client.start(change), within_s=1)
    except DriverRejected:
        if _missing(client, cluster, vm):
            raise
        return Done()  # another worker was faster, and a second override is refused


def _missing(client: VCenterClient, cluster: MoRef, vm: MoRef) -> str:
    """Return what has to be done with a VM's override, `""` where it stays where it is."""
    told = client.get(cluster, "configurationEx.drsConfig.enabled", "configurationEx.drsVmConfig") or {}
    if not told.get("configurationEx.drsConfig.enabled"):
        return ""
    overrides = {reference(one.key): one.enabled for one in told.get("configurationEx.drsVmConfig") or ()}
    if overrides.get(vm) is False:
        return ""
    return "edit" if vm in overrides else "add"
