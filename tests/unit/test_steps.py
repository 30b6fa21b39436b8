"""The registry of steps: names, order, words, keys."""

from __future__ import annotations

from uuid import UUID

import pytest

from provisioners import steps
from provisioners.driver import Kind, Ref

REF = Ref(Kind.ENDPOINT, UUID(int=1), UUID(int=2))


def test_every_step_has_words_both_ways_a_limit_and_a_kind() -> None:
    for name, entry in steps.REGISTRY.items():
        assert entry.name == name
        assert entry.words
        assert entry.undo_words
        assert entry.limit_s > 0
        assert entry.kinds


def test_a_name_splits_into_its_registry_name_and_unit() -> None:
    assert steps.split("vm.power[12]") == ("vm.power", 12)
    assert steps.split("vm.power") == ("vm.power", None)
    assert steps.indexed("serving.replica", 3) == "serving.replica[3]"
    assert steps.definition("serving.replica[3]").indexed


@pytest.mark.parametrize("name", ["vm.fly", "vm.power[x]", "vm.power[1", "", "VM.power", "vm.power[1]x"])
def test_a_name_that_is_in_no_registry_is_a_lookup_error(name: str) -> None:
    with pytest.raises(LookupError, match="no step is called"):
        steps.split(name)


def test_order_goes_unit_by_unit_with_shared_steps_first_and_the_service_last() -> None:
    mixed = [
        "serving.service",
        "serving.replica[10]",
        "vm.clone[2]",
        "vm.power[2]",
        "serving.replica[2]",
        "serving.secret",
    ]

    assert steps.in_order(mixed) == [
        "serving.secret",
        "vm.clone[2]",
        "vm.power[2]",
        "serving.replica[2]",
        "serving.replica[10]",
        "serving.service",
    ]


def test_words_count_units_from_one() -> None:
    assert steps.words("vm.clone[0]") == "Cloning the machine (unit 1)"
    assert steps.words("vm.clone[0]", undo=True) == "Destroying the machine (unit 1)"
    assert steps.words("namespace.create") == "Creating the namespace"


def test_equal_wants_give_equal_keys_and_other_wants_other_keys() -> None:
    first = steps.make(REF, "serving.service", {"a": 1, "b": 2}, None)
    same = steps.make(REF, "serving.service", {"b": 2, "a": 1}, {"payload": "is no part of it"})
    other = steps.make(REF, "serving.service", {"a": 2, "b": 2}, None)

    assert first.key == same.key == f"{REF.uid}:serving.service:{first.want}"
    assert other.key != first.key
    assert first.limit_s == steps.definition("serving.service").limit_s
