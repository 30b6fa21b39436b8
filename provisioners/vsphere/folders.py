"""The VM folder of a boundary: who may see what is in it, and where its VMs are found by name.

It lies in our root folder, which is made with the first boundary and stays. An unmarked folder of our name in there is
one whose maker died before it could mark it: it is adopted while it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from provisioners.driver import Conflicting, Done, Handle, Part, Presence, Ref, TransientDriverError, intent_hash
from provisioners.vsphere.client import MoRef, managed, reference
from provisioners.vsphere.failures import LookFirst
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.names import WANTS_FIELD, marker, parse_wants, wants
from provisioners.vsphere.tasks import finish

STEP: Final = "folder.create"
_PATHS: Final = ("name", "customValue", "childEntity")


class Folders:
    """Folders of boundaries in one vCenter."""

    def __init__(self, ground: Ground) -> None:
        """Stand on `ground`."""
        self._ground = ground

    def read(self, ref: Ref) -> tuple[MoRef, Mapping[str, Any]] | None:
        """Return a boundary's own folder and its values; None by an exact read, also for somebody else's."""
        found = self._ground.folder_of(ref)
        values = None if found is None else self._ground.client.get(found, *_PATHS)
        if found is None or values is None or not self._may_be_ours(ref, values):
            return None
        return found, values

    def _may_be_ours(self, ref: Ref, values: Mapping[str, Any]) -> bool:
        mark = self._ground.attribute(values)
        return mark == marker(ref) or (not mark and not values.get("childEntity"))

    def part(self, ref: Ref, values: Mapping[str, Any]) -> Part:
        """Return what is there of the step."""
        want, seen = self.records(values).get(STEP, ("", ""))
        true_still = seen == _seen(ref) and self._ground.attribute(values) == marker(ref)
        return Part(STEP, Presence.PRESENT, have=want if true_still else "")

    def records(self, values: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Return what steps have recorded on the folder."""
        return parse_wants(self._ground.attribute(values, WANTS_FIELD))

    def record(self, folder: MoRef, values: Mapping[str, Any], step: str, entry: tuple[str, str] | None) -> None:
        """Write down what a step has made true, or that it has been undone."""
        before = self.records(values)
        after = {name: one for name, one in before.items() if name != step}
        if entry is not None:
            after[step] = entry
        if after != before:
            self._ground.set_attribute(folder, wants(after), WANTS_FIELD)

    def make(self, ref: Ref, want: str) -> Done:
        """Make the folder and mark it. Raises `Conflicting` for one that is somebody else's."""
        root = self._root()
        folder = self._ground.child(root, ref.name) or self._create(root, ref.name)
        values = self._ground.client.get(folder, *_PATHS)
        if values is None:
            raise TransientDriverError(f"folder {ref.name} has gone again")
        if not self._may_be_ours(ref, values):
            raise Conflicting(f"folder {ref.name} is there and is not ours")
        if self._ground.attribute(values) != marker(ref):
            self._ground.set_attribute(folder, marker(ref))
        self.record(folder, values, STEP, (want, _seen(ref)))
        return Done()

    def _root(self) -> MoRef:
        ground = self._ground
        return ground.root_folder() or self._create(ground.estate().vm_folder, ground.settings.root_folder)

    def _create(self, parent: MoRef, name: str) -> MoRef:
        try:
            return self._ground.client.changing(lambda si: reference(managed(parent, si).CreateFolder(name)))
        except LookFirst:
            found = self._ground.child(parent, name)  # somebody was faster, or the answer was lost
            if found is None:
                raise
            return found

    def remove(self, ref: Ref) -> Handle | Done:
        """Remove the folder, only while nothing is in it: vCenter would take what is in it along."""
        found = self.read(ref)
        if found is None:
            return Done()
        folder, _values = found
        client = self._ground.client
        [inside] = client.many([folder], "childEntity")
        if inside.unread:
            raise TransientDriverError(f"vCenter does not tell what is in folder {ref.name}; it stays")
        if inside.values.get("childEntity"):
            raise TransientDriverError(f"folder {ref.name} is not empty: {self.contents(inside.values)}")
        return finish(client, client.start(lambda si: managed(folder, si).Destroy_Task()))

    def contents(self, values: Mapping[str, Any]) -> str:
        """Return the names of what is in a folder, for people; `""` for an empty one."""
        return self._ground.named(values.get("childEntity"))


def _seen(ref: Ref) -> str:
    return intent_hash({"name": ref.name, "mark": marker(ref)})
