"""Which event of vCenter belongs to which running clone, and what is asked again when. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from provisioners.driver import Secret, TransientDriverError
from provisioners.vsphere.client import MoRef
from provisioners.vsphere.cloning import Clones, RunningClone, _Event, _Task, matched
from provisioners.vsphere.ground import Ground
from provisioners.vsphere.settings import settings_of

NOW = datetime.now(UTC)
OURS = "tn-vm-" + "0" * 31


def task(number: int, *, source: str = "vm-1", chain: int = 0, at_s: float = 0) -> _Task:
    return _Task(f"task-{number}", MoRef("VirtualMachine", source), chain, NOW + timedelta(seconds=at_s))


def event(name: str, *, source: str = "vm-1", chain: int = 0, key: int = 1, at_s: float = 0) -> _Event:
    return _Event(source, chain, key, NOW + timedelta(seconds=at_s), name, f"host-of-{name}")


def names(tasks: list[_Task], events: list[_Event]) -> dict[str, str]:
    return {one.task: one.name for one in matched(tasks, events)}


def test_task_and_event_of_one_chain_belong_together_whenever_they_were():
    tasks = [task(1, chain=7, at_s=3), task(2, chain=8)]
    events = [event("b", chain=8, key=1, at_s=9), event("a", chain=7, key=2), event("other", chain=9, key=3)]

    assert names(tasks, events) == {"task-1": "a", "task-2": "b"}


def test_without_a_chain_it_is_the_last_event_of_the_source_before_the_task():
    tasks = [task(1, at_s=1), task(2, at_s=2), task(3, source="vm-2", at_s=2)]
    events = [
        event("long ago", key=1, at_s=-5),
        event("a", key=2, at_s=0.9),
        event("b", key=3, at_s=1.9),
        event("too late", key=4, at_s=4),
        event("c", source="vm-2", key=5, at_s=1.5),
    ]

    assert names(tasks, events) == {"task-1": "a", "task-2": "b", "task-3": "c"}


def test_a_clone_of_which_vcenter_tells_nothing_has_no_name():
    assert names([task(1), task(2, chain=5)], []) == {"task-1": "", "task-2": ""}


# --- room -----------------------------------------------------------------------------------------


@pytest.fixture
def clones() -> Clones:
    config = {"url": "https://vcenter.example.com", "user": "u", "clones": 3, "clones_per_host": 2}
    return Clones(Ground(settings_of(config, {"password": Secret("p")}), client=None))


def running(number: int, *, host: str = "a", age_s: float = 0, name: str = "") -> RunningClone:
    return RunningClone(f"task-{number}", name or f"{OURS}{number}", host, datetime.now(UTC) - timedelta(seconds=age_s))


def test_clones_of_others_and_on_other_hosts_take_no_place(clones):
    clones.check_room([running(1), running(2, host="b"), running(3, name="somebody's"), running(4, name="x")], "a")


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([running(1), running(2)], "host a takes 2 new machines already"),
        ([running(1, host="b"), running(2, host="c"), running(3, host="c")], "vCenter makes 3 machines already"),
    ],
)
def test_where_there_is_no_place_it_is_said(clones, runs, words):
    with pytest.raises(TransientDriverError, match=f"{words}, as many as may be at a time; this one waits"):
        clones.check_room(runs, "a")


@pytest.mark.parametrize(("age_s", "again_s"), [(0, 0.25), (20, 1), (300, 2), (-300, 0.25)])
def test_the_older_the_clones_the_later_it_is_asked_again(clones, age_s, again_s):
    with pytest.raises(TransientDriverError) as full:
        clones.check_room([running(1, age_s=age_s), running(2)], "a")

    assert full.value.retry_after_s == pytest.approx(again_s, abs=0.05)


def test_places_that_were_read_over_two_logins_are_read_again(monkeypatch):
    """After a restart the same reference may be another object, and half of what was read would be of each."""
    ground = Ground(settings_of({"url": "https://vc", "user": "u"}, {"password": Secret("p")}), _Login())
    read: list[int] = []

    def reads() -> int:
        read.append(ground.client.logins)
        ground.client.logins = max(ground.client.logins, 2 if len(read) == 1 else 0)
        return len(read)

    monkeypatch.setattr(ground, "_read_estate", reads)
    ground.client.logins = 1

    assert (ground.estate(), ground.estate(), read) == (2, 2, [1, 2])


class _Login:
    logins = 0
