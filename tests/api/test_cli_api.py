"""The command line against the real API: the words it sends are the words that the API takes."""

from __future__ import annotations

import json

import httpx
import pytest
from django.core.wsgi import get_wsgi_application

from controlplane.cli.app import run
from controlplane.cli.screen import Screen
from controlplane.cli.session import Session
from tenants.models import (
    Allocation,
    Endpoint,
    EndpointKey,
    FitCorrection,
    Machine,
    Namespace,
    Quota,
    Request,
    ServedModel,
    Unit,
)
from tenants.states import PlatformRole, Role
from tests import factories
from tests.api.client import token_of
from tests.conftest import NOW
from tests.unit.test_model_configs import TINY

pytestmark = pytest.mark.usefixtures("db")
GPU = "H100-80GB/1g.10gb"


@pytest.fixture
def tenant():
    row = factories.tenant(name="acme")
    provider = factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]})
    factories.host(provider)
    factories.served_model()
    return row


@pytest.fixture
def tenantry(tmp_path, capsys, tenant):
    """Run one line as somebody: `tenantry(person, *words)` → (status, what stdout says as JSON or text, stderr)."""
    transport = httpx.WSGITransport(app=get_wsgi_application(), raise_app_exceptions=False)

    def go(who, *words):
        environ = {
            "TENANTRY_CONFIG": str(tmp_path / "config.toml"),
            "TENANTRY_TOKEN": token_of(who),
            "TENANTRY_TENANT": "acme",
            "TENANTRY_URL": "http://localhost",
        }
        session = Session(Screen(colour=False), environ=environ, transport=transport, pause=lambda _: None)
        status = run(list(words), session=session)
        out, err = capsys.readouterr()
        return status, (json.loads(out) if "json" in words and out else out), err

    return go


@pytest.fixture
def member(tenant):
    factories.generous(tenant)
    return factories.member(tenant)


def test_create_list_and_delete_each_product(tenantry, member):
    for words in (
        ["endpoint", "chat", "--model", "llama-3-1-8b", "--gpu", GPU, "--for", "7d", "-l", "team=blue"],
        ["machine", "box", "--gpu", GPU, "--disk", "50", "--not-after", "+30d"],
        ["namespace", "lab", "--gpu", f"{GPU}x2"],
        ["allocation", "spare", "--gpu", GPU, "--class", "trial"],
    ):
        status, made, err = tenantry(member, "-o", "json", "create", *words)
        assert status == 0, err
        assert made["managed_by"] == "cli"

        status, items, err = tenantry(member, "-o", "json", "get", words[0], "--limit", "5")
        assert status == 0, err
        assert words[1] in [item["name"] for item in items]

        status, story, err = tenantry(member, "-o", "json", "explain", f"{words[0]}/{words[1]}")
        assert (status, story["name"]) == (0, words[1]), err

        status, _, err = tenantry(member, "delete", f"{words[0]}/{words[1]}", "--yes")
        assert status == 0, err

    assert [model.objects.get().deletion_requested_at is not None for model in (Endpoint, Machine, Namespace)] == [
        True
    ] * 3
    assert Allocation.objects.get(name="spare").deletion_requested_at is not None


def test_every_noun_can_be_listed_by_an_operator(tenantry, tenant):
    from controlplane.cli.nouns import ALL

    who = factories.person(platform=tuple(PlatformRole))

    for noun in ALL:
        if not noun.child_of and noun.name != "quotas":
            status, _, err = tenantry(who, "get", noun.name)
            assert status == 0, (noun.name, err)


def test_plan_says_where_it_would_run_and_changes_nothing(tenantry, member):
    status, plan, err = tenantry(
        member, "-o", "json", "create", "endpoint", "chat", "--model", "llama-3-1-8b", "--gpu", GPU, "--plan"
    )

    assert status == 0, err
    assert len(plan["placement"]) == 1
    assert Endpoint.objects.count() == 0


def test_keys_are_made_rolled_and_revoked(tenantry, member):
    tenantry(member, "create", "endpoint", "chat", "--model", "llama-3-1-8b", "--gpu", GPU)

    status, plain, _ = tenantry(member, "key", "create", "chat", "--name", "ci", "--for", "7d", "--scope", "chat")
    assert (status, plain.startswith("tnt_test_")) == (0, True)
    key = EndpointKey.objects.get(name="ci")
    assert key.scopes == ["chat"]
    status, rolled, err = tenantry(member, "-o", "json", "key", "roll", "chat", key.public_id, "--overlap", "1h")
    assert status == 0, err
    status, _, err = tenantry(member, "key", "revoke", "chat", rolled["id"])
    assert status == 0, err
    assert EndpointKey.objects.get(public_id=rolled["id"]).revoked_at is not None
    status, items, _ = tenantry(member, "-o", "json", "get", "keys", "chat")
    assert len(items) == 3


def test_a_machine_that_is_off_gets_another_size(tenantry, member):
    tenantry(member, "create", "machine", "box", "--gpu", GPU, "--vcpu", "4", "--memory", "16", "--disk", "50")
    status, _, err = tenantry(member, "resize", "machine", "box", "--vcpu", "8")
    assert status != 0
    assert "switch it off first" in err
    row = Machine.objects.get()
    row.conditions = [
        {"type": "Ready", "status": "False", "reason": "ByOwner", "message": "", "observed_generation": 1,
         "last_transition_at": "2026-06-01T12:00:00+00:00"},
    ]  # fmt: skip
    row.power, row.observed, row.observed_generation = "off", {"power": "off"}, row.generation
    row.save()

    status, _, err = tenantry(
        member, "resize", "machine", "box", "--vcpu", "8", "--memory-gib", "24", "--disk-gib", "60"
    )

    assert status == 0, err
    assert "8 vCPU, 24 GiB of memory, 60 GiB of disk" in err
    unit = Unit.objects.get()
    assert (unit.vcpu, unit.memory_gib, Machine.objects.get().disk_gib) == (8, 24, 60)
    assert tenantry(member, "resize", "machine", "box")[0] == 2


