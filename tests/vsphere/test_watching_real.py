"""Listening to the lab's vCenter: a change of ours rings at once, a stop ends it, trouble does not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners.driver import Ref, TellsChanges
from provisioners.vsphere import watching
from provisioners.vsphere.driver import VSphereDriver
from provisioners.vsphere.settings import Settings
from tests.vsphere.ground import boundary, clear, settings_for, walk

pytestmark = [pytest.mark.real, pytest.mark.vcsim]

SOON_S = 10.0


@pytest.fixture
def settings(vcenter: VCenter) -> Settings:
    return settings_for(vcenter)


@contextmanager
def listening(settings: Settings) -> Iterator[queue.SimpleQueue[Ref]]:
    """Listen in a thread; what rings lies in the queue. Ends within a second."""
    heard: queue.SimpleQueue[Ref] = queue.SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        for ref in watching.changes(settings, stop):
            heard.put(ref)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield heard
    finally:
        stop.set()
        asked = time.monotonic()
        thread.join(5)
        assert not thread.is_alive()
        assert time.monotonic() - asked < 1.0


def rings(heard: queue.SimpleQueue[Ref], ref: Ref) -> bool:
    end = time.monotonic() + SOON_S
    while (left := end - time.monotonic()) > 0:
        try:
            if heard.get(timeout=left) == ref:
                return True
        except queue.Empty:
            break
    return False


def test_the_driver_tells_changes(settings: Settings) -> None:
    assert isinstance(VSphereDriver(settings), TellsChanges)


def test_what_is_removed_rings_and_what_was_there_does_not(settings: Settings) -> None:
    driver = VSphereDriver(settings)
    first, second = boundary(), boundary()
    walk(driver, first)
    walk(driver, second)

    with listening(settings) as heard:
        assert not heard_anything(heard)
        clear(driver, first)
        assert rings(heard, first.ref)
        assert not rings_now(heard, second.ref)
    clear(driver, second)
    driver.close()


def test_a_listener_whose_session_is_killed_listens_on(
    settings: Settings, vcenter_control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PAUSE_S", 0.1)
    driver = VSphereDriver(settings)
    spec = boundary()
    walk(driver, spec)
    with listening(settings) as heard:
        assert not heard_anything(heard)
        vcenter_control.end_sessions()
        assert not heard_anything(heard)
        driver.observe(spec.ref)  # its session is gone too
        clear(driver, spec)
        assert rings(heard, spec.ref)
    driver.close()


def test_a_vcenter_that_is_away_ends_nothing_and_stop_is_heard(settings: Settings) -> None:
    with listening(replace(settings, port=9)) as heard:
        assert not heard_anything(heard)


def heard_anything(heard: queue.SimpleQueue[Ref], *, within_s: float = 1.5) -> bool:
    try:
        heard.get(timeout=within_s)
    except queue.Empty:
        return False
    return True


def rings_now(heard: queue.SimpleQueue[Ref], ref: Ref) -> bool:
    while True:
        try:
            if heard.get_nowait() == ref:
                return True
        except queue.Empty:
            return False
