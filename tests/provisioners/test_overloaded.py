"""Endpoints with more to do than they can, by what model servers tell gateways; gateways are played by reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from provisioners.agent_api.polling import acting_gateway
from tenants.models import Endpoint, GatewayReplica, Unit
from tenants.operations import agents
from tenants.states import ConditionType, condition_of
from tests.drive import fresh
from tests.provisioners.test_rollouts import Stage, staged

pytestmark = pytest.mark.usefixtures("db")


def reported(stage: Stage, **load: Any) -> None:
    """Say what a gateway would of the endpoint's only replica."""
    gateway = GatewayReplica.objects.get()
    unit = Unit.objects.get(released_at=None)
    backend = {"unit_uid": str(unit.pk), "reachable": True, "in_flight": 0, **load}
    body = {
        "config_version": gateway.config_version,
        "endpoints": [{"uid": str(stage.row.pk), "state": "open", "backends": [backend]}],
    }
    agents.report(
        gateway=gateway.pk,
        body=body,
        version=gateway.config_version,
        actor=acting_gateway(gateway.pk),
        now=stage.here.clock(),
    )
    stage.here.sweep()


def healthy(stage: Stage) -> Mapping[str, Any]:
    found = condition_of(fresh(stage.row).conditions, ConditionType.HEALTHY)
    assert found is not None
    return found


def health(stage: Stage) -> tuple[str, str, str]:
    found = healthy(stage)
    return fresh(stage.row).phase, str(found["reason"]), str(found["message"])


def test_what_lasts_is_said_with_its_numbers_and_taken_back_with_the_first_report_without_it() -> None:
    stage = staged()
    stage.enrol()

    reported(stage, running=3, queued=9, kv_cache=0.97)
    at_once = health(stage)
    stage.here.clock.move(31)
    stage.here.sweep()
    lasting = health(stage)
    since = healthy(stage)["last_transition_at"]
    stage.here.clock.move(60)
    Endpoint.objects.update(due_at=stage.here.clock())
    reported(stage, running=4, queued=9, kv_cache=0.97)
    later = healthy(stage)
    reported(stage, running=3, queued=0, kv_cache=0.4)

    assert at_once == ("Ready", "Done", "")
    assert lasting[:2] == ("Degraded", "Overloaded")
    assert "9 requests wait while it works on 3, and 97% of the memory" in lasting[2]
    assert (later["last_transition_at"], "works on 4" in later["message"]) == (since, True)
    assert health(stage) == ("Ready", "Done", "")


@pytest.mark.parametrize(
    "load", [{}, {"running": 1, "queued": 3}, {"running": 50, "queued": 20, "kv_cache": 0.9}, {"running": 0}]
)
def test_a_server_that_keeps_up_or_does_not_say_is_not_overloaded(load: dict[str, Any]) -> None:
    stage = staged()
    stage.enrol()

    reported(stage, **load)
    stage.here.clock.move(60)
    reported(stage, **load)

    assert health(stage) == ("Ready", "Done", "")


def test_one_that_was_busy_twice_for_a_moment_is_not_overloaded() -> None:
    stage = staged()
    stage.enrol()

    reported(stage, running=1, queued=9)
    stage.here.clock.move(20)
    reported(stage, running=1, queued=0)
    stage.here.clock.move(20)
    reported(stage, running=1, queued=9)

    assert health(stage) == ("Ready", "Done", "")
