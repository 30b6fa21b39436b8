"""Supervised programs as real processes: restart, takeover, the end of whole groups, and no pid trusted alone."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from controlplane.embedded import processes, programs
from controlplane.embedded.places import Places
from controlplane.embedded.processes import ProcessId
from controlplane.embedded.programs import Program, Running

SLEEPS = "import signal; print('ready', flush=True); signal.pause()"
DEAF = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True)\nwhile 1: signal.pause()"
)
PARENT = (
    "import subprocess, sys, signal;"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()']);"
    "print('child', child.pid, flush=True); signal.pause()"
)
ENDS = "raise SystemExit(7)"


@pytest.fixture
def places(tmp_path):
    places = Places(tmp_path / "state")
    places.make()
    return places


@pytest.fixture
def run(places):
    """Make a running program of some Python source; all end with the test."""
    made = []

    def make(source, *, start=True, **fields):
        program = Program("sample", (sys.executable, "-c", source), dict(os.environ), programs.says("ready"), **fields)
        running = Running(program, places)
        made.append(running)
        if start:
            running.start()
        return running

    yield make
    for running in made:
        running.end(hurry=True)


def wait(condition, timeout_s=10.0):
    """Wait for a condition; the event never comes, it only paces."""
    pace = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        pace.wait(0.02)
    pytest.fail("the condition did not come true")


def test_a_program_is_ready_when_its_log_says_so_and_leads_its_own_group(run):
    running = run(SLEEPS)

    wait(running.is_ready)

    assert os.getpgid(running.process.pid) == running.process.pid != os.getpgid(0)


def test_words_of_an_earlier_process_do_not_make_the_next_one_ready(run):
    first = run(SLEEPS)
    wait(first.is_ready)
    first.end(hurry=True)

    second = run("import signal; signal.pause()")

    assert second.fresh_log() == ""
    assert not second.is_ready()


def test_a_program_that_ends_starts_again_after_a_backoff_that_doubles(run, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(programs.time, "monotonic", lambda: now)
    running = run(ENDS)
    said = []
    for wanted in (0.5, 1.0, 2.0):
        wait(lambda: not running.is_alive())
        said.append(running.keep_alive())
        before = running.restarts
        now += wanted - 0.01
        running.keep_alive()
        assert running.restarts == before  # not before its time
        now += 0.02
        running.keep_alive()
        assert running.restarts == before + 1

    assert [line.partition("starts again in ")[2] for line in said] == ["0.5 s", "1.0 s", "2.0 s"]
    assert all("status 7" in line for line in said)


def test_the_backoff_begins_anew_after_a_steady_run(run, monkeypatch):
    running = run(SLEEPS)
    running._backoff_s = 30.0
    later = programs.time.monotonic() + 31
    monkeypatch.setattr(programs.time, "monotonic", lambda: later)

    running.keep_alive()

    assert running._backoff_s == programs.BACKOFF_FIRST_S


def test_ending_asks_first_and_kills_what_does_not_listen(run):
    running = run(DEAF, grace_s=0.2)
    wait(running.is_ready)
    process = running.process

    running.ask_to_end()
    running.end()

    assert not process.is_alive()
    assert not running.record_file.exists()


def test_ending_takes_children_with_it_even_when_their_parent_is_dead(run):
    running = run(PARENT)
    wait(lambda: "child" in running.fresh_log())
    child = processes.identify(int(running.fresh_log().split()[1]))
    os.kill(running.process.pid, signal.SIGKILL)
    wait(lambda: not running.is_alive())

    running.end()

    wait(lambda: not child.is_alive())


def test_a_program_killed_from_outside_starts_again_without_its_old_children(run):
    running = run(PARENT)
    wait(lambda: "child" in running.fresh_log())
    child = processes.identify(int(running.fresh_log().split()[1]))
    os.kill(running.process.pid, signal.SIGKILL)
    wait(lambda: not running.is_alive())

    running.keep_alive()

    wait(lambda: not child.is_alive())


def test_what_a_dead_leader_left_in_its_folder_is_stopped_by_its_record_and_nobody_elses(run, tmp_path):
    running = run(PARENT, folder=tmp_path)
    wait(lambda: "child" in running.fresh_log())
    child = processes.identify(int(running.fresh_log().split()[1]))
    os.kill(running.process.pid, signal.SIGKILL)
    wait(lambda: not running.is_alive())
    record = running.record_file.read_text()

    elsewhere = programs.stop_recorded(running.record_file, tmp_path / "other")
    alive_then = child.is_alive()
    running.record_file.write_text(record)
    here = programs.stop_recorded(running.record_file, tmp_path)

    assert (elsewhere, alive_then, here, child.is_alive()) == (False, True, True, False)


def test_a_surviving_program_is_taken_over_and_an_ordinary_one_is_not(run):
    first = run(SLEEPS)
    wait(first.is_ready)

    heir = run(SLEEPS, survives=True)
    stranger_to_it = run(SLEEPS, start=False)

    assert heir.process == first.process
    assert stranger_to_it.process is None


def test_a_survivor_that_dies_later_is_started_by_its_heir(run):
    first = run(SLEEPS)
    heir = run(SLEEPS, survives=True)
    first.end(hurry=True)

    said = heir.keep_alive()

    assert "status unknown" in said
    assert not heir.is_alive()


def test_a_record_whose_pid_belongs_to_another_process_now_names_nobody(places):
    file = places.run / "sample.json"
    file.write_text(json.dumps({"pid": os.getpid(), "started": "1"}))

    assert programs.recorded(file) is None
    assert not programs.stop_recorded(file, places.state)  # we live on to assert it
    assert not file.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "started": "1"}', '{"pid": 1}'])
def test_a_damaged_record_names_nobody(places, text):
    file = places.run / "sample.json"
    file.write_text(text)

    assert programs.recorded(file) is None


def test_the_signal_for_a_group_never_goes_to_a_group_that_the_process_does_not_lead():
    child = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=subprocess.PIPE)
    child.stdout.readline()
    process = processes.identify(child.pid)

    sent = process.send(signal.SIGTERM, group=True)  # it is in our own group

    assert sent
    assert child.wait(5) == -signal.SIGTERM
    child.stdout.close()


def test_a_zombie_counts_as_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = processes.identify(child.pid)
    assert process.is_alive()

    child.stdin.close()

    assert process.wait_gone(10.0)
    child.wait()


def test_the_environment_of_a_program_is_in_no_repr(run):
    program = Program("sample", ("true",), {"TENANTRY_MASTER_KEYS": "k1:verysecret"}, programs.lives(1.0))

    assert "verysecret" not in repr(program)


def test_logs_are_private_and_a_big_one_is_moved_aside(places, monkeypatch):
    log = places.logs / "sample.log"
    log.write_text("old line\n" * 10)
    monkeypatch.setattr(programs, "LOG_LIMIT_BYTES", 20)

    programs.trim(log)

    assert log.read_text() == ""
    assert log.with_suffix(".log.1").read_text() == "old line\n" * 10
    assert log.with_suffix(".log.1").stat().st_mode & 0o777 == 0o600


def test_only_a_200_counts_as_an_answer():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        seen = [programs.is_answering(f"{base}/{status}") for status in (200, 204, 404, 503)]
        server.shutdown()
        thread.join()

    assert seen == [True, False, False, False]
    assert not programs.is_answering(base + "/200")


def test_identity_is_none_for_a_pid_that_nothing_has():
    assert processes.identify(2**22 + 1) is None
    assert not ProcessId(2**22 + 1, "1").send(signal.SIGTERM)


@pytest.mark.skipif(not processes.HAS_PROC, reason="no /proc here: ps tells less")
def test_a_process_whose_first_thread_has_ended_runs_until_its_last_one_has():
    # what a killed server with many threads looks like until its port is free
    exit_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    code = (
        "import ctypes, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        f"ctypes.CDLL(None).syscall({exit_thread}, 0)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        process = processes.identify(child.pid)
        status = Path(f"/proc/{child.pid}/stat")
        while status.read_text().rpartition(")")[2].split()[0] != "Z":
            assert child.poll() is None

        assert process.is_alive()
        assert not process.wait_gone(0.1)

        child.stdin.close()
        assert process.wait_gone(10)
    finally:
        child.stdin.close()
        child.kill()
        child.wait()