def test_over_quota_the_shown_command_files_the_request_and_two_people_settle_it(tenantry, tenant):
    me, owner = factories.member(tenant), factories.member(tenant, Role.OWNER)
    approver = factories.person(platform=(PlatformRole.APPROVER,))
    words = ("create", "endpoint", "chat", "--model", "llama-3-1-8b", "--gpu", GPU)

    status, _, err = tenantry(me, *words)
    assert status == 6
    command = next(line for line in err.splitlines() if line.startswith("NEXT: ")).removeprefix("NEXT: tenantry ")
    status, _, err = tenantry(me, *command.split())
    assert status == 0, err
    request = Request.objects.get()
    assert tenantry(me, "approve", request.short_id)[0] == 5
    assert tenantry(owner, "inbox")[0] == 0
    assert tenantry(owner, "approve", request.short_id)[0] == 0
    status, _, err = tenantry(approver, "approve", request.short_id, "--reason", "fine")
    assert status == 0, err
    assert "is approved" in err

    assert Quota.objects.filter(tenant=tenant, dimension="endpoints", amount=1).exists()


def test_apply_is_safe_to_repeat_and_prunes_only_its_own(tenantry, member, tmp_path):
    file = tmp_path / "all.yaml"
    unit = "{gpu: {product: H100-80GB, profile: 1g.10gb}, vcpu: 4, memory_gib: 16}"
    document = "kind: Endpoint\nname: {name}\nspec: {{model: llama-3-1-8b, unit: {unit}}}\n"
    file.write_text("---\n".join(document.format(name=name, unit=unit) for name in ("one", "two")))
    tenantry(member, "create", "endpoint", "by-hand", "--model", "llama-3-1-8b", "--gpu", GPU, "-l", "app=x")

    assert tenantry(member, "plan", "-f", str(file), "-l", "app=x")[0] == 3
    assert Endpoint.objects.count() == 1
    status, done, err = tenantry(member, "-o", "json", "apply", "-f", str(file), "-l", "app=x")
    assert status == 0, err
    assert [entry["verb"] for entry in done] == ["create", "create"]
    status, done, err = tenantry(member, "-o", "json", "apply", "-f", str(file), "-l", "app=x")
    assert [entry["verb"] for entry in done] == ["same", "same"], err
    file.write_text(document.format(name="one", unit=unit))
    status, done, err = tenantry(member, "-o", "json", "apply", "-f", str(file), "-l", "app=x", "--prune")

    assert status == 0, err
    assert [(entry["verb"], entry["name"]) for entry in done] == [("same", "one"), ("delete", "two")]
    going = Endpoint.objects.filter(deletion_requested_at__isnull=False).values_list("name", flat=True)
    assert list(going) == ["two"]


def test_foreign_and_missing_both_end_with_four(tenantry, member):
    other = factories.tenant(name="other")
    factories.generous(other)
    tenantry(
        factories.member(other), "create", "endpoint", "theirs", "--model", "llama-3-1-8b", "--gpu", GPU, "-T", "other"
    )

    foreign = tenantry(member, "get", "endpoint/theirs", "--tenant", "other")
    missing = tenantry(member, "get", "endpoint/theirs", "--tenant", "nowhere")

    assert foreign == missing
    assert foreign[0] == 4


def test_a_wrong_word_is_refused_with_its_field(tenantry, member):
    status, _, err = tenantry(member, "create", "allocation", "Bad_Name", "--gpu", GPU)

    assert status == 2
    assert "name: " in err


def test_a_model_of_ones_own_is_asked_for_by_a_local_copy_and_two_people_settle_it(tenantry, tenant, tmp_path):
    me, owner = factories.member(tenant), factories.member(tenant, Role.OWNER)
    approver = factories.person(platform=(PlatformRole.APPROVER,))
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 4096)
    words = ("--repository", "acme/manuals", "--commit", "a" * 40, "--folder", str(tmp_path))

    refused = tenantry(me, "request", "model", "manuals", *words)
    status, _, err = tenantry(me, "request", "model", "acme-manuals", *words, "--licence", "mit")

    assert refused[0] == 2
    assert "acme-" in refused[2]
    assert status == 0, err
    request = Request.objects.get()
    assert tenantry(owner, "approve", request.short_id)[0] == 0
    assert tenantry(approver, "approve", request.short_id)[0] == 0
    row = ServedModel.objects.get(name="acme-manuals")
    assert (row.licence, row.geometry["weights_bytes_native"]) == ("mit", 4096)


def test_an_operator_checks_offers_retires_and_restores_a_model_and_forgets_an_estimate(tenantry, tenant, tmp_path):
    operator = factories.person(platform=(PlatformRole.OPERATOR,))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    words = ("model", "offer", "tiny", "--repository", "acme/tiny", "--commit", "b" * 40, "--config", str(config))

    assert tenantry(operator, *words, "--plan")[0] == 0
    assert not ServedModel.objects.filter(name="tiny").exists()
    for command in (words, ("model", "retire", "tiny"), ("model", "restore", "tiny")):
        status, _, err = tenantry(operator, *command)
        assert status == 0, err
    learnt = FitCorrection.objects.create(
        model=ServedModel.objects.get(name="tiny"), product="H100-80GB", profile="1g.10gb", created_at=NOW
    )
    status, _, err = tenantry(operator, "model", "reset-estimate", str(learnt.pk))

    assert status == 0, err
    learnt.refresh_from_db()
    assert learnt.reset_at is not None
