"""Who is next among backends of different weights: smooth weighted round robin. Pure but for its memory.

Each turn everybody gains his weight, the richest is chosen and pays the sum of all. Over one round (the sum of the
weights, divided by what they have in common) everybody is chosen exactly by his share, and as evenly spread as can be:
a canary of 10 % gets every tenth request, not ten of a hundred in a row. The way is nginx's (`ngx_http_upstream_
round_robin.c`); nothing is drawn by lot, so the same requests give the same choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from provisioners.gateway.protocol import Backend

Key = tuple[UUID, str, int]


def key_of(backend: Backend) -> Key:
    """Return what a backend is known by here: one that serves another revision now begins anew."""
    return backend.unit_uid, backend.url, backend.revision


@dataclass(slots=True)
class Turns:
    """The turns of one endpoint's backends."""

    _credit: dict[Key, int] = field(default_factory=dict)

    def choose(self, among: Sequence[Backend]) -> Backend:
        """Return who is next of `among` (at least one, all of a weight above 0); others keep what they have."""
        total = sum(backend.weight for backend in among)
        for backend in among:
            key = key_of(backend)
            self._credit[key] = self._credit.get(key, 0) + backend.weight
        chosen = max(among, key=lambda backend: self._credit[key_of(backend)])  # the first of those that are equal
        self._credit[key_of(chosen)] -= total
        return chosen

    def keep_only(self, backends: Sequence[Backend]) -> None:
        """Forget those that are gone; who comes or changes his weight starts without credit, and nobody floods him."""
        named = {key_of(backend) for backend in backends}
        self._credit = {key: credit for key, credit in self._credit.items() if key in named}
