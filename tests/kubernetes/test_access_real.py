"""People in their namespace on a real kube-apiserver: what a token opens, and that it ends with the membership."""

from __future__ import annotations

import time
from typing import Any

import pytest

from provisioners.driver import DriverError, TransientDriverError
from provisioners.kubernetes import access, admission, rbac
from provisioners.kubernetes.connection import check_kubeconfig
from tests.kubernetes.ground import Ground, eventually, pod

HOW: Any = {"seconds": 900, "name": "it", "command": ("tenantry", "kube-credential")}
pytestmark = [pytest.mark.real, pytest.mark.kube_apiserver]


def test_each_role_does_in_its_namespace_what_it_may_and_nothing_elsewhere(ground: Ground) -> None:
    mine, other = ground.mine.namespace, ground.other.namespace
    member, viewer = ground.acting("member"), ground.acting("viewer")

    assert member.list("v1", "Pod", namespace=mine).items == ()
    member.apply(pod(mine), dry_run=True)
    viewer.list("apps/v1", "Deployment", namespace=mine)
    for attempt in (
        lambda: member.list("v1", "Pod", namespace=other),
        lambda: member.list("v1", "Secret", namespace=mine),
        lambda: member.list("v1", "Secret", namespace=rbac.ACCESS_NAMESPACE),
        lambda: member.list("v1", "Node"),
        lambda: member.get("v1", "Namespace", mine),
        lambda: member.patch("v1", "ResourceQuota", "tenantry", mine, {"spec": {"hard": {"pods": "999"}}}),
        lambda: viewer.apply(pod(mine), dry_run=True),
        lambda: viewer.get("v1", "ConfigMap", admission.PARAMS, other),
    ):
        with pytest.raises(DriverError) as error:
            attempt()
        assert error.value.raw.startswith("403")


def test_the_driver_hands_a_namespace_out_sees_it_and_takes_it_back(ground: Ground) -> None:
    spec = ground.other.handed_out()
    step = ground.driver.steps(spec)[0]

    ground.driver.start(step)
    seen = ground.driver.observe(spec.ref)
    again = ground.driver.observe(spec.ref)
    credential = ground.driver.credential(spec.boundary, ground.other.people["viewer"], **HOW)
    person = ground.with_token(credential.token)
    person.list("v1", "Pod", namespace=credential.namespace)
    check_kubeconfig(credential.static_kubeconfig.reveal())
    assert credential.token.reveal() not in credential.kubeconfig
    ground.driver.start(step.undoing())

    assert (seen.exists, seen.part(step.name).have, again.parts == seen.parts) == (True, step.want, True)
    assert not ground.driver.observe(spec.ref).exists
    with pytest.raises(TransientDriverError, match="no account"):
        ground.driver.credential(spec.boundary, ground.other.people["viewer"], **HOW)
    person.close()
    ground.let_in(ground.other)


def test_a_token_is_refused_within_five_seconds_of_leaving(ground: Ground) -> None:
    whose = ground.other
    leaver = whose.people["member"]
    person = ground.with_token(access.mint(ground.admin, whose.ref, leaver).value)
    person.list("v1", "Pod", namespace=whose.namespace)

    whose.people = {role: who for role, who in whose.people.items() if who != leaver}
    left_at = time.monotonic()
    ground.make(whose)

    def refusal() -> str:
        try:
            person.list("v1", "Pod", namespace=whose.namespace)
        except DriverError as error:
            return error.raw
        return ""

    first = eventually(refusal, within_s=5, what="the token is refused")
    took_s = time.monotonic() - left_at
    assert first[:3] in {"401", "403"}
    assert took_s < 5
    assert eventually(lambda: refusal().startswith("401") and refusal(), within_s=20, what="the token is dead")
    person.close()
