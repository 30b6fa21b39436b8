"""Whether the storage policy that is configured is there, asked of vCenter's policy service (PBM).

It is a SOAP service of its own beside vCenter's, with types of its own, that takes vCenter's session by a header.
govmomi, and with it Terraform and Cluster API, asks it at `/pbm`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, Final

from pyVmomi import SoapStubAdapter, pbm

from provisioners.driver import DriverError
from provisioners.vsphere.client import VCenterClient, context_of
from provisioners.vsphere.failures import fault_of

PATH: Final = "/pbm"
_VERSION: Final = "pbm.version.version1"
"""The oldest, which every vCenter speaks; nothing newer is asked for."""
_COOKIE: Final = "vmware_soap_session"
_MOST_NAMES: Final = 5


def gap(client: VCenterClient, policy: str) -> str:
    """Return why machines cannot be given a storage policy by its id, `""` where they can."""
    try:
        there = policies(client)
    except DriverError as error:
        if fault_of(error) == "NoPermission":
            return f"Whether there is a storage policy {policy} cannot be read: our account needs StorageProfile.View."
        return f"Whether there is a storage policy {policy} could not be asked: {error.detail}."
    return missing(policy, there)


def missing(policy: str, there: Mapping[str, str]) -> str:
    """Return what to say of a policy that is not among `there` (id → name), `""` for one that is; pure."""
    if policy in there:
        return ""
    named = [key for key, name in there.items() if name.casefold() == policy.casefold()]
    if named:
        return f"vCenter has no storage policy with the id {policy}; the one that is called so has the id {named[0]}."
    shown = ", ".join(f"{key} ({name})" for key, name in sorted(there.items(), key=lambda one: one[1])[:_MOST_NAMES])
    return f"vCenter has no storage policy with the id {policy}. It has: {shown or 'none'}."


def policies(client: VCenterClient) -> dict[str, str]:
    """Return id → name of the policies for machines' disks, in three calls. Raises `DriverError`."""
    settings = client.settings

    def read(session: Any) -> dict[str, str]:
        stub = SoapStubAdapter(
            host=settings.host,
            port=settings.port,
            path=PATH,
            version=_VERSION,
            sslContext=context_of(settings),
            httpConnectionTimeout=settings.call_deadline_s,
            requestContext={"vcSessionCookie": _session_of(session.si._stub.cookie)},
        )
        try:
            manager = pbm.ServiceInstance("ServiceInstance", stub).RetrieveContent().profileManager
            kind = pbm.profile.ResourceType(resourceType=pbm.profile.ResourceTypeEnum.STORAGE)
            found = manager.QueryProfile(kind, pbm.profile.CapabilityBasedProfile.ProfileCategoryEnum.REQUIREMENT)
            told = manager.RetrieveContent(found) if found else ()
            return {str(one.profileId.uniqueId): str(one.name) for one in told}
        finally:
            stub.DropConnections()

    return client.reading(read)


def _session_of(cookie: str | None) -> str:
    """Return the id of a session in vCenter's own cookie; `""` where there is none."""
    with contextlib.suppress(CookieError):
        found = SimpleCookie(cookie or "").get(_COOKIE)
        return "" if found is None else found.value
    return ""
