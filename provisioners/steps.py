"""Every named step of every driver: what it is called, what people read, how long it may take, its order.

The only list of step names. Drivers compose their `Step`s with `make`, so keys and wants are built the
same way everywhere; passes, crash tables and pages look words and limits up here. Pure.

Invariant: a name stands in exactly one order, and that order is the one in which parts are created and
shown; deletion walks it backwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from provisioners.driver import Kind, Ref, Step, intent_hash


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step as the registry knows it."""

    name: str
    words: str
    """What happens, for people: "Creating the namespace"."""
    undo_words: str
    limit_s: int
    """After this long without an end a running step is looked at again."""
    kinds: frozenset[Kind]
    """Kinds of refs that use it."""
    indexed: bool = False
    """True where one step per unit exists; the name then carries `[index]`."""


def _definition(name: str, words: str, undo_words: str, limit_s: int, *kinds: Kind) -> StepDefinition:
    bare = name.removesuffix("[]")
    return StepDefinition(bare, words, undo_words, limit_s, frozenset(kinds), indexed=bare != name)


# Order matters: see the invariant above. `[]` marks one step per unit.
_DEFINITIONS: Final = (
    _definition("namespace.create", "Creating the namespace", "Removing the namespace", 60, Kind.BOUNDARY),
    _definition("namespace.limits", "Setting quota and limits", "Removing quota and limits", 30, Kind.BOUNDARY),
    _definition("namespace.policies", "Closing the network", "Removing network policies", 30, Kind.BOUNDARY),
    _definition("namespace.access", "Granting access", "Withdrawing access", 30, Kind.BOUNDARY),
    _definition("namespace.gateway", "Starting the gateway", "Stopping the gateway", 120, Kind.BOUNDARY),
    _definition("folder.create", "Creating the folder", "Removing the folder", 60, Kind.BOUNDARY),
    _definition("pool.create", "Creating the resource pool", "Removing the resource pool", 60, Kind.BOUNDARY),
    _definition("network.create", "Creating the port group", "Removing the port group", 60, Kind.BOUNDARY),
    _definition("role.grant", "Granting the role", "Withdrawing the role", 30, Kind.BOUNDARY),
    _definition("serving.secret", "Delivering secrets", "Removing secrets", 30, Kind.ENDPOINT),
    _definition("vm.clone[]", "Cloning the machine", "Destroying the machine", 900, Kind.ENDPOINT, Kind.MACHINE),
    _definition("vm.configure[]", "Fitting the machine", "Taking its devices away", 300, Kind.ENDPOINT, Kind.MACHINE),
    _definition("vm.power[]", "Switching the machine's power", "Powering off", 300, Kind.ENDPOINT, Kind.MACHINE),
    _definition("vm.gateway[]", "Starting the machine's gateway", "Stopping the machine's gateway", 120, Kind.ENDPOINT),
    _definition("serving.replica[]", "Starting the model server", "Stopping the model server", 900, Kind.ENDPOINT),
    _definition("serving.service", "Publishing the address", "Withdrawing the address", 30, Kind.ENDPOINT),
    _definition("access.accounts", "Handing out accounts", "Closing accounts", 30, Kind.NAMESPACE),
    _definition("layout.apply", "Carving the GPU", "Clearing the GPU's layout", 3600, Kind.LAYOUT),
)
REGISTRY: Final[Mapping[str, StepDefinition]] = {definition.name: definition for definition in _DEFINITIONS}
_POSITION: Final[Mapping[str, int]] = {definition.name: at for at, definition in enumerate(_DEFINITIONS)}
_NAME: Final = re.compile(r"^(?P<bare>[a-z]+\.[a-z]+)(?:\[(?P<index>\d+)\])?$")


def split(name: str) -> tuple[str, int | None]:
    """Return (registry name, unit index) of a step name: `vm.power[2]` → (`vm.power`, 2).

    Raises `LookupError` for a name that is not in the registry.
    """
    match = _NAME.match(name)
    if match is None or match["bare"] not in REGISTRY:
        msg = f"no step is called {name!r}"
        raise LookupError(msg)
    return match["bare"], None if match["index"] is None else int(match["index"])


def definition(name: str) -> StepDefinition:
    """Return the registry's entry for a step name, with or without an index."""
    return REGISTRY[split(name)[0]]


def indexed(name: str, index: int) -> str:
    """Return the name of the step of one unit: (`vm.power`, 2) → `vm.power[2]`."""
    return f"{name}[{index}]"


def words(name: str, *, undo: bool = False) -> str:
    """Return what a step does in words for people, with the unit's number counted from one."""
    bare, index = split(name)
    entry = REGISTRY[bare]
    text = entry.undo_words if undo else entry.words
    return text if index is None else f"{text} (unit {index + 1})"


def order_of(name: str) -> tuple[int, int, int]:
    """Return the sort key of a step among those of one object: shared first, then by unit, the service last."""
    bare, index = split(name)
    position = _POSITION[bare]
    if index is None:
        return (2 if bare == "serving.service" else 0, 0, position)
    return (1, index, position)


def in_order(names: Iterable[str]) -> list[str]:
    """Return step names in the order in which they are created."""
    return sorted(names, key=order_of)


def make(
    ref: Ref, name: str, want: Mapping[str, object], payload: Any, *, replaces: bool = False, dormant: bool = False
) -> Step:
    """Return the step `name` of `ref` that makes `want` true.

    `want` holds JSON types only and no secrets; equal wants give equal keys, which is what makes a
    repeated start the same start. `payload` is the driver's own.
    """
    digest = intent_hash(want)
    limit_s = definition(name).limit_s
    key = f"{ref.uid}:{name}:{digest}"
    return Step(name, key, digest, limit_s, ref, payload, replaces=replaces, dormant=dormant)
