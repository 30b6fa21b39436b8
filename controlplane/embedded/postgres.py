"""An embedded PostgreSQL: one data folder, one private Unix socket, owned from `initdb` to stop.

Listens on no network address; data and socket folders are 0700, so whoever cannot enter them cannot connect
(authentication is `trust`). Several processes may use one state folder: a file lock orders start and stop, and a
running server is found by connecting, never by its pid file. The pid file of a server that is gone is cleared only
after the last of its processes has left the data folder. Works as root (server runs as `nobody`) and as a plain user.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from controlplane.embedded import binaries, processes
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.processes import ProcessId

SUPERUSER: Final = "postgres"
OWNER: Final = "cp_owner"
"""Owns the database and its tables; runs migrations."""
APP: Final = "cp_app"
WORKER: Final = "cp_worker"
DATABASE: Final = "tenantry"
PORT: Final = 5432
"""Only names the socket file; nothing listens on a network port."""
_SOCKET_PATH_LIMIT: Final = 100
"""sun_path holds 107 bytes on Linux and 103 on macOS, terminator aside; unix(7)."""

Profile = Literal["production", "test"]
StopMode = Literal["smart", "fast", "immediate"]
_STOP_SIGNAL: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_COMMON: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "jit": "off",  # the wheel carries no LLVM, and our statements are short
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "max_prepared_transactions": "0",
}
_PROFILES: Final[Mapping[Profile, Mapping[str, str]]] = {
    "production": {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "shared_buffers": "256MB",
        "max_wal_size": "1GB",
        "checkpoint_completion_target": "0.9",
        "random_page_cost": "1.1",
        "log_lock_waits": "on",
        "log_min_duration_statement": "2s",
    },
    "test": {
        "fsync": "off",  # survives a killed server, not a lost machine
        "synchronous_commit": "on",
        "full_page_writes": "off",
        "shared_buffers": "128MB",
        "max_wal_size": "2GB",
        "checkpoint_timeout": "1h",
        "autovacuum_naptime": "1min",
        "max_parallel_workers_per_gather": "0",
        "max_locks_per_transaction": "128",
    },
}


class Probe(Enum):
    """What connecting to the socket showed."""

    ACCEPTING = "accepting"
    BUSY = "starting, recovering or stopping"
    ABSENT = "nobody listens"


class EmbeddedPostgres:
    """One server on one state folder. A context manager: starts on enter, stops on exit."""

    def __init__(self, state_dir: Path | str, *, profile: Profile = "production", version: int = 18) -> None:
        """`state_dir` gets a folder `postgresql`; `version` is the major version, 16 or 18.

        `profile` "test" trades durability for speed (fsync off) and must never hold data that matters.
        """
        self.profile: Profile = profile
        self.version = version
        self.home = Path(state_dir).absolute() / "postgresql"
        self.data = self.home / "data"
        self.log_file = self.home / "postgresql.log"
        self._user = binaries.ServerUser.current()
        self._child: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """Name the data folder; there is no secret to hide."""
        return f"EmbeddedPostgres({str(self.home.parent)!r}, profile={self.profile!r}, version={self.version})"

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop, fast."""
        self.stop()

    # --- addresses --------------------------------------------------------------------------------

    @property
    def socket_dir(self) -> Path:
        """Folder of the socket; moves below the temporary folder when the state path is too long for one."""
        inside = self.home / "socket"
        if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= _SOCKET_PATH_LIMIT:
            return inside
        digest = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"tenantry-{self._user.uid}-{digest}"

    def dsn(self, role: str = OWNER, database: str = DATABASE) -> str:
        """Return the URL for psycopg, psql and Django; it holds no password."""
        return f"postgresql://{quote(role)}@/{quote(database)}?host={quote(str(self.socket_dir), safe='')}&port={PORT}"

    # --- life -------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Make sure the server runs, with its roles and database; a running one is adopted.

        Raises `EmbeddedError` with the log's last lines when it does not accept connections in `timeout_s`.
        """
        with self._locked():
            if self.probe() is not Probe.ACCEPTING:
                self._prepare()
                self._clear_leftovers(timeout_s)
                self._launch()
                self._wait_accepting(timeout_s)
            self._make_roles()
            if not self.has_database(DATABASE):
                self.create_database(DATABASE)

    def stop(self, mode: StopMode = "fast", *, timeout_s: float = 30.0) -> None:
        """Stop the server; nothing happens when none runs.

        "smart" waits for clients to leave, "fast" ends their sessions, "immediate" is a crash on
        purpose: the next start recovers. What does not stop within `timeout_s` is killed.
        """
        with self._locked():
            server = self.server()
            if server is None:
                return
            server.send(_STOP_SIGNAL[mode])
            if not self._wait_end(server, timeout_s):
                server.send(signal.SIGKILL)
                self._wait_end(server, timeout_s)
            self._wait_left_behind(timeout_s)
            self._child = None

    def kill(self) -> None:
        """Kill the postmaster without warning (SIGKILL) and wait until it is gone."""
        server = self.server()
        if server is not None:
            server.send(signal.SIGKILL)
            self._wait_end(server, 10.0)

    def probe(self) -> Probe:
        """Say what connecting shows; the pid file is not asked."""
        if not (self.socket_dir / f".s.PGSQL.{PORT}").exists():
            return Probe.ABSENT
        try:
            with psycopg.connect(self.dsn(SUPERUSER, "template1"), connect_timeout=5):
                return Probe.ACCEPTING
        except psycopg.errors.CannotConnectNow:
            return Probe.BUSY
        except psycopg.OperationalError as error:
            # libpq reports a refusal during start without a class of its own: SQLSTATE 57P03 is in the text only
            return Probe.BUSY if "the database system is" in str(error) else Probe.ABSENT

    def server(self) -> ProcessId | None:
        """Return the running postmaster of our data folder, None when there is none."""
        pid = self._recorded_pid()
        process = None if pid is None else processes.identify(pid)
        if process is None or not self._works_here(process.pid):
            return None
        return process

    # --- databases --------------------------------------------------------------------------------

    def connect(self, role: str = SUPERUSER, database: str = "postgres") -> psycopg.Connection:
        """Open an autocommit connection; the caller closes it."""
        return psycopg.connect(self.dsn(role, database), autocommit=True, connect_timeout=10)

    def has_database(self, name: str) -> bool:
        """Whether a database of that name exists."""
        with self.connect() as link:
            return link.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is not None

    def create_database(self, name: str, *, template: str = "template1", owner: str = OWNER) -> None:
        """Create a database that only its owner, `cp_app` and `cp_worker` may enter.

        A copy of `template` keeps its tables and their rights; the template must have no open connection.
        Raises `psycopg.errors.DuplicateDatabase` when the name is taken, `ObjectInUse` when the template is busy.
        """
        # FILE_COPY beats WAL_LOG where the checkpoint it needs costs nothing, which is without fsync
        strategy = "FILE_COPY" if self.profile == "test" else "WAL_LOG"
        with self.connect() as link:
            link.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY {}").format(
                    sql.Identifier(name), sql.Identifier(owner), sql.Identifier(template), sql.Literal(strategy)
                )
            )
            for statement in (
                "REVOKE ALL ON DATABASE {} FROM PUBLIC",
                f"GRANT CONNECT ON DATABASE {{}} TO {APP}, {WORKER}",
            ):
                link.execute(sql.SQL(statement).format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Drop a database and end its sessions; nothing happens when there is none."""
        with self.connect() as link:
            link.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _make_roles(self) -> None:
        """Make the three roles with exactly the rights they have; repeating it changes nothing."""
        rights = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
        with self.connect() as link:
            known = {name for (name,) in link.execute("SELECT rolname FROM pg_roles").fetchall()}
            for role in (OWNER, APP, WORKER):
                verb = "ALTER" if role in known else "CREATE"
                link.execute(sql.SQL(f"{verb} ROLE {{}} {rights}").format(sql.Identifier(role)))
            # the owner may step down to the others (SET ROLE), never the other way round
            link.execute(f"GRANT {APP}, {WORKER} TO {OWNER} WITH INHERIT FALSE, SET TRUE")

    # --- folders and processes --------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        """Make folders and the cluster where they are missing. A half-made cluster is thrown away."""
        blocked = self._user.reaches(self.data / "x")
        if blocked is not None:
            raise EmbeddedError(
                f"as root, PostgreSQL runs as `nobody`, who cannot pass through {blocked}",
                mend=f"chmod o+x {blocked}   (or set TENANTRY_STATE_DIR to a folder below /var/lib)",
            )
        self._make_private(self.socket_dir)
        if not (self.data / "PG_VERSION").exists():
            self._init_cluster()
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != str(self.version):
            raise EmbeddedError(
                f"{self.data} was made by PostgreSQL {made_by}, this would start {self.version}",
                mend="dump it with the old version and load it into a new state folder, or `make reset` to begin anew",
            )

    def _init_cluster(self) -> None:
        fresh = self.home / "data.new"
        for leftover in (fresh, self.data):
            if leftover.exists():
                shutil.rmtree(leftover)
        self._make_private(fresh)
        command = [str(binaries.bin_folder(self.version) / "initdb"), "-D", str(fresh), "-U", SUPERUSER]
        command += ["--auth=trust", "--encoding=UTF8", "--no-instructions"]
        # C.UTF-8 by PostgreSQL itself: Unicode case rules that no upgrade of the machine's libc can change
        if self.version >= 17:  # the first with the builtin provider
            command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        else:
            command += ["--locale=C.UTF-8"]
        if self.profile == "test":
            command.append("--no-sync")
        done = subprocess.run(command, capture_output=True, text=True, check=False, **self._as_server_user())
        if done.returncode != 0:
            raise EmbeddedError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
        fresh.rename(self.data)

    def _make_private(self, folder: Path) -> None:
        """Make `folder`, or check that the one there is a real folder of the server's user; mode 0700."""
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            os.chown(folder, self._user.uid, self._user.gid)
        info = folder.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != self._user.uid:
            raise EmbeddedError(f"{folder} is not a folder of the database's user", mend=f"rm -r {folder}")
        folder.chmod(0o700)

    def _as_server_user(self) -> dict[str, Any]:
        """Return the `subprocess` arguments that drop root and the caller's environment."""
        same: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
        if not self._user.is_us:
            same |= {"user": self._user.uid, "group": self._user.gid, "extra_groups": []}
        return same

    def _launch(self) -> None:
        options = {**_COMMON, **_PROFILES[self.profile], "unix_socket_directories": str(self.socket_dir)}
        command = [str(binaries.bin_folder(self.version) / "postgres"), "-D", str(self.data), "-p", str(PORT)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        if self._child is not None:  # an earlier one, ended under somebody else's hand or deaf: take its status
            self._child.kill()
            self._child.wait()
        with self.log_file.open("ab") as log:
            self.log_file.chmod(0o600)
            # a session of its own: Ctrl-C in a terminal must reach the supervisor only
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as_server_user(),
            )

    def _wait_accepting(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.probe() is not Probe.ACCEPTING:
            ended = self._child is not None and self._child.poll() is not None
            if ended or time.monotonic() >= deadline:
                why = "ended at start" if ended else f"did not accept connections within {timeout_s:.0f} s"
                raise EmbeddedError(f"PostgreSQL {why}; the end of {self.log_file}:\n{self.log_tail()}")
            time.sleep(processes.POLL_S)

    def _wait_end(self, server: ProcessId, timeout_s: float) -> bool:
        if self._child is not None and self._child.pid == server.pid:
            try:
                self._child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return False
            return True
        return server.wait_gone(timeout_s)

    def _clear_leftovers(self, timeout_s: float) -> None:
        """Make a start possible after any crash; leaves a living server alone.

        A pid file whose pid now belongs to a stranger stops PostgreSQL from starting, so it is removed; but it is also
        what guards the shared memory of a server's orphans, so they must be gone first.
        """
        server = self.server()
        if server is not None:
            deadline = time.monotonic() + timeout_s
            while server.is_alive() and time.monotonic() < deadline:
                if self.probe() is Probe.ACCEPTING:
                    return
                time.sleep(processes.POLL_S)
            if server.is_alive():
                raise EmbeddedError(
                    f"PostgreSQL runs (pid {server.pid}) but accepts nobody", mend=f"kill -QUIT {server.pid}"
                )
        self._wait_left_behind(timeout_s)
        socket_file = self.socket_dir / f".s.PGSQL.{PORT}"
        for path in (self.data / "postmaster.pid", socket_file, socket_file.with_name(f"{socket_file.name}.lock")):
            path.unlink(missing_ok=True)

    def _wait_left_behind(self, timeout_s: float) -> None:
        """Wait for children that outlived their postmaster; they notice within moments. Kill the deaf ones."""
        for pid in [pid for pid in processes.running_pids() if self._works_here(pid)]:
            orphan = processes.identify(pid)
            if orphan is not None and not orphan.wait_gone(min(timeout_s, 10.0)):
                orphan.send(signal.SIGKILL)
                orphan.wait_gone(timeout_s)

    def _works_here(self, pid: int) -> bool:
        """Whether `pid` is one of this server's processes: they all work in the data folder."""
        folder = processes.working_folder(pid)
        if folder is not None:
            return folder == self.data
        return not processes.HAS_PROC and str(self.data) in processes.arguments(pid)

    def _recorded_pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's log."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return "(no log)"
