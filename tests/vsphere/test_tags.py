"""Tags where the lab's vCenter never goes: refusals in an answer of success, races, and how much is asked. A stub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from provisioners.driver import Kind, Ref
from provisioners.vsphere import tags
from provisioners.vsphere.client import MoRef
from provisioners.vsphere.failures import error_of
from provisioners.vsphere.tags import ASSOCIATION, CATEGORY, TAG, Tagger, names_of

VM = MoRef("VirtualMachine", "vm-1")


class Store:
    """The tags of a vCenter, as a REST client gives them."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {CATEGORY: {}, TAG: {}}
        self.attached: dict[str, set[str]] = {}
        self.answer: object = {"success": True}
        self.before_create: Callable[[str, str], None] = lambda _path, _name: None
        self.asked: Counter[str] = Counter()

    def get(self, path: str) -> Any:
        self.asked[path.partition("/id:")[0]] += "/id:" in path
        kind, _, found = path.partition("/id:")
        if not found:
            return list(self.there[kind])
        if found not in self.there[kind]:
            raise error_of("ManagedObjectNotFound")
        return self.there[kind][found]

    def post(self, path: str, body: Any = None, *, action: str = "") -> Any:
        kind, _, found = path.partition("/id:")
        if action == "list-tags-for-category":
            return [each for each, told in self.there[TAG].items() if told["category_id"] == found]
        if action == "list-attached-objects-on-tags":
            return [
                {"tag_id": tag, "object_ids": [{"type": "VirtualMachine", "id": one} for one in self.attached[tag]]}
                for tag in body["tag_ids"]
            ]
        if kind == ASSOCIATION:
            self.attached[found] |= {one["id"] for one in body["object_ids"]}
            return self.answer
        return self.create(path, body["create_spec"])

    def create(self, path: str, spec: dict[str, Any]) -> str:
        self.before_create(path, spec["name"])
        if any(
            (told["name"], told.get("category_id")) == (spec["name"], spec.get("category_id"))
            for told in self.there[path].values()
        ):
            raise error_of("AlreadyExists")
        made = str(uuid4())
        self.there[path][made] = spec
        self.attached[made] = set()
        return made

    def delete(self, path: str) -> None:
        kind, _, found = path.partition("/id:")
        del self.there[kind][found]

    def names(self) -> set[str]:
        return {told["name"] for told in self.there[TAG].values()}


def owned(tenant: int, ref: MoRef = VM) -> tags.Owned:
    return ((ref, Ref(Kind.MACHINE, UUID(int=1), UUID(int=tenant))),)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def tagger(store: Store) -> Tagger:
    return Tagger(store, names_of("ours", "DC0"))


def test_two_datacenters_of_one_vcenter_leave_each_others_tags_alone(store, tagger):
    other = Tagger(store, names_of("ours", "DC1"))

    assert tagger.keep(owned(1)) == other.keep(owned(2)) == tagger.keep(owned(3)) == ""
    assert store.names() == {str(UUID(int=2)), str(UUID(int=3)), "machine"}


def test_each_category_and_tag_is_asked_for_once(store, tagger):
    for number in range(5):
        category = store.create(CATEGORY, {"name": f"theirs-{number}"})
        store.create(TAG, {"name": "theirs", "category_id": category})
    tagger.keep(owned(1))
    store.asked.clear()

    tagger.keep((*owned(1), *owned(2)))
    tagger.keep((*owned(1), *owned(2), *owned(3)))

    assert store.asked[CATEGORY] == 2  # our own, made at the first call
    assert store.asked[TAG] == 3  # those that were made before each


def test_objects_that_vcenter_does_not_tag_are_a_gap_until_it_does(store, tagger):
    store.answer = {"success": False, "error_messages": [{"id": "x", "default_message": "object vm-1 is locked"}]}

    assert tagger.keep(owned(1)) == "object vm-1 is locked"
    for attached in store.attached.values():
        attached.clear()
    store.answer = {"success": True}
    assert tagger.keep(owned(1)) == ""
    assert {"vm-1"} in store.attached.values()


@pytest.mark.parametrize("path", [CATEGORY, TAG])
def test_what_another_worker_made_meanwhile_is_taken(store, tagger, path):
    def faster(where: str, name: str) -> None:
        if where == path:
            store.before_create = lambda _path, _name: None
            category = next((key for key, told in store.there[CATEGORY].items() if told["name"].endswith("tenant")), "")
            store.create(path, {"name": name} | ({"category_id": category} if path == TAG else {}))

    store.before_create = faster

    assert tagger.keep(owned(1)) == ""
    assert len(store.there[CATEGORY]) == len(store.there[TAG]) == 2


def test_a_tag_that_was_made_and_deleted_meanwhile_is_a_gap_for_once(store, tagger):
    def gone(path: str, _name: str) -> None:
        if path == TAG:
            store.before_create = lambda _path, _name: None
            raise error_of("AlreadyExists")

    store.before_create = gone

    assert "by somebody else" in tagger.keep(owned(1))
    assert tagger.keep(owned(1)) == ""


def test_what_goes_between_its_listing_and_its_reading_is_left_out(store, tagger):
    store.create(CATEGORY, {"name": "theirs"})
    read = store.get

    def get(path: str) -> Any:
        if path.startswith(f"{CATEGORY}/id:"):
            store.there[CATEGORY].pop(path.partition("/id:")[2], None)
            store.get = read
        return read(path)

    store.get = get

    assert tagger.keep(owned(1)) == ""
