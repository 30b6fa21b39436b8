"""Names and small values of the contract: kinds, states, refs, secrets, the hash of an intent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

MARK_DOMAIN: Final = "tenantry.internal"
"""Our mark on provider objects: labels `<domain>/uid`, `/tenant`, `/kind` (a custom attribute on vSphere)."""
FIELD_MANAGER: Final = "tenantry"


class Secret:
    """A string that no log, repr, pickle or JSON dump shows; `reveal()` is the only way in."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Wrap `value`."""
        self._value = value

    def reveal(self) -> str:
        """Return the plain text; call it at the very edge only."""
        return self._value

    def __repr__(self) -> str:
        """Show nothing."""
        return "Secret(***)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """Equal to a `Secret` of the same text."""
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        """Hash by digest, so the text is not kept in a dict's debug output."""
        return hash(("Secret", self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled: task arguments must never hold one."""
        msg = "a Secret is never serialised"
        raise TypeError(msg)


class Kind(StrEnum):
    """What a ref can point at on a provider."""

    BOUNDARY = "boundary"
    ENDPOINT = "endpoint"
    MACHINE = "machine"
    NAMESPACE = "namespace"
    LAYOUT = "layout"
    """The MIG layout of one GPU; has no row of ours: `layout_ref` derives the uid from host and device."""


class BoundaryKind(StrEnum):
    """How a boundary isolates; `cluster` is declared and answered with `NotSupported`."""

    VM = "vm"
    NAMESPACE = "namespace"
    CLUSTER = "cluster"


class Binding(StrEnum):
    """Who chooses the device of a window: we (`device`), we the GPU (`gpu`), or only the host (`host`)."""

    DEVICE = "device"
    GPU = "gpu"
    HOST = "host"


class Power(StrEnum):
    """Wanted or seen power of a workload."""

    ON = "on"
    OFF = "off"


class Presence(StrEnum):
    """State of one step's effect on the provider, as seen by an exact read."""

    ABSENT = "absent"
    PRESENT = "present"
    CHANGING = "changing"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ref:
    """Names one object of ours on one provider; everything in it derives from our row."""

    kind: Kind
    uid: UUID
    """Primary key of our row."""
    tenant_uid: UUID

    @property
    def name(self) -> str:
        """DNS-label name on the provider (at most 40 characters), from the id, never from a slug."""
        return f"tn-{_SHORT_KIND[self.kind]}-{self.uid.hex}"


_SHORT_KIND: Final[Mapping[Kind, str]] = {
    Kind.BOUNDARY: "bd",
    Kind.ENDPOINT: "ep",
    Kind.MACHINE: "vm",
    Kind.NAMESPACE: "ns",
    Kind.LAYOUT: "ly",
}


def layout_ref(host: str, device: str) -> Ref:
    """Return the ref of one GPU's MIG layout; it belongs to no tenant (the nil UUID)."""
    return Ref(Kind.LAYOUT, uuid5(NAMESPACE_URL, f"{MARK_DOMAIN}/layout/{host}/{device}"), UUID(int=0))


def machine_uuid(unit: UUID) -> UUID:
    """Return the identity of the virtual machine of a unit: what its firmware shows to the guest (SMBIOS)."""
    return uuid5(NAMESPACE_URL, f"{MARK_DOMAIN}/machine/{unit}")


def intent_hash(value: object) -> str:
    """Return 16 hex digits that stand for `value` (JSON types, dataclass dicts; secrets excluded)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
