"""The migrated database that each test process copies: made once per state of the migrations.

`python -m tests.template` makes it ahead of time. Everything here happens under one lock, so whoever comes
second waits and finds it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psycopg import sql

from controlplane.embedded.postgres import EmbeddedPostgres, Probe
from tests import environment

ROOT = Path(__file__).resolve().parent.parent


def template_name() -> str:
    """Return the template database's name: a new one whenever a migration changes."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "tenants" / "migrations").rglob("*")):
        if path.suffix in {".py", ".sql"}:
            digest.update(path.read_bytes())
    return f"template_{digest.hexdigest()[:12]}"


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock that orders starting, stopping and making databases on the test server."""
    environment.STATE.mkdir(parents=True, exist_ok=True)
    with (environment.STATE / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepared() -> EmbeddedPostgres:
    """Return the running test server, started if need be, with the template in it."""
    server = EmbeddedPostgres(environment.STATE, profile="test")
    with locked():
        if server.probe() is not Probe.ACCEPTING:
            _start()
        name = template_name()
        if not server.has_database(name):
            _build(server, name)
    return server


def _start() -> None:
    """Start the server from a process that ends at once: it is nobody's child and outlives this run if need be."""
    starter = "from tests import environment as e; from controlplane.embedded.postgres import EmbeddedPostgres as P"
    subprocess.run(
        [sys.executable, "-c", f"{starter}; P(e.STATE, profile='test').start(); import os; os._exit(0)"],
        check=True,
        cwd=ROOT,
    )


def _build(server: EmbeddedPostgres, name: str) -> None:
    building = f"building_{name}"
    if server.has_database(building):
        server.drop_database(building)
    server.create_database(building)
    subprocess.run(
        [sys.executable, "-m", "controlplane", "migrate", "-v", "0", "--skip-checks"],
        check=True,
        cwd=ROOT,
        env={
            **os.environ,
            "TENANTRY_PROCESS": "owner",
            "DATABASE_OWNER_URL": environment.dsn("cp_owner", building),
        },
    )
    with server.connect() as connection:
        connection.autocommit = True
        connection.execute(
            sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(building), sql.Identifier(name))
        )


if __name__ == "__main__":
    prepared()
