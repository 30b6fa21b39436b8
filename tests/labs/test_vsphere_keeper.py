"""Who plays guests notices that one was switched off and on between two looks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from controlplane.labs.vsphere import guests
from controlplane.labs.vsphere.control import GuestVm

VM = GuestVm("vm-1", "tn-ep-1-0", "u", running=True, booted="1", info={"guestinfo.tenantry.enrolment": "token"})


@pytest.fixture
def played(monkeypatch):
    """Return what happens to guests, in order."""
    told: list[str] = []

    class Guest(SimpleNamespace):
        def halt(self) -> None:
            told.append("halted")

    def agent(*_: Any, **__: Any) -> SimpleNamespace:
        told.append("booted")
        return SimpleNamespace(round=lambda: told.append("looked"))

    monkeypatch.setattr(guests, "SimulatedGuest", lambda vm, *_: Guest(vm=vm))
    monkeypatch.setattr(guests, "is_ours", lambda _: True)
    monkeypatch.setattr(guests.guest_agent, "Agent", agent)
    return told


@pytest.mark.parametrize(
    ("second", "follows"),
    [
        (VM, ["looked"]),
        (replace(VM, booted="2"), ["halted", "booted", "looked"]),
        (replace(VM, running=False, booted=""), ["halted"]),
        (None, ["halted"]),
    ],
    ids=["goes on", "off and on again", "off", "gone"],
)
def test_a_guest_boots_anew_whenever_its_machine_was_switched_on(played, tmp_path, second, follows):
    listed = [VM]
    keeper = guests.Keeper(SimpleNamespace(guests=lambda: list(listed)), tmp_path)
    keeper.round()
    assert played == ["booted", "looked"]
    played.clear()

    listed[:] = [second] if second is not None else []
    keeper.round()

    assert played == follows
