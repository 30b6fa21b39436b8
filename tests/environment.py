"""Early plugin (`-p tests.environment`): sets the environment before settings are read.

Every run has its own embedded PostgreSQL folder per user; each parallel worker has its own database.
Outside the transaction helper a test's own queries run as cp_worker with the actor `system`, so that
assertions see everything; inside it the code under test takes its real role.
"""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

STATE = Path(os.environ.get("TENANTRY_TEST_STATE", f"{tempfile.gettempdir()}/tenantry-tests-{os.getuid()}"))
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
DATABASE = f"test_{os.getpid()}_{WORKER}"
"""One per process: runs side by side do not meet."""
SOCKET = STATE / "postgresql" / "socket"


def dsn(role: str, database: str = DATABASE, *, options: str = "") -> str:
    """Return the DSN of the test server."""
    extra = f"&options={quote(options)}" if options else ""
    return f"postgresql://{role}@/{database}?host={quote(str(SOCKET), safe='')}&port=5432{extra}"


ENVIRONMENT = {
    "TENANTRY_PROCESS": "worker",
    "DATABASE_URL": dsn("cp_app"),
    "DATABASE_WORKER_URL": dsn("postgres", options="-c role=cp_worker -c app.actor=system"),
    "DATABASE_OWNER_URL": dsn("cp_owner"),
    "CELERY_BROKER_URL": "memory://",
    "TENANTRY_SECRET_KEY": "test-secret-key-test-secret-key-0123456789",
    "TENANTRY_MASTER_KEYS": "t1:" + base64.b64encode(bytes(range(32))).decode(),
    "TENANTRY_ENVIRONMENT": "test",
    "TENANTRY_STATE_DIR": str(STATE / "state"),
    "TENANTRY_ALLOWED_HOSTS": "testserver,127.0.0.1,localhost",
    "DJANGO_SETTINGS_MODULE": "controlplane.settings",
}
os.environ.update(ENVIRONMENT)
