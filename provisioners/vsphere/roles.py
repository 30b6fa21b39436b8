"""What a tenant's group may do in its boundary's folder: nothing, or to look and to open consoles.

Everything else is asked of us and not of vCenter, or the ledger would not hear of it. Only what is granted on the
folder itself is ours: what an operator has granted further up comes down to it and stays. The role is found by its
name; an operator who wants it wider edits the role.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from provisioners.driver import Remark, RemarkKind, intent_hash
from provisioners.vsphere.client import MoRef, managed
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Ground

STEP: Final = "role.grant"
ROLE: Final = "Tenantry tenant"
PRIVILEGES: Final = ("System.Anonymous", "System.Read", "System.View", "VirtualMachine.Interact.ConsoleInteract")


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One permission on an object, as vCenter says it."""

    principal: str
    """`DOMAIN\\name`; vCenter does not care for its case."""
    is_group: bool
    role: str
    propagates: bool

    @property
    def key(self) -> tuple[str, bool, str, bool]:
        """What makes two of them the same."""
        return (self.principal.casefold(), self.is_group, self.role, self.propagates)


class Roles:
    """Permissions on the folders of boundaries in one vCenter."""

    def __init__(self, ground: Ground) -> None:
        """Stand on `ground`."""
        self._ground = ground

    def wanted(self, group: str) -> tuple[Grant, ...]:
        """Return what a boundary's folder should grant; nothing without a group."""
        return (Grant(group, is_group=True, role=ROLE, propagates=True),) if group else ()

    def read(self, folder: MoRef) -> tuple[Grant, ...]:
        """Return what is granted on a folder itself."""

        def read(session: Any) -> tuple[Grant, ...]:
            manager = session.content.authorizationManager
            told = manager.RetrieveEntityPermissions(managed(folder, session.si), False) or ()
            roles = {one.roleId: str(one.name) for one in manager.roleList or ()} if told else {}
            return tuple(
                Grant(str(one.principal), bool(one.group), roles.get(one.roleId, "?"), bool(one.propagate))
                for one in told
            )

        return self._ground.client.reading(read)

    def make(self, folder: MoRef, wanted: Iterable[Grant]) -> None:
        """Grant what is wanted on a folder and take back what is not; safe to repeat."""
        targets = {one.key: one for one in wanted}
        present = {one.key: one for one in self.read(folder)}
        for key, one in present.items():
            if key not in targets:
                self._take_back(folder, one)
        missing = [one for key, one in targets.items() if key not in present]
        if missing:
            self._grant(folder, list(targets.values()))

    def _grant(self, folder: MoRef, grants: list[Grant]) -> None:
        ids = {one.role: self._role_id(one.role) for one in grants}
        told = [
            vim.AuthorizationManager.Permission(
                principal=one.principal, group=one.is_group, roleId=ids[one.role], propagate=one.propagates
            )
            for one in grants
        ]
        self._ground.client.changing(
            lambda si: si.content.authorizationManager.SetEntityPermissions(managed(folder, si), told)
        )

    def _take_back(self, folder: MoRef, grant: Grant) -> None:
        self._ground.client.changing(
            lambda si: si.content.authorizationManager.RemoveEntityPermission(
                managed(folder, si), grant.principal, grant.is_group
            )
        )

    def _role_id(self, name: str) -> int:
        found = self._find_role(name)
        if found is None:
            with contextlib.suppress(LookFirst):  # another worker was faster, or the answer was lost
                self._ground.client.changing(
                    lambda si: si.content.authorizationManager.AddAuthorizationRole(name, list(PRIVILEGES))
                )
            found = self._find_role(name)
        if found is None:
            raise LookFirst(f"vCenter shows no role {name} after making it")
        return found

    def _find_role(self, name: str) -> int | None:
        """Return the id of a role; the first one of a vCenter may be 0."""

        def read(session: Any) -> int | None:
            roles = session.content.authorizationManager.roleList or ()
            return next((int(one.roleId) for one in roles if one.name == name), None)

        return self._ground.client.reading(read)


def seen_of(grants: Iterable[Grant]) -> str:
    """Return the hash by which what is granted is known again."""
    return intent_hash(sorted(one.key for one in grants))


def remark(grants: Iterable[Grant]) -> Remark:
    """Return what to say of permissions that are not as they were left."""
    shown = ", ".join(f"{one.principal} ({one.role})" for one in sorted(grants)) or "nobody"
    return Remark(RemarkKind.ACCESS, f"its folder's permissions were changed by others; it lets in {shown}", "folder")
