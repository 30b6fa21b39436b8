"""Fixtures: PostgreSQL with real commits, a clock, factories' actors, the ledger audit after each test."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from controlplane.embedded.postgres import EmbeddedPostgres
from tests import environment, template

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
_MAKER = pytest.StashKey[subprocess.Popen[bytes]]()


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def pytest_sessionstart(session: pytest.Session) -> None:
    """With several workers, make the template while they start and collect."""
    if not hasattr(session.config, "workerinput") and getattr(session.config.option, "dist", "no") != "no":
        # whoever needs it first waits for it
        session.config.stash[_MAKER] = subprocess.Popen([sys.executable, "-m", "tests.template"], cwd=template.ROOT)


def pytest_collection_finish() -> None:
    """Look at what is loaded by now in no collection of garbage any more: a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Drop databases of processes that are gone; stop the server with the last run."""
    if hasattr(session.config, "workerinput") or not environment.STATE.exists():
        return
    if _MAKER in session.config.stash:
        session.config.stash[_MAKER].wait()
    with template.locked():
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
    return template.prepared()


@pytest.fixture(scope="session")
def test_database(postgres: EmbeddedPostgres) -> str:
    """Clone the template for this worker; return its name."""
    with template.locked():
        postgres.create_database(environment.DATABASE, template=template.template_name())
    return environment.DATABASE


@pytest.fixture(scope="session")
def superuser(test_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Open a superuser connection to the test database: for cleaning and for what nobody else may do."""
    with psycopg.connect(environment.dsn("postgres", test_database), autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def _cleaner(superuser: psycopg.Connection[Any]) -> str:
    """Make the function that empties the tables; its statements are planned once for all tests."""
    tables = superuser.execute(
        "SELECT string_agg(format('DELETE FROM %I;', relname), ' ') FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'django_migrations' "
        "AND relname NOT IN ('django_content_type', 'auth_permission')"
    ).fetchone()
    assert tables is not None
    superuser.execute(
        "CREATE OR REPLACE FUNCTION pg_temp.empty_tables() RETURNS void LANGUAGE plpgsql "
        f"SET search_path = public SET session_replication_role = replica AS $$ BEGIN {tables[0]} END $$"
    )
    return "SELECT pg_temp.empty_tables()"


@pytest.fixture(scope="session")
def _auditor(superuser: psycopg.Connection[Any]) -> str:
    """Make the function that says whether the audit has to look closer; its queries are planned once for all tests."""
    from tenants import audit

    checks = "".join(f"IF EXISTS ({query}) THEN RETURN true; END IF; " for query in audit.CHECKS.values())
    superuser.execute(
        "CREATE OR REPLACE FUNCTION pg_temp.is_suspect() RETURNS bool LANGUAGE plpgsql SET search_path = public "
        f"AS $$ BEGIN {checks} RETURN EXISTS (SELECT 1 FROM tenants_usagerollup); END $$"
    )
    return "SELECT pg_temp.is_suspect()"


@pytest.fixture(scope="session", autouse=True)
def _static_files_are_looked_up() -> None:
    """Spare each test client the walk over all static files with which a web process begins."""
    from django.conf import settings

    settings.WHITENOISE_AUTOREFRESH = True


@pytest.fixture
def db(
    superuser: psycopg.Connection[Any],
    _cleaner: str,
    _auditor: str,
    django_db_blocker: Any,
    request: pytest.FixtureRequest,
) -> Iterator[None]:
    """Give a test the database with real commits; check the ledger and empty the tables afterwards."""
    from django.db import connections

    with django_db_blocker.unblock():
        try:
            yield
            if "no_audit" not in request.keywords and superuser.execute(_auditor).fetchone() != (False,):
                from tenants import audit

                assert audit.findings() == []
        finally:
            _keep_or_close(connections["default"])
            superuser.execute(_cleaner)


def _keep_or_close(connection: Any) -> None:
    """Keep a connection that is as good as new for the next test: opening one and warming it up costs 10 ms."""
    raw = connection.connection
    if raw is None:
        return
    idle = not raw.closed and raw.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    if idle and connection.autocommit and connection.is_usable() and not connection.in_atomic_block:
        return
    connection.close()


@pytest.fixture
def now() -> datetime:
    """A fixed moment; operations take it, nothing reads the clock."""
    return NOW
