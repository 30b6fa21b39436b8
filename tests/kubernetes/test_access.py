"""Accounts of people: which objects, and what a kubeconfig holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
import yaml

from provisioners.driver import Kind, NamespaceSpec, Ref, Secret, TransientDriverError
from provisioners.kubernetes import access
from provisioners.kubernetes.connection import Unusable, check_kubeconfig

TENANT = UUID("11111111-1111-4111-8111-111111111111")
BOUNDARY = Ref(Kind.BOUNDARY, UUID("22222222-2222-4222-8222-222222222222"), TENANT)
SPEC = NamespaceSpec(
    ref=Ref(Kind.NAMESPACE, UUID("33333333-3333-4333-8333-333333333333"), TENANT),
    boundary=BOUNDARY, generation=1, units=(), access=(("ada", "owner"), ("bob", "viewer")),
)  # fmt: skip


def test_each_person_has_an_account_and_a_lease_of_the_same_name() -> None:
    found = access.objects(SPEC)

    kinds = [(obj["kind"], obj["metadata"]["name"]) for obj in found]
    names = [access.account_name(BOUNDARY, who) for who in ("ada", "bob")]
    assert kinds == [
        ("ConfigMap", SPEC.ref.name),
        ("ServiceAccount", names[0]), ("Secret", names[0]), ("ServiceAccount", names[1]), ("Secret", names[1]),
    ]  # fmt: skip
    assert {obj["metadata"]["namespace"] for obj in found} == {"tenantry-access"}
    assert names[0] != access.account_name(replace(BOUNDARY, uid=TENANT), "ada")


def test_a_namespace_that_is_cut_off_has_no_accounts() -> None:
    assert [obj["kind"] for obj in access.objects(replace(SPEC, cut_off=True))] == ["ConfigMap"]
    assert access.steps(SPEC)[0].want != access.steps(replace(SPEC, cut_off=True))[0].want
    assert access.steps(SPEC)[0].want != access.steps(replace(SPEC, access=SPEC.access[:1]))[0].want


class Minting:
    """An API server that answers one token request."""

    def __init__(self, lease: dict | None) -> None:
        self.lease, self.asked = lease, {}

    def get(self, _api: str, _kind: str, _name: str, _namespace: str = "") -> dict | None:
        return self.lease

    def create(self, obj: dict, **where: str) -> dict:
        self.asked = obj | where
        return {"status": {"token": "t0ken", "expirationTimestamp": "2026-11-21T13:00:00Z"}}


def test_a_token_is_bound_to_the_lease_by_its_uid_and_lasts_an_hour_at_most() -> None:
    cluster = Minting({"metadata": {"uid": "u-1"}})

    token = access.mint(cluster, BOUNDARY, "ada", seconds=86_400)

    assert cluster.asked["subresource"] == "token"
    assert cluster.asked["spec"]["expirationSeconds"] == 3600
    assert cluster.asked["spec"]["boundObjectRef"] == {
        "apiVersion": "v1", "kind": "Secret", "name": access.account_name(BOUNDARY, "ada"), "uid": "u-1"
    }  # fmt: skip
    assert token.expires_at == datetime(2026, 11, 21, 13, tzinfo=UTC)
    assert "t0ken" not in repr(token)


def test_without_a_lease_there_is_no_token() -> None:
    cluster = Minting(None)

    with pytest.raises(TransientDriverError, match="no account"):
        access.mint(cluster, BOUNDARY, "ada")

    assert cluster.asked == {}


def test_a_kubeconfig_asks_for_tokens_or_holds_one() -> None:
    base = {"name": "acme", "url": "https://x.invalid", "ca_pem": "PEM", "namespace": BOUNDARY.name}
    asking = access.kubeconfig(**base, command=("tenantry", "kube-credential", "acme"))
    holding = access.kubeconfig(**base, token=Secret("t0ken"))

    user = yaml.safe_load(asking)["users"][0]["user"]["exec"]
    assert (user["command"], user["args"]) == ("tenantry", ["kube-credential", "acme"])
    assert user["interactiveMode"] == "Never"
    assert "t0ken" not in asking
    assert yaml.safe_load(holding)["contexts"][0]["context"]["namespace"] == BOUNDARY.name
    check_kubeconfig(holding)
    with pytest.raises(Unusable, match="would run a program"):
        check_kubeconfig(asking)
    with pytest.raises(ValueError, match="a command or a token"):
        access.kubeconfig(**base)
