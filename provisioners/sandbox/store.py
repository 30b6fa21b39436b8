"""The sandbox's SQLite file: every record of every estate as one row, written before any answer goes out.

A server that is killed finds all it had acknowledged, with tasks going on by the clock. Nothing secret is
in here: tokens never become records.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from provisioners.sandbox.state import Row

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS estate (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS record (
    estate TEXT NOT NULL REFERENCES estate (name) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (estate, kind, key)
) WITHOUT ROWID;
"""


class Store:
    """One file; use from one thread."""

    def __init__(self, path: Path | None, *, power_safe: bool = True) -> None:
        """Open or make the file at `path` (None: in memory, gone with the process).

        `power_safe=False` survives a killed process but not a machine that loses power; for test runs.
        """
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if power_safe else 'OFF'}")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.executescript(_TABLES)
        if path is not None:
            path.chmod(0o600)

    def estates(self) -> list[str]:
        """Return the names of all estates."""
        return [name for (name,) in self._connection.execute("SELECT name FROM estate ORDER BY name")]

    def rows(self, estate: str) -> Iterable[tuple[str, str, dict[str, Any]]]:
        """Yield (table, key, record as JSON types) of one estate."""
        found = self._connection.execute("SELECT kind, key, value FROM record WHERE estate = ?", (estate,))
        for kind, key, value in found:
            yield kind, key, json.loads(value)

    def save(self, estate: str, changes: Mapping[Row, Mapping[str, Any] | None]) -> None:
        """Write changed records (None: removed) in one transaction; back only when they are durable."""
        if not changes:
            return
        written = [
            (estate, kind, key, json.dumps(value, separators=(",", ":")))
            for (kind, key), value in changes.items()
            if value is not None
        ]
        removed = [(estate, kind, key) for (kind, key), value in changes.items() if value is None]
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._connection.execute("INSERT OR IGNORE INTO estate (name) VALUES (?)", (estate,))
            self._connection.executemany(
                "INSERT INTO record (estate, kind, key, value) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (estate, kind, key) DO UPDATE SET value = excluded.value",
                written,
            )
            self._connection.executemany("DELETE FROM record WHERE estate = ? AND kind = ? AND key = ?", removed)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def remove(self, estate: str) -> None:
        """Remove an estate with all its records."""
        self._connection.execute("DELETE FROM estate WHERE name = ?", (estate,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
