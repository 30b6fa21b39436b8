"""The status of a played pod is what a kubelet would write."""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.labs.kubernetes.statuses import ContainerView, Ended, failed_status, status_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 3, 5, 0, tzinfo=UTC)
IMAGE = "r/vllm@sha256:1"


def pod(status=None):
    return {"metadata": {"name": "p", "uid": "u", "generation": 1}, "spec": {}, "status": status or {}}


def written(views, before=None, now=NOW):
    given = pod(before)
    return status_of(given, views, host_ip="10.0.0.1", pod_ip="10.200.0.1", now=now, started_at="2026-01-02T03:04:00Z")


def condition(status, name):
    found = next(c for c in status["conditions"] if c["type"] == name)
    return found["status"], found["lastTransitionTime"]


def test_a_pod_is_ready_only_when_its_container_is_and_says_that_it_is_simulated():
    view = ContainerView("c", IMAGE)
    waiting = written([view])
    view.running_since, view.started = "2026-01-02T03:04:05Z", True
    running = written([view], waiting)
    view.ready = True
    ready = written([view], running, LATER)

    assert (waiting["phase"], running["phase"], ready["phase"]) == ("Pending", "Running", "Running")
    assert waiting["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert [condition(s, "Ready")[0] for s in (waiting, running, ready)] == ["False", "False", "True"]
    assert condition(ready, "Initialized") == ("True", "2026-01-02T03:04:05Z")
    assert condition(ready, "Ready") == ("True", "2026-01-02T03:05:00Z")
    assert next(c for c in ready["conditions"] if c["type"] == "Ready")["message"] == "simulated pod"


def test_a_crash_shows_the_last_exit_code_and_the_wait():
    view = ContainerView("c", IMAGE, restarts=2, waiting=("CrashLoopBackOff", "back-off 20s"))
    view.last = Ended(2, "Error", "2026-01-02T03:04:00Z", "2026-01-02T03:04:01Z", "unrecognized arguments")

    shown = written([view])

    container = shown["containerStatuses"][0]
    assert shown["phase"] == "Running"
    assert container["restartCount"] == 2
    assert container["state"] == {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s"}}
    assert container["lastState"]["terminated"]["exitCode"] == 2
    assert container["lastState"]["terminated"]["message"] == "unrecognized arguments"


def test_what_others_wrote_into_the_status_stays():
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    before = {"conditions": [scheduled], "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "x"}]}

    shown = written([ContainerView("c", IMAGE)], before)

    assert scheduled in shown["conditions"]
    assert shown["resourceClaimStatuses"] == before["resourceClaimStatuses"]


def test_a_refused_pod_has_failed_for_good():
    shown = failed_status(pod(), reason="UnexpectedAdmissionError", message="Allocate failed", now=NOW)

    assert (shown["phase"], shown["reason"], shown["message"]) == (
        "Failed", "UnexpectedAdmissionError", "Allocate failed",
    )  # fmt: skip


def test_a_pod_that_is_not_restarted_ends():
    view = ContainerView("c", IMAGE, ended=Ended(0, "Completed", "", ""))
    assert written([view])["phase"] == "Succeeded"
    view.ended = Ended(3, "Error", "", "")
    assert written([view])["phase"] == "Failed"
