"""How points are packed into lives, and what becomes of points behind a stage that failed."""

from __future__ import annotations

from tests.crash.lives import (
    AFTER_COMMIT,
    ENDPOINT,
    IN_CALL,
    IN_TASK,
    LIVES,
    NAMESPACE,
    ON_VCENTERS,
    Lab,
    Life,
    lives_of,
    points_of,
)
from tests.crash.points import Outcome, Point, Recording
from tests.crash.wire import ENDED, LOST, POLL, START

CREATE, REVISE, RESUME, DELETE = (
    f"{ENDPOINT} {verb}" for verb in ("create", "change revise", "change resume", "delete")
)


def point(stage: str, step: str = "namespace.create") -> Point:
    return Point(stage, "cluster", "kill", step, "after-call")


def outcome(of: Point, *problems: str) -> Outcome:
    return Outcome(of, problems, 1, 2, 1.0)


def test_a_step_that_is_passed_often_is_killed_the_first_and_the_last_time_and_an_end_of_a_pass_once() -> None:
    passed = [("serving.replica[0]", "after-call")] * 3 + [("endpoint.conclude", "after-commit")] * 5

    found = list(points_of(Recording(CREATE, tuple((step, instant, 1) for step, instant in passed), 3, {})))

    assert [(one.step, one.nth) for one in found] == [
        ("serving.replica[0]", 1),
        ("serving.replica[0]", 3),
        ("endpoint.conclude", 1),
    ]


def test_a_call_that_changes_something_loses_its_answer_the_first_and_the_last_time_and_its_session_once() -> None:
    calls = (("vm.configure", START), ("vm.configure", "SetField"), ("vm.clone", POLL), *[("vm.power", "X_Task")] * 3)

    found = points_of(Recording(CREATE, (), 3, {}, calls), "vcenter")

    assert sorted((one.mode, one.step, one.instant, one.nth) for one in found) == [
        (ENDED, "vm.clone", POLL, 1),
        (ENDED, "vm.configure", "SetField", 1),
        (ENDED, "vm.configure", START, 1),
        (ENDED, "vm.power", "X_Task", 1),
        (LOST, "vm.configure", "SetField", 1),
        (LOST, "vm.power", "X_Task", 1),
        (LOST, "vm.power", "X_Task", 3),
    ]


def test_a_worker_dies_while_a_task_runs_that_takes_long_before_and_after_it_is_noted() -> None:
    calls = (("vm.clone", "CloneVM_Task"), ("vm.configure", "ReconfigVM_Task"), *[("vm.power", "PowerOnVM_Task")] * 2)

    found = points_of(Recording(CREATE, (), 3, {}, calls), "vcenter")

    assert [(one.step, one.instant, one.what) for one in found if one.mode == IN_TASK] == [
        ("vm.clone", "CloneVM_Task", IN_CALL),
        ("vm.clone", "CloneVM_Task", AFTER_COMMIT),
        ("vm.power", "PowerOnVM_Task", IN_CALL),
        ("vm.power", "PowerOnVM_Task", AFTER_COMMIT),
    ]


def test_each_life_takes_one_point_of_each_stage_and_every_point_is_taken_once() -> None:
    points = [point(CREATE, f"s{n}") for n in range(3)] + [point(DELETE, f"s{n}") for n in range(2)]
    others = [point(f"{NAMESPACE} create")]

    lives = lives_of([*points, *others])

    assert [(life.product, len(life.points)) for life in lives] == [
        (ENDPOINT, 2),
        (ENDPOINT, 2),
        (ENDPOINT, 1),
        (NAMESPACE, 1),
    ]
    taken = [one for life in lives for one in life.points.values()]
    assert sorted(map(repr, taken)) == sorted(map(repr, [*points, *others]))


def test_a_life_has_a_beginning_an_end_and_the_changes_that_its_points_need() -> None:
    plain, resumed = Life(ENDPOINT, {CREATE: point(CREATE)}), Life(ENDPOINT, {RESUME: point(RESUME)})

    assert [stage.name for stage in plain.stages()] == [CREATE, DELETE]
    assert [stage.name for stage in resumed.stages()] == [CREATE, f"{ENDPOINT} change suspend", RESUME, DELETE]


def test_a_life_whose_removal_is_killed_while_it_makes_something_has_every_change() -> None:
    removed = Life(ENDPOINT, {DELETE: point(DELETE, "undo:namespace.limits")})
    narrowed = Life(ENDPOINT, {DELETE: point(DELETE, "namespace.limits")})

    assert [stage.name for stage in removed.stages()] == [CREATE, DELETE]
    assert [stage.name for stage in narrowed.stages()] == [stage.name for group in LIVES[ENDPOINT] for stage in group]


def test_points_behind_a_stage_that_failed_are_done_in_another_life_and_none_twice() -> None:
    lives: list[list[str]] = []

    class Failing(Lab):
        def _live(self, life: Life) -> list[Outcome]:
            lives.append(sorted(life.points))
            if REVISE in life.points:
                return [outcome(life.points[CREATE]), outcome(life.points[REVISE], "something is left")]
            return [outcome(one) for one in life.points.values()]

    lab = Failing(None, None, ())  # type: ignore[arg-type]

    done = lab.live(Life(ENDPOINT, {name: point(name) for name in (CREATE, REVISE, DELETE)}))

    assert lives == [sorted([CREATE, REVISE, DELETE]), [DELETE]]
    assert [(one.point.scenario, one.good) for one in done] == [(CREATE, True), (REVISE, False), (DELETE, True)]


def test_a_life_whose_undisturbed_stages_fail_ends() -> None:
    class Broken(Lab):
        def _live(self, life: Life) -> list[Outcome]:  # noqa: ARG002
            return [outcome(point(CREATE), "no room")]

    lab = Broken(None, None, ())  # type: ignore[arg-type]

    done = lab.live(Life(ENDPOINT, {DELETE: point(DELETE)}))

    assert [one.good for one in done] == [False]


def test_every_scenario_of_a_namespace_is_a_stage_of_a_life() -> None:
    from tests.crash.scenarios import SCENARIOS

    stages = {stage.name for product in (ENDPOINT, NAMESPACE) for group in LIVES[product] for stage in group}

    # A move needs machines besides: it is crashed into on the sandbox.
    elsewhere = {f"{ENDPOINT} change {verb}" for verb in ("go", "back")}
    assert stages == {one.name for one in SCENARIOS if "/namespace " in one.name} - elsewhere


def test_every_scenario_of_vms_is_a_stage_of_a_life() -> None:
    from tests.crash.scenarios import CUTS, SCENARIOS

    stages = {stage.name for groups in ON_VCENTERS.values() for group in groups for stage in group}

    assert stages == {one.name for one in (*SCENARIOS, *CUTS) if "/vm " in one.name}
