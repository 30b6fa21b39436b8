"""Tags of vCenter's own on what is ours: whose tenant it is, and what kind of thing.

Custom attributes say what is ours; tags are for what vCenter itself does by them: compute policies, its search,
security groups of NSX, backups. So nothing here is read to decide anything, and no machine waits for it: a snapshot
brings what it saw in line with the tags, in a few calls when something has changed and none otherwise.

Invariants: only categories of ours are touched, named after our VM folder, for two installations may share a vCenter;
names are made of our ids alone; a tenant's tag goes when nothing of it is there any more.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from provisioners.driver import DriverError, Ref
from provisioners.vsphere.client import MoRef
from provisioners.vsphere.failures import fault_of
from provisioners.vsphere.rest import RestClient

CATEGORY: Final = "/cis/tagging/category"
TAG: Final = "/cis/tagging/tag"
ASSOCIATION: Final = "/cis/tagging/tag-association"
AGAIN_S: Final = 600.0
"""How long tags are taken as we left them: others may take them off."""
KINDS: Final = ("VirtualMachine", "Folder", "ResourcePool", "DistributedVirtualPortgroup")
"""Kinds of objects that carry tags of ours."""

Owned = tuple[tuple[MoRef, Ref], ...]
"""Objects of ours, and whose each is."""
_Wanted = dict[tuple[str, str], frozenset[MoRef]]


def names_of(root: str) -> tuple[str, str]:
    """Return the names of our two categories: of tenants, and of kinds."""
    return f"{root}-tenant", f"{root}-kind"


def wanted(root: str, owned: Owned) -> _Wanted:
    """Return (category, tag) → the objects that should carry it; pure."""
    of_tenants, of_kinds = names_of(root)
    found: dict[tuple[str, str], set[MoRef]] = defaultdict(set)
    for ref, whose in owned:
        found[of_tenants, str(whose.tenant_uid)].add(ref)
        found[of_kinds, str(whose.kind)].add(ref)
    return {key: frozenset(refs) for key, refs in found.items()}


class Tagger:
    """The tags of one installation in one vCenter. Thread-safe."""

    def __init__(self, rest: RestClient, root: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Tag through `rest`; `root` is the name of our VM folder."""
        self._rest, self._root, self._clock = rest, root, clock
        self._lock = threading.Lock()
        self._kept: tuple[float, _Wanted] | None = None

    def keep(self, owned: Owned) -> str:
        """Bring the tags in line with what is there; return why that could not be done, `""` where it was."""
        want = wanted(self._root, owned)
        with self._lock:
            if self._kept is not None and self._kept[1] == want and self._clock() - self._kept[0] < AGAIN_S:
                return ""
            try:
                self._bring(want)
            except DriverError as error:
                self._kept = None
                return error.detail
            self._kept = (self._clock(), want)
            return ""

    def _bring(self, want: _Wanted) -> None:
        have = {name: self._category(name, make=bool(want)) for name in names_of(self._root)}
        tags = {
            (name, tag): found for name, category in have.items() if category for tag, found in self._tags(category)
        }
        for key in want:
            if key not in tags:
                tags[key] = self._made(key[1], have[key[0]])
        attached = self._attached(tags.values())
        for key, refs in sorted(want.items()):
            if missing := sorted(refs - attached.get(tags[key], frozenset())):
                objects = [{"type": ref.kind, "id": ref.id} for ref in missing]
                self._rest.post(
                    f"{ASSOCIATION}/id:{tags[key]}", {"object_ids": objects}, action="attach-tag-to-multiple-objects"
                )
        for key, tag in tags.items():
            if key not in want:
                self._rest.delete(f"{TAG}/id:{tag}")

    def _category(self, name: str, *, make: bool) -> str:
        """Return the id of a category of ours; `""` where there is none and none is to be made."""
        for found in self._rest.get(CATEGORY) or ():
            told = self._rest.get(f"{CATEGORY}/id:{found}")
            if isinstance(told, Mapping) and told.get("name") == name:
                return str(found)
        if not make:
            return ""
        spec = {
            "name": name,
            "description": "Set by Tenantry; do not edit",
            "cardinality": "SINGLE",
            "associable_types": list(KINDS),
        }
        return str(self._rest.post(CATEGORY, {"create_spec": spec}))

    def _tags(self, category: str) -> list[tuple[str, str]]:
        """Return (name, id) of every tag of a category."""
        found = []
        for tag in self._rest.post(f"{TAG}/id:{category}", action="list-tags-for-category") or ():
            told = self._rest.get(f"{TAG}/id:{tag}")
            if isinstance(told, Mapping):
                found.append((str(told.get("name", "")), str(tag)))
        return found

    def _made(self, name: str, category: str) -> str:
        spec = {"name": name, "description": "Set by Tenantry; do not edit", "category_id": category}
        try:
            return str(self._rest.post(TAG, {"create_spec": spec}))
        except DriverError as error:
            if fault_of(error) != "AlreadyExists":
                raise
            return dict(self._tags(category))[name]  # another worker was faster

    def _attached(self, tags: Iterable[str]) -> dict[str, frozenset[MoRef]]:
        """Return which objects carry each tag, in one call."""
        asked = sorted(tags)
        if not asked:
            return {}
        told = self._rest.post(ASSOCIATION, {"tag_ids": asked}, action="list-attached-objects-on-tags")
        return {str(one["tag_id"]): frozenset(_objects(one)) for one in told or () if isinstance(one, Mapping)}


def _objects(told: Mapping[str, Any]) -> Iterable[MoRef]:
    for one in told.get("object_ids") or ():
        yield MoRef(str(one.get("type", "")), str(one.get("id", "")))
