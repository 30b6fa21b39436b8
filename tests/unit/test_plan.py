"""The plan as a table: steps wanted, parts seen, the one next action."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from provisioners.driver import Handle, Kind, Observed, Part, Presence, Ref, Step
from provisioners.plan import Action, Blocked, Forget, Nothing, OpenIntent, Poll, Start, plan, running

REF = Ref(Kind.ENDPOINT, uuid4(), uuid4())
NOW = datetime(2026, 6, 1, tzinfo=UTC)


def step(name: str, want: str = "w", *, replaces: bool = False) -> Step:
    return Step(name, f"{REF.uid}:{name}:{want}", want, 60, REF, {}, replaces=replaces)


def part(name: str, have: str = "w", presence: Presence = Presence.PRESENT, **more: object) -> Part:
    return Part(name, presence, have, **more)  # type: ignore[arg-type]


def seen(*parts: Part, blocked_by: str = "") -> Observed:
    return Observed(REF, exists=bool(parts), parts=parts, blocked_by=blocked_by)


def said(action: Action) -> tuple[object, ...]:
    match action:
        case Start(found):
            return ("undo" if found.undo else "start", found.name)
        case Poll(Handle(value), name, undo):
            return ("poll", name, value, undo)
        case Nothing(ready, why, name, complete):
            return ("nothing", ready, why, name, complete)
        case Blocked(reason):
            return ("blocked", reason)
        case Forget():
            return ("forget",)


NAMESPACE = [step("namespace.create"), step("namespace.limits"), step("namespace.gateway")]
VMS = [
    step("vm.clone[0]", replaces=True),
    step("vm.power[0]"),
    step("serving.replica[0]"),
    step("vm.clone[1]", replaces=True),
    step("vm.power[1]"),
    step("serving.replica[1]"),
    step("serving.service"),
]
WHOLE = [part(s.name) for s in VMS]


@pytest.mark.parametrize(
    ("name", "steps", "parts", "expected"),
    [
        ("nothing there", NAMESPACE, [], ("start", "namespace.create")),
        ("first there", NAMESPACE, [part("namespace.create")], ("start", "namespace.limits")),
        (
            "a part differs",
            NAMESPACE,
            [part("namespace.create"), part("namespace.limits", "old"), part("namespace.gateway")],
            ("start", "namespace.limits"),
        ),
        (
            "a task is adopted",
            NAMESPACE,
            [part("namespace.create", presence=Presence.CHANGING, handle="task-1")],
            ("poll", "namespace.create", "task-1", False),
        ),
        (
            "a forgotten task is waited for",
            NAMESPACE,
            [part("namespace.create", presence=Presence.CHANGING)],
            ("nothing", False, "the provider is at work", "namespace.create", False),
        ),
        (
            "an unknown part is waited for, not repeated",
            NAMESPACE,
            [part("namespace.create", presence=Presence.UNKNOWN)],
            ("nothing", False, "the provider does not say how it is", "namespace.create", False),
        ),
        (
            "a failed part is tried again",
            NAMESPACE,
            [part("namespace.create", presence=Presence.FAILED)],
            ("start", "namespace.create"),
        ),
        ("all there", NAMESPACE, [part(s.name) for s in NAMESPACE], ("nothing", True, "", "", True)),
        (
            "there but not working",
            NAMESPACE,
            [
                part("namespace.create"),
                part("namespace.limits"),
                part("namespace.gateway", ready=False, message="starting"),
            ],
            ("nothing", False, "starting", "namespace.gateway", True),
        ),
        (
            "one unit that boots does not hold up the other",
            VMS,
            [part("vm.clone[0]"), part("vm.power[0]", ready=False, message="booting")],
            ("start", "vm.clone[1]"),
        ),
        (
            "a new shared part waits for all units",
            VMS,
            [*WHOLE[:5], part("serving.replica[1]", ready=False, message="loading")],
            ("nothing", False, "loading", "serving.replica[1]", False),
        ),
        (
            "a shared part that differs is changed although a unit is ill",
            VMS,
            [part("vm.clone[0]"), part("vm.power[0]", ready=False), *WHOLE[2:6], part("serving.service", "old")],
            ("start", "serving.service"),
        ),
        (
            "what stands on a part made anew goes first, the last one first",
            VMS,
            [part("vm.clone[0]", "old"), *WHOLE[1:]],
            ("undo", "serving.replica[0]"),
        ),
        (
            "then the part itself",
            VMS,
            [part("vm.clone[0]", "old"), *WHOLE[3:]],
            ("undo", "vm.clone[0]"),
        ),
        (
            "a dropped unit is removed from its end",
            [*VMS[:3], VMS[6]],
            WHOLE,
            ("undo", "serving.replica[1]"),
        ),
        (
            "a dropped part at work is waited for",
            [*VMS[:3], VMS[6]],
            [*WHOLE[:3], part("vm.clone[1]", presence=Presence.CHANGING, handle="t"), part("serving.service")],
            ("poll", "vm.clone[1]", "t", True),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_create_and_change_walk_forwards(
    name: str, steps: list[Step], parts: list[Part], expected: tuple[object, ...]
) -> None:
    assert said(plan(steps, seen(*parts), deleting=False)) == expected


@pytest.mark.parametrize(
    ("steps", "observed", "expected"),
    [
        (VMS, seen(*WHOLE), ("undo", "serving.service")),
        ([], seen(*WHOLE), ("undo", "serving.service")),
        ([], seen(*WHOLE[:4]), ("undo", "vm.clone[1]")),
        ([], seen(part("vm.clone[0]", presence=Presence.CHANGING, handle="t")), ("poll", "vm.clone[0]", "t", True)),
        ([], seen(), ("forget",)),
        (
            NAMESPACE,
            seen(part("namespace.create"), blocked_by="a pod is in it"),
            ("blocked", "a pod is in it"),
        ),
        (
            [],
            seen(part("vm.clone[0]", presence=Presence.UNKNOWN)),
            ("nothing", False, "the provider does not say how it is", "vm.clone[0]", False),
        ),
    ],
)
def test_deletion_walks_backwards(steps: list[Step], observed: Observed, expected: tuple[object, ...]) -> None:
    assert said(plan(steps, observed, deleting=True)) == expected


def test_an_undo_names_ref_and_part_only_and_may_take_its_steps_limit() -> None:
    action = plan([], seen(part("vm.clone[0]")), deleting=True)

    assert isinstance(action, Start)
    assert (action.step.ref, action.step.payload, action.step.limit_s) == (REF, None, 900)


@pytest.mark.parametrize(
    ("intent", "expected"),
    [
        (None, None),
        (OpenIntent("vm.power[0]", undo=False, handle="", deadline_at=NOW + timedelta(seconds=9)), None),
        (
            OpenIntent("vm.power[0]", undo=False, handle="t", deadline_at=NOW + timedelta(seconds=9)),
            Poll(Handle("t"), "vm.power[0]", undo=False),
        ),
        (OpenIntent("vm.power[0]", undo=False, handle="t", deadline_at=NOW), None),
    ],
    ids=["none open", "no task known: look", "a task in its time: ask", "overdue: look"],
)
def test_a_running_task_is_asked_before_any_look(intent: OpenIntent | None, expected: Poll | None) -> None:
    assert running(intent, now=NOW) == expected


def test_a_walk_over_what_each_step_makes_ends_ready_and_back_ends_gone() -> None:
    made: dict[str, Part] = {}
    for _ in VMS:
        action = plan(VMS, seen(*(made[s.name] for s in VMS if s.name in made)), deleting=False)
        assert isinstance(action, Start)
        made[action.step.name] = part(action.step.name)
    assert said(plan(VMS, seen(*made.values()), deleting=False)) == ("nothing", True, "", "", True)

    undone = []
    while made:
        action = plan([], seen(*made.values()), deleting=True)
        assert isinstance(action, Start)
        undone.append(action.step.name)
        del made[action.step.name]
    assert undone == [s.name for s in reversed(VMS)]


@pytest.mark.parametrize(
    ("ready", "expected"),
    [(False, ("undo", "namespace.gateway")), (True, ("nothing", True, "", "", True))],
    ids=["that does not work", "that works after all"],
)
def test_a_stale_part_is_made_anew_unless_it_works(ready: bool, expected: tuple[object, ...]) -> None:
    parts = [*(part(s.name) for s in NAMESPACE[:2]), part("namespace.gateway", ready=ready)]

    assert said(plan(NAMESPACE, seen(*parts), deleting=False, stale=frozenset({"namespace.gateway"}))) == expected
