"""What our objects in vCenter are called and marked, and how a mark is read back. Pure.

Names come from ids of ours only, never from a text of a tenant. A mark is the value of the custom attribute
`MARK_FIELD`; what a step has made true is recorded in `WANTS_FIELD` next to it. A name proves nothing outside a
folder of ours, a mark nothing about the state of what carries it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from uuid import UUID, uuid5

from provisioners.driver import MARK_DOMAIN, Kind, Ref

MARK_FIELD: Final = MARK_DOMAIN
"""Custom attribute with whose an object is."""
WANTS_FIELD: Final = f"{MARK_DOMAIN}/wants"
"""Custom attribute with what the boundary's steps have made true of an object."""
EVACUATED_FIELD: Final = f"{MARK_DOMAIN}/evacuated"
"""Custom attribute of a host on which nothing more of ours is placed, and what was done for that (`hosts.py`)."""
IMAGE_FIELD: Final = f"{MARK_DOMAIN}/image"
"""Custom attribute of a template that an item of a content library was deployed to: the item and its version."""
_MARK: Final = re.compile(
    r"(?P<kind>[a-z]+)/(?P<uid>[0-9a-f-]{36})/(?P<tenant>[0-9a-f-]{36})(?:/(?P<index>0|[1-9][0-9]{0,3}))?"
)
_VM_NAME: Final = re.compile(r"tn-(?P<kind>vm|ep)-(?P<uid>[0-9a-f]{32})(?:-(?P<index>0|[1-9][0-9]{0,3}))?")
_RECORD: Final = re.compile(r"(?P<step>[a-z]+\.[a-z]+)=(?P<want>[0-9a-f]{16}):(?P<seen>[0-9a-f]{16})")


def vm_name(ref: Ref, index: int | None) -> str:
    """Return the name of a VM: a machine has one (`index` None), an endpoint one per unit."""
    return ref.name if index is None else f"{ref.name}-{index}"


def index_in(ref: Ref, name: str) -> int | None:
    """Return the unit's index in a VM's name, None for a machine's. Raises `LookupError` for a name not of `ref`."""
    if name == ref.name:
        return None
    rest = name.removeprefix(f"{ref.name}-")
    if rest == name or not re.fullmatch(r"0|[1-9][0-9]{0,3}", rest):
        msg = f"{name!r} is no VM of {ref.name}"
        raise LookupError(msg)
    return int(rest)


def parse_vm_name(name: str, boundary: Ref) -> tuple[Ref, int | None] | None:
    """Return whose a VM in the folder of `boundary` is by its name alone, as between clone and mark; None otherwise."""
    match = _VM_NAME.fullmatch(name)
    if match is None:
        return None
    kind = Kind.MACHINE if match["kind"] == "vm" else Kind.ENDPOINT
    if (match["index"] is None) is not (kind is Kind.MACHINE):
        return None
    return Ref(kind, UUID(match["uid"]), boundary.tenant_uid), None if match["index"] is None else int(match["index"])


def instance_uuid(ref: Ref, index: int | None) -> str:
    """Return the instance UUID of a VM, by which vCenter finds it; the same at every try."""
    return str(uuid5(ref.uid, f"instance/{'' if index is None else index}"))


def marker(ref: Ref, index: int | None = None) -> str:
    """Return the mark of an object of `ref`; `index` for the VM of a unit."""
    mark = f"{ref.kind.value}/{ref.uid}/{ref.tenant_uid}"
    return mark if index is None else f"{mark}/{index}"


def parse_marker(text: str) -> tuple[Ref, int | None] | None:
    """Return whose a mark says that an object is, None for a text that is no mark of ours."""
    match = _MARK.fullmatch(text)
    if match is None:
        return None
    try:
        ref = Ref(Kind(match["kind"]), UUID(match["uid"]), UUID(match["tenant"]))
    except ValueError:
        return None
    return ref, None if match["index"] is None else int(match["index"])


def wants(records: Mapping[str, tuple[str, str]]) -> str:
    """Return the text of a record: step → (want, hash of what was seen when it was true)."""
    return ";".join(f"{step}={want}:{seen}" for step, (want, seen) in sorted(records.items()))


def parse_wants(text: str) -> dict[str, tuple[str, str]]:
    """Return what a record says; parts that are not ours are left out."""
    found = (_RECORD.fullmatch(part) for part in text.split(";"))
    return {match["step"]: (match["want"], match["seen"]) for match in found if match is not None}
