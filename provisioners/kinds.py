"""The only list of kinds that passes drive, in the order in which a sweep takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from provisioners import allocation, boundary, endpoint, machine, namespace
from provisioners.passes import Kind

PASSES: Final[Mapping[str, Kind]] = {
    kind.word: kind for kind in (boundary.PASS, endpoint.PASS, machine.PASS, namespace.PASS, allocation.PASS)
}
