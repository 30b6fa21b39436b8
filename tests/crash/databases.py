"""A PostgreSQL of its own for one run of the table, and databases cloned by TEMPLATE in it.

Nothing is connected to a template while it is copied: whoever prepares one does so in a child that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from controlplane.embedded.postgres import EmbeddedPostgres

ROOT = Path(__file__).resolve().parents[2]
BASE = "crash_base"
"""The migrated database that everything is copied from."""


class Databases:
    """One server in a folder; `connect` once per process that makes clones."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which must stay until `stop`."""
        self.server = EmbeddedPostgres(folder, profile="test")
        self._link: psycopg.Connection[Any] | None = None
        self._pid = 0
        self._dustbin: Any = None

    def start(self) -> Self:
        """Start the server and migrate the base."""
        self.server.start()
        with self.server.connect() as link:
            # Hundreds of databases that live for a second: a worker would be started for one of them all the time.
            link.execute("ALTER SYSTEM SET autovacuum = off")
            link.execute("SELECT pg_reload_conf()")
        self.server.create_database(BASE)
        subprocess.run(
            [sys.executable, "-m", "controlplane", "migrate", "-v", "0", "--skip-checks"],
            check=True,
            cwd=ROOT,
            env={**os.environ, "TENANTRY_PROCESS": "owner", "DATABASE_OWNER_URL": self.server.dsn("cp_owner", BASE)},
        )
        return self

    def stop(self) -> None:
        """End the server; its folder is the caller's."""
        if self._link is not None and self._pid == os.getpid():
            self._link.close()
        self.server.stop("immediate")

    def clone(self, name: str, *, template: str) -> str:
        """Make `name` a copy of `template`, owned like it; return `name`."""
        self._execute("CREATE DATABASE {} OWNER cp_owner TEMPLATE {} STRATEGY FILE_COPY", name, template)
        return name

    def drop(self, name: str) -> None:
        """Drop a database and end its sessions."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def drop_later(self, name: str) -> None:
        """Let the janitor drop a database, if there is one: waiting for its sessions' end takes a tenth of a point."""
        if self._dustbin is None:
            self.drop(name)
        else:
            self._dustbin.put(name)

    @contextmanager
    def janitor(self) -> Iterator[None]:
        """Have a process that drops what `drop_later` of this process, and of those that it forks, names."""
        context = multiprocessing.get_context("fork")
        self._dustbin = context.SimpleQueue()
        janitor = context.Process(target=self._empty, args=(self._dustbin,))
        janitor.start()
        try:
            yield
        finally:
            self._dustbin.put(None)
            janitor.join()
            self._dustbin = None
        if janitor.exitcode != 0:
            msg = f"the janitor ended with {janitor.exitcode}"
            raise AssertionError(msg)

    def _empty(self, dustbin: Any) -> None:
        while (name := dustbin.get()) is not None:
            self.drop(name)

    def _execute(self, statement: str, *names: str) -> None:
        if self._link is None or self._pid != os.getpid():
            # A link that came with a fork belongs to the parent: never closed here, or its session would end.
            self._inherited = self._link
            self._link, self._pid = self.server.connect(), os.getpid()
        self._link.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))
