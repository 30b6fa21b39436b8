"""The embedded PostgreSQL on real servers: rights, privacy, and a start after any kind of crash."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from controlplane.embedded import processes
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.postgres import APP, OWNER, WORKER, EmbeddedPostgres, Probe

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops to another user")


def open_folder(prefix):
    """A folder that the server's user can pass through, as pytest's own private ones are not for root's `nobody`."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    folder.chmod(0o711)
    return folder


@pytest.fixture(scope="module")
def server():
    folder = open_folder("pg-")
    with EmbeddedPostgres(folder, profile="test") as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture
def table(server):
    """A table of the owner with one committed row."""
    with server.connect(OWNER, "tenantry") as link:
        link.execute("DROP TABLE IF EXISTS kept")
        link.execute("CREATE TABLE kept (word text)")
        link.execute("INSERT INTO kept VALUES ('committed')")
    return lambda: words(server)


def words(server):
    with server.connect(OWNER, "tenantry") as link:
        return [word for (word,) in link.execute("SELECT word FROM kept").fetchall()]


def test_the_three_roles_can_log_in_and_nothing_more(server):
    with server.connect() as link:
        rows = link.execute(
            "SELECT rolname, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
            " FROM pg_roles WHERE rolname LIKE 'cp_%' ORDER BY rolname"
        ).fetchall()

    assert rows == [(role, True, False, False, False, False, False) for role in (APP, OWNER, WORKER)]


def test_the_owner_owns_the_database_and_may_step_down_but_nobody_may_step_up(server):
    with server.connect(OWNER, "tenantry") as link:
        owner = link.execute(
            "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
        ).fetchone()
        link.execute("SET ROLE cp_app")
        stepped = link.execute("SELECT current_user").fetchone()
    with server.connect(APP, "tenantry") as link, pytest.raises(psycopg.errors.InsufficientPrivilege):
        link.execute("SET ROLE cp_owner")

    assert (owner, stepped) == (("cp_owner",), ("cp_app",))


def test_app_and_worker_make_no_tables_and_strangers_do_not_even_connect(server):
    with server.connect() as link:
        link.execute("DROP ROLE IF EXISTS stranger")
        link.execute("CREATE ROLE stranger LOGIN")

    for role in (APP, WORKER):
        with server.connect(role, "tenantry") as link, pytest.raises(psycopg.errors.InsufficientPrivilege):
            link.execute("CREATE TABLE mine (i int)")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        server.connect("stranger", "tenantry")


def test_data_and_socket_are_private_and_no_network_port_is_open(server):
    modes = {stat.S_IMODE(folder.stat().st_mode) for folder in (server.data, server.socket_dir)}
    with server.connect() as link:
        listening = link.execute("SELECT current_setting('listen_addresses')").fetchone()

    assert (modes, listening) == ({0o700}, ("",))


def test_letters_fold_by_unicode_rules(server):
    with server.connect() as link:
        assert link.execute("SELECT lower('ÄÖÉ'), upper('ß') <> 'SS'").fetchone() == ("äöé", True)


def test_a_copy_of_a_database_has_its_tables_and_goes_without_a_trace(server, table):
    server.create_database("copied", template="tenantry")
    with server.connect(OWNER, "copied") as link:
        copied = link.execute("SELECT word FROM kept").fetchall()
        server.drop_database("copied")  # its open session is ended

    assert copied == [("committed",)]
    assert not server.has_database("copied")


@pytest.mark.parametrize("crash", ["kill", "immediate", "fast"])
def test_committed_rows_survive_every_way_to_stop_and_the_restart_is_quick(server, table, crash):
    for _ in range(3):
        if crash == "kill":
            server.kill()
        else:
            server.stop(crash)
        absent = server.probe()
        server.start(timeout_s=10)

        assert (absent, server.probe()) == (Probe.ABSENT, Probe.ACCEPTING)
    assert table() == ["committed"]


def test_a_stale_pid_file_that_names_a_stranger_does_not_stop_the_start(server, table):
    with server.connect() as link:
        link.execute("CHECKPOINT")
    server.kill()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pid_file = server.data / "postmaster.pid"
    pid_file.write_text("\n".join([str(stranger.pid), *pid_file.read_text().splitlines()[1:]]) + "\n")

    server.start(timeout_s=10)

    assert table() == ["committed"]
    assert stranger.poll() is None  # was not ours to end
    stranger.communicate(b"\n")


def test_a_second_user_of_the_folder_finds_the_running_server_and_may_stop_it(server, table):
    other = EmbeddedPostgres(server.home.parent, profile="test")
    first = server.server()

    other.start()

    assert other.server() == first
    other.stop()
    assert first is not None
    assert not first.is_alive()
    server.start()
    assert table() == ["committed"]


def test_a_cluster_that_was_left_half_made_is_made_anew():
    folder = open_folder("pg-")
    (folder / "postgresql" / "data.new" / "base").mkdir(parents=True)
    (folder / "postgresql" / "data").mkdir()

    with EmbeddedPostgres(folder, profile="test") as server:
        assert server.has_database("tenantry")
        made = server.server()

    assert made is not None
    assert not made.is_alive()
    shutil.rmtree(folder)


def test_another_major_version_is_refused_with_a_way_out(server):
    older = EmbeddedPostgres(server.home.parent, profile="test", version=16)
    server.stop()

    with pytest.raises(EmbeddedError, match="was made by PostgreSQL 18, this would start 16") as refused:
        older.start()

    assert "make reset" in refused.value.mend
    server.start()


def test_a_path_too_long_for_a_socket_moves_only_the_socket():
    deep = EmbeddedPostgres(Path("/tmp") / ("x" * 90), profile="test")

    assert deep.socket_dir.parent == Path(tempfile.gettempdir())
    assert deep.data.is_relative_to(deep.home)


def test_a_socket_folder_that_somebody_else_laid_out_is_refused(server, tmp_path):
    victim = EmbeddedPostgres(open_folder("pg-"), profile="test")
    victim.home.mkdir()
    victim.socket_dir.symlink_to(tmp_path)

    with pytest.raises(EmbeddedError, match="is not a folder of the database's user"):
        victim.start()

    assert victim.probe() is Probe.ABSENT
    shutil.rmtree(victim.home.parent)


@needs_root
def test_root_is_told_which_folder_shuts_the_server_out():
    closed = Path(tempfile.mkdtemp(prefix="pg-closed-"))  # mode 0700, ours

    with pytest.raises(EmbeddedError, match="nobody") as refused:
        EmbeddedPostgres(closed / "state", profile="test").start()

    assert f"chmod o+x {closed}" in refused.value.mend
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700  # never opened by us
    shutil.rmtree(closed)


@needs_root
def test_as_root_the_server_runs_as_nobody(server):
    running = server.server()

    assert running is not None
    assert Path(f"/proc/{running.pid}").stat().st_uid == 65534


def test_addresses_hold_no_password_and_name_role_and_database(server):
    parts = psycopg.conninfo.conninfo_to_dict(server.dsn(APP, "other"))

    assert parts == {"user": APP, "dbname": "other", "host": str(server.socket_dir), "port": "5432"}


def test_the_running_server_is_told_apart_from_a_reused_pid(server):
    running = server.server()

    assert running is not None
    assert not processes.ProcessId(running.pid, "0").is_alive()
