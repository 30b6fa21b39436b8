"""The supervisor with small stand-in programs: order, watching, takeover, and a stop that leaves nothing running.

The stand-ins are real processes; only what they do is not Tenantry. The real ones run in `make demo`.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from controlplane.embedded import processes, programs, roster, supervisor
from controlplane.embedded.errors import EmbeddedError
from controlplane.embedded.installation import ROOT, Installation
from controlplane.embedded.programs import Program
from controlplane.embedded.supervisor import Supervisor

pytestmark = pytest.mark.slow

STAYS = "import signal; print('ready', flush=True); signal.pause()"


@pytest.fixture
def installation(tmp_path):
    """An installation whose database and broker are external, so that none is started."""
    return Installation.load(
        {
            "TENANTRY_STATE_DIR": str(tmp_path / "state"),
            "DATABASE_URL": "postgresql://nobody@/none",
            "CELERY_BROKER_URL": "memory://",
            "PATH": os.defpath,
        }
    )


@pytest.fixture
def master(installation, monkeypatch):
    """A supervisor over stand-ins; what it tells is in `master.told`, what ran once in `master.once_ran`."""

    def stand_in(name):
        def make(_):
            return Program(
                name, (sys.executable, "-c", STAYS), dict(os.environ), programs.says("ready"),
                folder=ROOT, survives=name == "sandbox",
            )  # fmt: skip

        return make

    for name in roster.NAMES:
        monkeypatch.setattr(roster, name, stand_in(name))
    told, once_ran, commands = [], [], []
    master = Supervisor(installation, tell=told.append)

    def once(name, process, *command):
        once_ran.append((name, process, sorted(master.running)))
        commands.append(command)
        return f"{name} says hello\nhttp://127.0.0.1:8420/accounts/link/s3cret/\n"

    monkeypatch.setattr(master, "once", once)
    master.told, master.once_ran, master.commands = told, once_ran, commands
    yield master
    master.ask_to_stop()
    master.ask_to_stop()
    master.stop()


def watch_until(master, condition):
    """Let the supervisor watch until the condition holds, at most ten seconds."""
    late = threading.Event()
    timer = threading.Timer(10.0, late.set)
    timer.start()
    master.watch(until=lambda: condition() or late.is_set())
    timer.cancel()
    assert not late.is_set()


def test_migrations_run_before_bootstrap_and_both_before_the_workers(master):
    master.start()

    assert master.once_ran == [("migrate", "owner", ["sandbox"]), ("bootstrap", "worker", ["sandbox"])]
    assert sorted(master.running) == sorted(roster.NAMES)
    assert all(running.is_ready() for running in master.running.values())
    assert master.commands[-1] == ("bootstrap", "--first-link")
    assert [line for line in master.told if "hello" in line or "link" in line] == [
        "  first operator http://127.0.0.1:8420/accounts/link/s3cret/   (open it within a day; it works once)"
    ]


def test_a_demo_is_filled_with_people_instead_of_waiting_for_its_first_operator(master):
    master.installation.given["TENANTRY_DEMO"] = "1"

    master.start()

    assert master.commands[-1] == ("bootstrap", "--demo")
    assert "  bootstrap says hello" in master.told


def test_a_stop_ends_every_process_and_every_record(master):
    master.start()
    started = [running.process for running in master.running.values()]

    master.stop()

    assert [process for process in started if process.is_alive()] == []
    assert set(supervisor.liveness(master.installation).values()) == {"stopped", "external", "0"}
    assert not list(master.places.run.glob("w*.json"))


def test_a_program_that_is_killed_is_started_again_and_the_others_are_left_alone(master):
    master.start()
    before = {name: running.process for name, running in master.running.items()}
    os.kill(before["worker"].pid, signal.SIGKILL)

    watch_until(master, lambda: master.running["worker"].restarts == 1)

    after = {name: running.process for name, running in master.running.items()}
    assert {name for name in before if before[name] != after[name]} == {"worker"}
    assert after["worker"].is_alive()


def test_the_next_supervisor_takes_the_sandbox_over_and_replaces_the_rest(master, installation, monkeypatch):
    master.start()
    old = {name: running.process for name, running in master.running.items()}
    monkeypatch.setattr(programs, "is_answering", lambda _url: True)
    heir = Supervisor(installation, tell=master.told.append)
    monkeypatch.setattr(heir, "once", lambda *_: "")

    heir.start()

    kept = {name for name, running in heir.running.items() if running.process == old[name]}
    assert kept == {"sandbox"}
    assert [name for name in old if old[name].is_alive()] == ["sandbox"]
    heir.stop()


def test_a_sandbox_that_no_longer_answers_is_replaced_too(master, installation, monkeypatch):
    monkeypatch.setattr(programs, "is_answering", lambda _url: False)
    master.start()
    old = master.running["sandbox"].process
    heir = Supervisor(installation, tell=master.told.append)
    monkeypatch.setattr(heir, "once", lambda *_: "")

    heir.start()

    assert not old.is_alive()
    heir.stop()


def test_a_program_that_never_starts_ends_the_start_with_the_end_of_its_log(master, monkeypatch):
    monkeypatch.setattr(supervisor, "START_TRIES", 1)
    source = "raise SystemExit('no such module: frobnicate')"
    broken = Program("web", (sys.executable, "-c", source), dict(os.environ), programs.says("never"), folder=ROOT)
    monkeypatch.setattr(roster, "web", lambda _: broken)

    with pytest.raises(EmbeddedError, match=r"web does not start; the end of .*web\.log") as failed:
        master.start()

    assert "frobnicate" in failed.value.detail


def test_a_stop_asked_for_during_the_start_ends_the_waiting(master, monkeypatch):
    slow = Program("web", (sys.executable, "-c", STAYS), dict(os.environ), lambda _: False, folder=ROOT)
    monkeypatch.setattr(roster, "web", lambda _: slow)
    threading.Timer(0.3, master.ask_to_stop).start()

    with pytest.raises(EmbeddedError, match="stopped before everything was ready"):
        master.start()


def test_an_emptied_broker_gets_its_folders_back_and_one_that_is_away_is_left_alone(tmp_path, master):
    embedded = Installation.load({"TENANTRY_STATE_DIR": str(tmp_path / "own"), "DATABASE_URL": "postgresql://x@/x"})
    broker = embedded.places.broker
    watcher = Supervisor(embedded, tell=master.told.append)
    watcher.watch(until=lambda: broker.joinpath("data").is_dir())
    made = sorted(folder.name for folder in broker.iterdir())
    shutil.rmtree(broker)
    broker.write_text("not a folder")
    ticks = iter([False, False, True])

    watcher.watch(until=lambda: next(ticks))

    assert made == ["control", "data"]
    assert broker.read_text() == "not a folder"


def test_only_one_supervisor_holds_a_state_folder(installation):
    run = installation.places.run
    with supervisor.only_one(run):
        held_by = supervisor.holder(run)
        with (
            pytest.raises(EmbeddedError, match=f"already runs .* \\(pid {os.getpid()}\\)") as refused,
            supervisor.only_one(run),
        ):
            pytest.fail("held twice")

    assert held_by == processes.identify(os.getpid())
    assert refused.value.mend == "make down"
    with supervisor.only_one(run):
        pass
    assert supervisor.holder(run) is None


def test_gateways_are_found_by_their_state_folder_and_strangers_are_spared(installation, tmp_path):
    words = [sys.executable, "-c", STAYS, "provisioners.gateway", "--state"]
    mine = subprocess.Popen([*words, str(installation.places.sandbox / "gateways" / "a")], stdout=subprocess.PIPE)
    other = subprocess.Popen([*words, str(tmp_path / "else" / "a")], stdout=subprocess.PIPE)
    for child in (mine, other):
        child.stdout.readline()

    stopped = supervisor.stop_gateways(installation.places.sandbox)

    assert (stopped, mine.wait(5), other.poll()) == (1, -signal.SIGTERM, None)
    other.kill()
    other.wait()
    for child in (mine, other):
        child.stdout.close()


def test_signals_ask_to_stop_and_the_second_one_hurries(master):
    with supervisor.stopping_on_signals(master):
        os.kill(os.getpid(), signal.SIGTERM)
        asked, hurried = master.stop_asked, master._hurry
        os.kill(os.getpid(), signal.SIGINT)

    assert (asked, hurried, master._hurry) == (True, False, True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_management_command_that_fails_shows_the_end_of_its_log(installation, monkeypatch):
    monkeypatch.setattr(supervisor, "ROOT", ROOT)
    master = Supervisor(installation, tell=lambda _: None)

    with pytest.raises(EmbeddedError, match="nonsense failed with status 1") as failed:
        master.once("nonsense", "owner", "no-such-command")

    assert "Unknown command: 'no-such-command'" in failed.value.detail


def test_paused_programs_are_stopped_meanwhile_and_started_again_whatever_happens(master):
    master.start()
    before = {name: running.process.pid for name, running in master.running.items()}

    def work():
        with master.paused("dispatcher", "worker"):
            assert sorted(master.running) == ["beat", "sandbox", "web"]
            raise EmbeddedError("too bad")

    with pytest.raises(EmbeddedError, match="too bad"):
        work()

    after = {name: running.process.pid for name, running in master.running.items()}
    assert sorted(after) == sorted(before)
    assert {name for name in after if after[name] != before[name]} == {"dispatcher", "worker"}
    assert all(running.is_alive() for running in master.running.values())
