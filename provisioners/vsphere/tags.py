"""Tags of vCenter's own on what is ours: whose tenant it is, and what kind of thing.

Custom attributes say what is ours; tags are for what vCenter itself does by them: compute policies, its search,
security groups of NSX, backups. So nothing here is read to decide anything, and no machine waits for it: a snapshot
brings what it saw in line with the tags, in a few calls when something has changed and none otherwise.

Invariants: only categories of ours are touched, named after our datacenter and VM folder, for two installations or two
providers of one may share a vCenter; names are made of our ids alone; a tenant's tag goes when nothing of it is there
any more.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from provisioners.driver import DriverError, Ref, TransientDriverError
from provisioners.vsphere.client import MoRef
from provisioners.vsphere.failures import fault_of
from provisioners.vsphere.rest import RestClient, message_of

CATEGORY: Final = "/cis/tagging/category"
TAG: Final = "/cis/tagging/tag"
ASSOCIATION: Final = "/cis/tagging/tag-association"
AGAIN_S: Final = 600.0
"""How long tags are taken as we left them: others may take them off."""
KINDS: Final = ("VirtualMachine", "Folder", "ResourcePool", "DistributedVirtualPortgroup")
"""Kinds of objects that carry tags of ours."""

_LONGEST_TEXT: Final = 300

Owned = tuple[tuple[MoRef, Ref], ...]
"""Objects of ours, and whose each is."""
_Wanted = dict[tuple[str, str], frozenset[MoRef]]


def names_of(root: str, datacenter: str) -> tuple[str, str]:
    """Return the names of our two categories: of tenants, and of kinds. `datacenter` is `""` in a vCenter of one."""
    ours = f"{datacenter}-{root}" if datacenter else root
    return f"{ours}-tenant", f"{ours}-kind"


def wanted(names: tuple[str, str], owned: Owned) -> _Wanted:
    """Return (category, tag) → the objects that should carry it; pure. `names` are those of our categories."""
    of_tenants, of_kinds = names
    found: dict[tuple[str, str], set[MoRef]] = defaultdict(set)
    for ref, whose in owned:
        found[of_tenants, str(whose.tenant_uid)].add(ref)
        found[of_kinds, str(whose.kind)].add(ref)
    return {key: frozenset(refs) for key, refs in found.items()}


class Tagger:
    """The tags of one installation in one vCenter. Thread-safe."""

    def __init__(
        self, rest: RestClient, names: tuple[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Tag through `rest`, in categories of these names (`names_of`)."""
        self._rest, self._names, self._clock = rest, names, clock
        self._lock = threading.Lock()
        self._kept: tuple[float, _Wanted] | None = None
        self._known: dict[str, str] = {}
        """Id → name, of every category that was seen and of our tags: none is asked for twice."""

    def keep(self, owned: Owned) -> str:
        """Bring the tags in line with what is there; return why that could not be done, `""` where it was."""
        want = wanted(self._names, owned)
        with self._lock:
            if self._kept is not None and self._kept[1] == want and self._clock() - self._kept[0] < AGAIN_S:
                return ""
            self._kept = None
            try:
                refused = self._bring(want)
            except DriverError as error:
                return error.detail
            if not refused:
                self._kept = (self._clock(), want)
            return refused

    def _bring(self, want: _Wanted) -> str:
        """Return what vCenter says of the objects that it did not tag, `""` where it tagged all."""
        categories = self._categories()
        if want:
            categories |= {name: self._category(name) for name in self._names if name not in categories}
        tags = {(name, tag): id_ for name, found in categories.items() for tag, id_ in self._tags(found).items()}
        for key in want:
            if key not in tags:
                tags[key] = self._made(key[1], categories[key[0]])
        attached = self._attached(tags.values())
        refused: dict[str, None] = {}
        for key, refs in sorted(want.items()):
            if missing := sorted(refs - attached.get(tags[key], frozenset())):
                objects = [{"type": ref.kind, "id": ref.id} for ref in missing]
                told = self._rest.post(
                    f"{ASSOCIATION}/id:{tags[key]}", {"object_ids": objects}, action="attach-tag-to-multiple-objects"
                )
                refused[_refusal(told)] = None
        for key, tag in tags.items():
            if key not in want:
                self._rest.delete(f"{TAG}/id:{tag}")
                self._known.pop(tag, None)
        return "; ".join(filter(None, refused))[:_LONGEST_TEXT]

    def _categories(self) -> dict[str, str]:
        """Return name → id of our categories that are there."""
        found = self._named(CATEGORY, self._rest.get(CATEGORY))
        return {name: found[name] for name in self._names if name in found}

    def _category(self, name: str) -> str:
        """Make a category of ours and return its id."""
        spec = {
            "name": name,
            "description": "Set by Tenantry; do not edit",
            "cardinality": "SINGLE",
            "associable_types": list(KINDS),
        }
        return self._create(CATEGORY, spec, self._categories)

    def _tags(self, category: str) -> dict[str, str]:
        """Return name → id of every tag of a category."""
        return self._named(TAG, self._rest.post(f"{TAG}/id:{category}", action="list-tags-for-category"))

    def _made(self, name: str, category: str) -> str:
        """Make a tag and return its id."""
        spec = {"name": name, "description": "Set by Tenantry; do not edit", "category_id": category}
        return self._create(TAG, spec, lambda: self._tags(category))

    def _create(self, path: str, spec: Mapping[str, Any], there: Callable[[], Mapping[str, str]]) -> str:
        """Make a tag or a category; return the id of what is `there` where another worker was faster."""
        try:
            return str(self._rest.post(path, {"create_spec": spec}))
        except DriverError as error:
            if fault_of(error) != "AlreadyExists":
                raise
            self._known.clear()  # somebody may have renamed one
            found = there().get(spec["name"])
            if found is None:
                raise TransientDriverError("tags are being changed by somebody else too") from error
            return found

    def _named(self, path: str, ids: object) -> dict[str, str]:
        """Return name → id; what has gone since it was listed is left out."""
        found: dict[str, str] = {}
        for each in map(str, ids if isinstance(ids, list) else ()):
            if each not in self._known:
                try:
                    told = self._rest.get(f"{path}/id:{each}")
                except DriverError as error:
                    if fault_of(error) != "ManagedObjectNotFound":
                        raise
                    continue
                self._known[each] = str(told.get("name", "")) if isinstance(told, Mapping) else ""
            found[self._known[each]] = each
        return found

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


def _refusal(told: object) -> str:
    """Return why some of many objects were not tagged: such an answer is a success by its status."""
    if not isinstance(told, Mapping) or told.get("success") is not False:
        return ""
    return message_of({"messages": told.get("error_messages")}) or "vCenter did not tag everything and gives no reason"
