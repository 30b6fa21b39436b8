"""A PostgreSQL with production settings and a migrated database, for one bench."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.embedded.postgres import EmbeddedPostgres
from tests import environment

ROOT = Path(__file__).resolve().parents[2]


def environ(server: EmbeddedPostgres, database: str, process: str) -> dict[str, str]:
    """Return the environment of one process on a bench database."""
    return {
        **os.environ,
        **environment.ENVIRONMENT,
        "TENANTRY_PROCESS": process,
        "DATABASE_URL": server.dsn("cp_app", database),
        "DATABASE_WORKER_URL": server.dsn("cp_worker", database),
        "DATABASE_OWNER_URL": server.dsn("cp_owner", database),
    }


@contextmanager
def server() -> Iterator[EmbeddedPostgres]:
    """Start a server of its own with production settings (fsync, synchronous commit); stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="tenantry-bench-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        made = EmbeddedPostgres(Path(folder), profile="production")
        made.start()
        try:
            yield made
        finally:
            made.stop("fast")


def migrated(made: EmbeddedPostgres, database: str) -> None:
    """Make a database and migrate it."""
    made.create_database(database)
    subprocess.run(
        [sys.executable, "-m", "controlplane", "migrate", "-v", "0"],
        check=True,
        cwd=ROOT,
        env=environ(made, database, "owner"),
    )


def enter(made: EmbeddedPostgres, database: str, *, superuser: bool = False) -> None:
    """Make this process a worker on a bench database; with `superuser`, one that may take every role, as tests do."""
    values = environ(made, database, "worker")
    if superuser:
        values["DATABASE_WORKER_URL"] = (
            made.dsn("postgres", database) + "&options=-c%20role%3Dcp_worker%20-c%20app.actor%3Dsystem"
        )
    os.environ.update(values)
    import django

    django.setup()
