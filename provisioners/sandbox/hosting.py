"""All estates of one sandbox server: made, found, saved, removed. Between the HTTP layer and the cores."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from provisioners.sandbox import files
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.state import state_from_rows
from provisioners.sandbox.store import Store

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class UnknownEstate(LookupError):
    """No estate has this name."""


class Hosting:
    """The estates of one server, each saved whenever it was used."""

    def __init__(self, store: Store, *, url: str, clock: Callable[[], float] = time.time) -> None:
        """Load every estate of `store`; `url` is the server's own base URL."""
        self._store = store
        self._url = url.rstrip("/")
        self._clock = clock
        self._estates = {name: self._open(name) for name in store.estates()}

    def _open(self, name: str) -> Estate:
        return Estate(state_from_rows(self._store.rows(name)), clock=self._clock, url=f"{self._url}/estates/{name}")

    def names(self) -> list[str]:
        """Return the names of all estates."""
        return sorted(self._estates)

    def create(self, name: str, document: Mapping[str, Any]) -> bool:
        """Make an estate from its document; False if there is one of that name, which stays as it is.

        Raises `files.BadEstate`.
        """
        if not _NAME.fullmatch(name):
            msg = "an estate's name is a DNS label"
            raise files.BadEstate(msg)
        if name in self._estates:
            return False
        estate = Estate(files.build(document), clock=self._clock, url=f"{self._url}/estates/{name}")
        self._store.save(name, estate.state.take_changes())
        self._estates[name] = estate
        return True

    def adopt(self, name: str, rows: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
        """Take an estate that was played elsewhere, record by record, in place of one of that name.

        Raises `files.BadEstate` for records that make no estate; nothing is changed then.
        """
        if not _NAME.fullmatch(name):
            msg = "an estate's name is a DNS label"
            raise files.BadEstate(msg)
        records = list(rows)
        try:
            state_from_rows(records)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"these records make no estate: {error!r}"
            raise files.BadEstate(msg) from error
        self._store.remove(name)
        self._store.save(name, {(table, key): row for table, key, row in records})
        self._estates[name] = self._open(name)

    def remove(self, name: str) -> None:
        """Remove an estate with all that is in it; its gateways must be stopped before. Raises `UnknownEstate`."""
        self.find(name)
        del self._estates[name]
        self._store.remove(name)

    def find(self, name: str) -> Estate:
        """Return an estate to look at. Raises `UnknownEstate`."""
        found = self._estates.get(name)
        if found is None:
            msg = f"no estate is called {name!r}"
            raise UnknownEstate(msg)
        return found

    @contextmanager
    def using(self, name: str) -> Iterator[Estate]:
        """Give an estate to call; all that the calls changed is durable on the way out, error or not."""
        estate = self.find(name)
        try:
            yield estate
        finally:
            self._store.save(name, estate.state.take_changes())

    def close(self) -> None:
        """Close the store."""
        self._store.close()


def open_hosting(path: Path | None, *, url: str, power_safe: bool = True) -> Hosting:
    """Return the estates kept in the file at `path`, or new ones in memory."""
    return Hosting(Store(path, power_safe=power_safe), url=url)
