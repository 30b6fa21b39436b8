"""Threads beside the dispatcher: no trouble of one look ends them, and they end when they are told to."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from provisioners import lookout
from tenants.errors import DependencyDown


def test_whatever_a_look_ends_with_the_next_one_comes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(lookout, "connection", SimpleNamespace(close=lambda: closed.append(True)))
    troubles: list[Exception] = [DependencyDown("PostgreSQL"), RuntimeError("a bug")]
    stop = threading.Event()

    def look() -> Any:
        if troubles:
            raise troubles.pop(0)
        stop.set()

    with caplog.at_level(logging.WARNING, logger="provisioners.lookout"):
        thread = lookout.start("watch", look, stop, pause_s=0.001, waits="nobody is seen")
        thread.join(timeout=30)

    assert not thread.is_alive()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["watch: the database does not answer; nobody is seen", "watch failed"]
    assert len(closed) == 1
