"""Real Celery workers on a real file-system broker, in real time: one dies at an instant, another one follows.

The first runs in its main process (`--pool solo`), so that the worker itself is killed; the second is started as
in production. Nothing but `provisioners.sweep` is ever sent, and what the broker held is lost between them. A sweep
is rung for when the one before has ended, and has time enough for what it finds: how many it takes must not
depend on how busy the machine is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psycopg
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue

from controlplane import folder_broker
from tests import environment
from tests.crash import world
from tests.crash.children import ChildFailed, fork
from tests.crash.databases import ROOT
from tests.crash.points import Point
from tests.crash.scenarios import Scenario
from tests.crash.world import SWEEP_S, TTL_S, Site

PATIENCE_S: Final = 90.0
BUDGET_S: Final = 5.0
"""What a worker takes for the time between two sweeps, of which it sweeps for most at once."""
LOST_S: Final = 10.0
"""A first message that no worker has taken up by then is sent again."""
BEGUN: Final = re.compile(r"provisioners\.sweep\[[^]]+\] received")
ENDED: Final = re.compile(r"provisioners\.sweep\[[^]]+\] (succeeded|raised)")


def die_and_be_followed(site: Site, scenario: Scenario, point: Point) -> int:
    """Let a worker die and another one end its work; return the sweeps that the second needed.

    Raises `ChildFailed` when the first does not die by SIGKILL, or the second does not come to the end.
    """
    site.clock.run()
    _point_provider_at(site)
    with tempfile.TemporaryDirectory(prefix="tenantry-broker-", dir="/tmp") as name:
        folder = Path(name)
        doorbell = _Doorbell(folder / "broker")
        victim = _start(site, folder, "--pool=solo", dies_at=f"{point.step}:{point.instant}")
        try:
            doorbell.ring_until(lambda: victim.poll() is not None, victim, folder)
        finally:
            _end(victim)
        if victim.returncode != -signal.SIGKILL:
            msg = f"the worker ended with {victim.returncode}, not by SIGKILL: {_log(folder)}"
            raise ChildFailed(msg)
        doorbell.forget()
        follower = _start(site, folder, "--pool=prefork", "--concurrency=2")
        try:
            return doorbell.ring_until(lambda: _at_its_end(site, scenario), follower, folder)
        finally:
            _end(follower)


def _point_provider_at(site: Site) -> None:
    """Tell the cloned database where its own estate is."""
    config = json.dumps({"url": site.provider_url, "estate": site.estate})
    with psycopg.connect(_dsn(site, "postgres")) as link:
        link.execute("UPDATE tenants_provider SET config = %s, version = version + 1", [config])


def _dsn(site: Site, role: str) -> str:
    from django.conf import settings

    host = settings.DATABASES["default"]["HOST"]
    return f"postgresql://{role}@/{site.database}?host={host.replace('/', '%2F')}&port=5432"


def _at_its_end(site: Site, scenario: Scenario) -> bool:
    def look(_say: Any) -> dict[str, Any]:
        world.enter(site)
        return {"end": scenario.end()}

    child = fork(look)
    try:
        return bool(child.answer()["end"])
    finally:
        child.end()


def _start(site: Site, folder: Path, *options: str, dies_at: str = "") -> subprocess.Popen[bytes]:
    variables = {
        **environment.ENVIRONMENT,
        "PATH": os.environ["PATH"],
        "TENANTRY_PROCESS": "worker",
        "DATABASE_WORKER_URL": _dsn(site, "cp_worker"),
        "CELERY_BROKER_URL": "filesystem://",
        "TENANTRY_BROKER_DIR": str(folder / "broker"),
        "TENANTRY_STATE_DIR": str(folder / "state"),
        "TENANTRY_SWEEP_S": str(BUDGET_S),
        "TENANTRY_LEASE_TTL_S": str(TTL_S),
        "TENANTRY_CRASH_AT": dies_at,
    }
    with (folder / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "--app", "controlplane.celery", "worker", *options),
                *("--loglevel", "INFO", "--queues", "passes,inventory", "--without-gossip", "--without-mingle"),
            ],
            cwd=ROOT,
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _log(folder: Path) -> str:
    return _said(folder)[-3000:]


def _said(folder: Path) -> str:
    return (folder / "worker.log").read_text(errors="replace")


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker with all its processes; they form a group of their own."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)


class _Doorbell:
    """Sends `provisioners.sweep`, once per `SWEEP_S`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._make()
        folder_broker.register()
        self.app = Celery("doorbell")
        self.app.conf.update(task_default_queue="passes", task_queues=[Queue("passes")], task_ignore_result=True)
        # Not the app's own broker: CELERY_BROKER_URL of this process would win over it.
        self.broker = Connection(
            "filesystem://localhost",
            transport_options={
                "data_folder_in": str(folder / "data"),
                "data_folder_out": str(folder / "data"),
                "control_folder": str(folder / "control"),
            },
        )

    def _make(self) -> None:
        for name in ("data", "control"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def forget(self) -> None:
        """Lose every message."""
        shutil.rmtree(self.folder / "data")
        self._make()

    def ring_until(self, done: Any, worker: subprocess.Popen[bytes], folder: Path) -> int:
        """Ring once the worker is up, then for each next sweep, until `done()`; return how many sweeps were begun."""
        until = time.monotonic() + PATIENCE_S
        while " ready." not in _log(folder) and time.monotonic() < until and worker.poll() is None:
            _pause(worker, 0.1)
        while time.monotonic() < until:
            self.app.send_task("provisioners.sweep", connection=self.broker, retry=False, ignore_result=True)
            rang = time.monotonic()
            while time.monotonic() < min(until, rang + SWEEP_S) or self._is_at_work(folder, rang, until):
                if done():
                    return max(1, len(BEGUN.findall(_said(folder))))
                _pause(worker, 0.05)
        msg = f"it did not come after {len(BEGUN.findall(_said(folder)))} sweeps: {_log(folder)}"
        raise ChildFailed(msg)

    @staticmethod
    def _is_at_work(folder: Path, rang: float, until: float) -> bool:
        """Whether a sweep goes on, or the one rung for at `rang` may still be taken up."""
        said, now = _said(folder), time.monotonic()
        begun, ended = len(BEGUN.findall(said)), len(ENDED.findall(said))
        return now < until and (begun > ended or (not begun and now < rang + LOST_S))


def _pause(worker: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait a little, or until the worker ends."""
    try:
        worker.wait(seconds)
    except subprocess.TimeoutExpired:
        return
