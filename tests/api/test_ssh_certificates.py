"""SSH certificates over REST: one line, shown once and again to the same key; the list that machines ask for."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from tenants.models import Machine, Membership, SshCertificate
from tenants.operations import members
from tenants.states import Role
from tests import factories
from tests.api.client import Api, token_of

pytestmark = pytest.mark.usefixtures("db")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK5uPv4HWUAPaRKNzhxQCyb6tmQgh8X4cFI/hsNdW4A4"
PATH = "tenants/acme/machines/box/ssh-certificates"
GPU = {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 1, "memory_gib": 1}


@pytest.fixture
def acme() -> SimpleNamespace:
    """A tenant with a machine that has an address."""
    factories.host(factories.provider(capabilities={"boundary_kinds": ["vm"], "bindings": ["device"]}))
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    mia, owner = factories.member(tenant), factories.member(tenant, Role.OWNER)
    made = SimpleNamespace(tenant=tenant, mia=mia, owner=owner, api=Api(token_of(mia)))
    answer = made.api.post("tenants/acme/machines", {"name": "box", "unit": GPU, "image": "ubuntu-24.04"})
    assert answer.status == 201, answer
    Machine.objects.filter(name="box").update(address="127.0.0.2:2201")
    return made


def revoked(authority: Any) -> Any:
    return Client().get(f"/agent/v1/ssh/{authority}/revoked")


def test_a_key_is_signed_and_the_answer_says_how_to_log_in(acme):
    answer = acme.api.post(PATH, {"public_key": f"{KEY} mia@laptop"})

    assert answer.status == 201, answer
    row = SshCertificate.objects.get()
    assert answer.body["certificate"].startswith("ssh-ed25519-cert-v01@openssh.com AAAA")
    assert {name: answer.body[name] for name in ("host", "port", "login", "principal", "serial", "machine")} == {
        "host": "127.0.0.2", "port": 2201, "login": "tenant", "principal": f"machine-{row.machine_id}",
        "serial": str(row.serial), "machine": "box",
    }  # fmt: skip


def test_an_authority_sealed_with_a_master_key_that_is_lost_is_told_and_nothing_is_signed(acme, settings):
    settings.TENANTRY_MASTER_KEYS = "new:" + base64.b64encode(b"n" * 32).decode()

    answer = acme.api.post(PATH, {"public_key": KEY})

    assert (answer.status, answer.body["code"]) == (503, "sealed"), answer
    assert not SshCertificate.objects.exists()


def test_the_same_request_again_gets_the_same_certificate(acme):
    one = acme.api.post(PATH, {"public_key": KEY}, key="k1")
    two = acme.api.post(PATH, {"public_key": KEY}, key="k1")

    assert one.body == two.body
    assert two.headers["Idempotency-Replayed"] == "true"
    assert SshCertificate.objects.count() == 1


@pytest.mark.parametrize(
    "body",
    [{}, {"public_key": ""}, {"public_key": 7}, {"public_key": KEY[:-6]}, {"public_key": KEY, "principal": "root"}],
)
def test_what_is_no_key_is_refused_by_its_field(acme, body):
    answer = acme.api.post(PATH, body)

    assert answer.status == 400, answer
    assert [fault["field"] for fault in answer.body["errors"]] == ["principal" if "principal" in body else "public_key"]
    assert not SshCertificate.objects.exists()


def test_a_machine_of_another_tenant_is_not_there(acme):
    other = factories.tenant(name="globex")
    api = Api(token_of(factories.member(other, Role.OWNER)))

    assert api.post(PATH, {"public_key": KEY}).status == 404
    assert api.post("tenants/globex/machines/box/ssh-certificates", {"public_key": KEY}).status == 404


def test_machines_are_told_what_was_taken_back_and_nothing_else(acme):
    acme.api.post(PATH, {"public_key": KEY})
    row = SshCertificate.objects.get()

    before = revoked(row.authority_id)
    members.remove(
        membership=Membership.objects.get(person=acme.mia), actor=factories.actor(acme.owner), now=timezone.now()
    )
    after = revoked(row.authority_id)

    assert (before.status_code, before.content) == (200, b"")
    assert after.content.decode() == f"serial: {row.serial}\n"
    assert (after["Cache-Control"], after["Content-Type"]) == ("no-store", "text/plain; charset=utf-8")
    assert revoked(uuid4()).content == b""
    assert revoked("no-uuid").status_code == 404
    assert Client().post(f"/agent/v1/ssh/{row.authority_id}/revoked").status_code == 405


def test_an_owner_gives_the_tenant_another_authority(acme):
    acme.api.post(PATH, {"public_key": KEY})
    row = SshCertificate.objects.get()
    owner = Api(token_of(acme.owner))

    made = owner.post("tenants/acme/ssh-authority", key="k2")
    again = owner.post("tenants/acme/ssh-authority", key="k2")

    assert made.status == 201, made
    assert made.body["public_key"].startswith("ssh-ed25519 ")
    assert again.body == made.body
    assert revoked(row.authority_id).content.decode() == f"serial: {row.serial}\n"
    assert acme.api.post("tenants/acme/ssh-authority").status == 403
