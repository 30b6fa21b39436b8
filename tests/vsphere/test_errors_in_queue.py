"""What a driver raises crosses the border between a worker's processes whole: class, texts and every field."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue

from controlplane import folder_broker
from tests import environment
from tests.crash.databases import ROOT

PATIENCE_S = 60.0


@pytest.mark.slow
def test_every_class_of_driver_error_comes_out_of_a_real_worker_as_it_was_raised(tmp_path: Path) -> None:
    """By the product's own app: JSON messages, a pool of processes, no results kept."""
    from tests.vsphere.raising import ERRORS, shape_of

    told, broker = tmp_path / "told", tmp_path / "broker"
    told.touch()
    for name in ("data", "control"):
        (broker / name).mkdir(parents=True)
    worker = start(tmp_path, told)
    try:
        send(broker, list(ERRORS))
        end = time.monotonic() + PATIENCE_S
        while len(told.read_text().splitlines()) < len(ERRORS) and worker.poll() is None and time.monotonic() < end:
            threading.Event().wait(0.05)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)

    came = [json.loads(line) for line in told.read_text().splitlines()]
    assert {one.pop("pid") for one in came} == {worker.pid}, (tmp_path / "log").read_text()[-3000:]
    raised = [json.loads(json.dumps(shape_of(error))) for error in ERRORS.values()]
    assert sorted(came, key=str) == sorted(raised, key=str)


def start(folder: Path, told: Path) -> subprocess.Popen[bytes]:
    variables = {
        **environment.ENVIRONMENT,
        "PATH": os.environ["PATH"],
        "CELERY_BROKER_URL": "filesystem://",
        "TENANTRY_BROKER_DIR": str(folder / "broker"),
        "TENANTRY_STATE_DIR": str(folder / "state"),
        "RAISED_TO": str(told),
    }
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "--app", "tests.vsphere.raising:app", "worker", "--pool=prefork"),
                *("--concurrency=2", "--loglevel=INFO", "--queues=passes", "--without-gossip", "--without-mingle"),
            ],
            cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def send(broker: Path, names: list[str]) -> None:
    folder_broker.register()
    app = Celery("sender")
    app.conf.update(task_default_queue="passes", task_queues=[Queue("passes")], task_ignore_result=True)
    options = {"data_folder_in": str(broker / "data"), "data_folder_out": str(broker / "data")}
    options["control_folder"] = str(broker / "control")
    with Connection("filesystem://localhost", transport_options=options) as link:
        for name in names:
            app.send_task("tests.raise", kwargs={"what": name}, connection=link, retry=False, ignore_result=True)
