"""Fixtures: PostgreSQL with real commits, a clock, factories' actors, the ledger audit after each test."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from controlplane.embedded.postgres import EmbeddedPostgres, Probe
from tests import environment

ROOT = Path(__file__).resolve().parent.parent
NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def template_name() -> str:
    """Return the template database's name: a new one whenever a migration changes."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "tenants" / "migrations").rglob("*")):
        if path.suffix in {".py", ".sql"}:
            digest.update(path.read_bytes())
    return f"template_{digest.hexdigest()[:12]}"


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock that orders starting, stopping and making databases on the test server."""
    environment.STATE.mkdir(parents=True, exist_ok=True)
    with (environment.STATE / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Drop databases of processes that are gone; stop the server with the last run."""
    if hasattr(session.config, "workerinput") or not environment.STATE.exists():
        return
    with locked():
        server = EmbeddedPostgres(environment.STATE, profile="test")
        if server.server() is None:
            return
        with server.connect() as connection:
            names = [row[0] for row in connection.execute("SELECT datname FROM pg_database WHERE datname ~ '^test_'")]
        others = 0
        for name in names:
            pid = int(name.split("_")[1]) if name.split("_")[1].isdigit() else 0
            if pid != os.getpid() and is_alive(pid):
                others += 1
            else:
                server.drop_database(name)
        if not others and os.environ.get("TENANTRY_TEST_KEEP") != "1":
            server.stop("immediate")


@pytest.fixture(scope="session")
def postgres() -> EmbeddedPostgres:
    """Start (or find) the test server and make sure that the migrated template is there."""
    server = EmbeddedPostgres(environment.STATE, profile="test")
    with locked():
        if server.probe() is not Probe.ACCEPTING:
            # Started by a process that ends at once: the server is nobody's child and outlives this run if need be.
            starter = (
                "from tests import environment as e; from controlplane.embedded.postgres import EmbeddedPostgres as P"
            )
            subprocess.run(
                [sys.executable, "-c", f"{starter}; P(e.STATE, profile='test').start(); import os; os._exit(0)"],
                check=True,
                cwd=ROOT,
            )
        template = template_name()
        if not server.has_database(template):
            building = f"building_{template}"
            if server.has_database(building):
                server.drop_database(building)
            server.create_database(building)
            subprocess.run(
                [sys.executable, "-m", "controlplane", "migrate", "-v", "0"],
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
                    sql.SQL("ALTER DATABASE {} RENAME TO {}").format(sql.Identifier(building), sql.Identifier(template))
                )
    return server


@pytest.fixture(scope="session")
def test_database(postgres: EmbeddedPostgres) -> str:
    """Clone the template for this worker; return its name."""
    with locked():
        postgres.create_database(environment.DATABASE, template=template_name())
    return environment.DATABASE


@pytest.fixture(scope="session")
def superuser(test_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Open a superuser connection to the test database: for cleaning and for what nobody else may do."""
    with psycopg.connect(environment.dsn("postgres", test_database), autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def _cleaner(superuser: psycopg.Connection[Any]) -> str:
    tables = superuser.execute(
        "SELECT string_agg(format('DELETE FROM %I;', relname), ' ') FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'django_migrations' "
        "AND relname NOT IN ('django_content_type', 'auth_permission')"
    ).fetchone()
    assert tables is not None
    return f"BEGIN; SET LOCAL session_replication_role = replica; {tables[0]} COMMIT;"


@pytest.fixture(scope="session", autouse=True)
def _static_files_are_looked_up() -> None:
    """Spare each test client the walk over all static files with which a web process begins."""
    from django.conf import settings

    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture
def db(
    superuser: psycopg.Connection[Any], _cleaner: str, django_db_blocker: Any, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Give a test the database with real commits; check the ledger and empty the tables afterwards."""
    from django.db import connections

    with django_db_blocker.unblock():
        try:
            yield
            if "no_audit" not in request.keywords:
                from tenants import audit

                assert audit.findings() == []
        finally:
            connections.close_all()
            superuser.execute(_cleaner)


@pytest.fixture
def now() -> datetime:
    """A fixed moment; operations take it, nothing reads the clock."""
    return NOW
