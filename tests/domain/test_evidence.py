"""Evidence: what a tenant was at a moment equals the ledger then; a pack can be verified, and a changed one not."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import zipfile
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from tenants import evidence, evidence_verifier, ledger
from tenants.actor import SYSTEM
from tenants.errors import Conflict, Forbidden, InvalidSpec
from tenants.models import Event, GpuDevice, Hold, Membership, Tenant, Unit
from tenants.operations import allocations, members
from tenants.operations import evidence as operations
from tenants.specs import AllocationSpec, BareAsk, GpuAsk, UnitAsk
from tenants.states import HoldKind, PlatformRole, Role
from tenants.transactions import acting, reading
from tests import factories
from tests.conftest import NOW

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

MINUTE = timedelta(minutes=1)
PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "")


@pytest.fixture
def world() -> SimpleNamespace:
    provider = factories.provider(
        name="estate", capabilities={"boundary_kinds": ["namespace"], "bindings": ["device"], "simulated": True}
    )
    factories.host(provider, gpus=3)
    factories.host(provider, gpus=3)
    parent = factories.tenant(name="helios")
    child = factories.tenant(name="genomics", parent=parent)
    foreign = factories.tenant(name="zebrafish")
    for each in (parent, child, foreign):
        factories.generous(each)
    auditor = factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))
    return SimpleNamespace(
        provider=provider,
        tenants=[parent, child, foreign],
        parent=parent,
        child=child,
        foreign=foreign,
        actors={each.pk: factories.actor(factories.member(each, Role.OWNER)) for each in (parent, child, foreign)},
        auditor=factories.actor(auditor),
    )


def take(world: SimpleNamespace, tenant: Tenant, name: str, profile: str, at: Any) -> Any:
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", profile), 2, 8),))
    return allocations.create(tenant=tenant, ask=BareAsk(name, spec), actor=world.actors[tenant.pk], now=at)


def give_back(row: Any, world: SimpleNamespace, at: Any) -> None:
    allocations.release(allocation=row, actor=world.actors[row.tenant_id], now=at)
    with acting(SYSTEM):
        row.refresh_from_db()
        allocations.finish(row, now=at)


def held_now(tenant: Tenant) -> list[tuple[Any, ...]]:
    with reading(SYSTEM):
        rows = Hold.objects.filter(kind=HoldKind.TENANT.value, tenant__path__contains=[tenant.pk])
        return sorted(
            (r.device.short_id, r.start, r.size, r.profile, r.tenant.name)
            for r in rows.select_related("device", "tenant")
        )


def held_then(tenant: Tenant, at: Any, actor: Any) -> list[tuple[Any, ...]]:
    with reading(actor):
        found = evidence.as_of(tenant, at)
    return sorted((w.gpu, w.start, w.size, w.profile, w.tenant) for w in found.windows)


# --- as of -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_as_of_equals_the_ledger_of_that_time_on_random_histories(world, seed):
    dice = random.Random(seed)
    live: list[Any] = []
    seen: list[tuple[Any, Tenant, list[tuple[Any, ...]]]] = []
    clock = NOW
    for number in range(20):
        clock += MINUTE * dice.randint(1, 90)
        act = dice.random()
        if act < 0.55 or not live:
            with contextlib.suppress(Conflict):  # full is a part of history as well
                live.append(take(world, dice.choice(world.tenants), f"a{number}", dice.choice(PROFILES), clock))
        elif act < 0.85:
            give_back(live.pop(dice.randrange(len(live))), world, clock)
        else:
            _swap(dice, clock)
        seen += [(clock, tenant, held_now(tenant)) for tenant in world.tenants]

    wrong = [
        (at, tenant.name) for at, tenant, holds in seen if held_then(tenant, at + MINUTE / 2, world.auditor) != holds
    ]

    assert wrong == []
    assert any(holds for _at, _tenant, holds in seen)


def _swap(dice: random.Random, at: Any) -> None:
    """Let a provider report that a window lies elsewhere on its host, where that is free."""
    with acting(SYSTEM):
        holds = list(Hold.objects.filter(kind="tenant").select_related("device").order_by("pk"))
        hold = dice.choice(holds) if holds else None
        mask = ((1 << hold.size) - 1) << hold.start if hold is not None else 0
        other = next(
            (
                gpu
                for gpu in GpuDevice.objects.filter(host_id=hold.host_id).order_by("number")
                if gpu.pk != hold.device_id and gpu.free & mask == mask
            ),
            None,
        ) if hold is not None else None  # fmt: skip
        if hold is not None and other is not None:
            ledger.rebind(hold.host_id, [{"hold": str(hold.pk), "device": str(other.pk), "start": hold.start}], now=at)


def test_a_window_that_ended_at_the_moment_was_not_held_and_one_that_began_was(world):
    row = take(world, world.child, "one", "3g.40gb", NOW)
    give_back(row, world, NOW + MINUTE)

    counts = [
        len(held_then(world.child, at, world.auditor))
        for at in (NOW - MINUTE, NOW, NOW + MINUTE * 0.99, NOW + MINUTE, NOW + MINUTE * 2)
    ]

    assert counts == [0, 1, 1, 0, 0]


def test_what_a_window_was_for_is_known_when_the_thing_is_long_gone(world):
    from provisioners import housekeeping

    row = take(world, world.child, "gone", "2g.20gb", NOW)
    give_back(row, world, NOW + MINUTE)
    housekeeping.purge_released(NOW + timedelta(days=91))

    with reading(world.auditor):
        (window,) = evidence.as_of(world.child, NOW).windows

    assert (window.subject.name, window.subject.kind, window.subject.short_id) == ("gone", "bare", row.short_id)
    assert not Unit.objects.filter(allocation_id=row.pk).exists()


def test_children_are_in_it_or_not_and_owners_see_their_own_only(world):
    take(world, world.child, "one", "2g.20gb", NOW)
    take(world, world.foreign, "two", "2g.20gb", NOW)
    owner = world.actors[world.parent.pk]

    with reading(owner):
        below = evidence.as_of(world.parent, NOW)
        alone = evidence.as_of(world.parent, NOW, children=False)
        foreign = evidence.as_of(world.foreign, NOW)

    assert [w.tenant for w in below.windows] == ["genomics"]
    assert below.slots_by_product() == {"H100-80GB": 2}
    assert (alone.windows, foreign.windows) == ((), ())


def test_members_are_wound_back_through_every_change(world):
    owner, tenant = world.actors[world.child.pk], world.child
    first = factories.person(name="Ada")
    steps = [{Membership.objects.get(tenant=tenant).person_id: "owner"}]
    row = members.add(tenant=tenant, email=first.email, role=Role.VIEWER, actor=owner, now=NOW + MINUTE)
    steps.append(steps[0] | {first.pk: "viewer"})
    row = members.change_role(membership=row, role=Role.MEMBER, actor=owner, now=NOW + MINUTE * 2)
    steps.append(steps[0] | {first.pk: "member"})
    members.remove(membership=row, actor=owner, now=NOW + MINUTE * 3)
    steps.append(steps[0])

    with reading(world.auditor):
        names = evidence.tree(tenant, children=False)
        found = [
            {one.person: one.role for one in evidence.members_at(names, NOW + MINUTE * (number + 0.5))}
            for number in range(4)
        ]

    assert found == steps


# --- packs -----------------------------------------------------------------------------------------------


def lived(world: SimpleNamespace) -> None:
    """Let something happen, and seal it."""
    row = take(world, world.child, "one", "3g.40gb", NOW)
    take(world, world.child, "two", "1g.10gb", NOW + MINUTE)
    give_back(row, world, NOW + MINUTE * 30)
    take(world, world.foreign, "zebra", "1g.10gb", NOW + MINUTE)
    with acting(SYSTEM), connection.cursor() as cursor:
        cursor.execute("SELECT checkpoint_write(%s), checkpoint_write(%s)", [NOW + MINUTE * 40, NOW + MINUTE * 100])


def make(world: SimpleNamespace, **values: Any) -> tuple[operations.Pack, zipfile.ZipFile]:
    given = {"tenant": world.child, "since": NOW, "until": NOW + MINUTE * 60, "actor": world.auditor} | values
    pack = operations.make(now=NOW + timedelta(days=1), **given)
    with pack.file as file:
        return pack, zipfile.ZipFile(io.BytesIO(file.read()))


def test_a_pack_holds_what_happened_and_verifies(world):
    lived(world)

    pack, archive = make(world)
    with archive.open("windows.csv") as file:
        windows = file.read().decode().splitlines()
    events = evidence_verifier.lines(archive, "events.jsonl")

    assert pack.name == "evidence-genomics-20260601-20260601.zip"
    assert evidence_verifier.faults(archive) == []
    assert len(windows) == 3
    assert windows[1].startswith("genomics,bare,one,")
    assert [event["seq"] for event in events] == list(range(events[0]["seq"], events[-1]["seq"] + 1))
    assert {event["kind"] for event in events} >= {"allocation.requested", "allocation.deletion-requested"}
    assert len(evidence_verifier.lines(archive, "checkpoints.jsonl")) == 2
    assert evidence_verifier.uncovered(events, evidence_verifier.lines(archive, "checkpoints.jsonl")) == 0
    assert "Simulated" in archive.read("README.txt").decode()


def test_a_pack_never_names_another_tenant(world):
    lived(world)

    _pack, archive = make(world)
    everything = b"".join(archive.read(name) for name in archive.namelist())

    assert b"zebra" not in everything


def test_who_made_which_pack_is_an_event_of_the_tenant_with_the_digest_of_its_manifest(world):
    lived(world)

    pack, archive = make(world)
    event = Event.objects.get(kind="evidence.made")

    assert (event.tenant_id, event.person_id) == (world.child.pk, world.auditor.person_id)
    assert event.data["manifest"] == pack.written.digest == hashlib.sha256(archive.read("manifest.json")).hexdigest()
    assert event.data["windows"] == 2


CHANGES = {
    "a row": ("windows.csv", lambda text: text.replace("one", "two"), "windows.csv is not the file"),
    "who did it": (
        "events.jsonl", lambda text: text.replace('"actor": "person:', '"actor": "nobody:', 1), "not have the hash",
    ),
    "one event less": (
        "events.jsonl", lambda text: "\n".join([*text.splitlines()[:1], *text.splitlines()[2:]]), "is missing",
    ),
    "a checkpoint": (
        "checkpoints.jsonl", lambda text: text.replace('"heads_text": "{', '"heads_text": "{ ', 1), "The checkpoint of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "sentence"), CHANGES.values(), ids=CHANGES)
def test_a_changed_pack_is_found_out(world, name, change, sentence):
    lived(world)
    _pack, archive = make(world)
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as target:
        for each in archive.namelist():
            text = archive.read(each).decode()
            target.writestr(each, change(text) if each == name else text)

    found = evidence_verifier.faults(zipfile.ZipFile(changed))

    assert any(sentence in fault for fault in found), found


def test_the_program_in_the_pack_runs_alone(world, tmp_path):
    import subprocess
    import sys

    lived(world)
    _pack, archive = make(world)
    archive.extract("verify.py", tmp_path)
    (tmp_path / "pack.zip").write_bytes(archive.fp.getvalue())

    ran = subprocess.run(
        [sys.executable, "-I", "verify.py", "pack.zip"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (ran.returncode, ran.stdout.split(":")[0]) == (0, "whole")


def test_a_pack_of_a_parent_has_the_chains_below_it(world):
    lived(world)

    _pack, archive = make(world, tenant=world.parent, children=True)
    manifest = json.loads(archive.read("manifest.json"))

    assert set(manifest["tenants"].values()) == {"helios", "genomics"}
    assert str(world.child.pk) in manifest["chains"]
    assert evidence_verifier.faults(archive) == []


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"until": NOW - MINUTE}, "until"),
        ({"until": NOW + timedelta(days=2)}, "until"),
        ({"since": NOW - timedelta(days=500)}, "since"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused_and_leaves_no_event(world, values, field):
    with pytest.raises(InvalidSpec) as caught:
        make(world, **values)

    assert caught.value.field == field
    assert not Event.objects.filter(kind="evidence.made").exists()


def test_only_people_of_the_platform_make_packs(world):
    with pytest.raises(Forbidden):
        make(world, actor=world.actors[world.child.pk])

    assert not Event.objects.filter(kind="evidence.made").exists()
