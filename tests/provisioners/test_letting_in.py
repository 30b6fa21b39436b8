"""People into their namespace: asked, answered by a worker, read by nobody else, ended when they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from provisioners import letting_in
from provisioners.driver import Credential, Ref, Secret, TransientDriverError
from tenants.errors import Conflict, Forbidden, NotVisible
from tenants.models import Boundary, Event, Membership, Namespace, NamespaceCredential, Person, PlatformMembership
from tenants.operations import leavers, members, namespace_access, namespaces, people
from tenants.specs import AllocationSpec, GpuAsk, NamespaceAsk, UnitAsk
from tenants.states import PlatformRole, Role
from tenants.transactions import acting
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


@dataclass
class Cluster:
    """A driver that makes tokens, or says why not."""

    error: TransientDriverError | None = None
    asked: list[tuple[str, int, str]] = field(default_factory=list)

    def credential(
        self, boundary: Ref, principal: str, *, seconds: int, name: str, command: Sequence[str]
    ) -> Credential:
        del boundary
        self.asked.append((principal, seconds, " ".join((name, *command))))
        if self.error is not None:
            raise self.error
        return Credential(Secret("t0ken"), NOW + timedelta(seconds=seconds), "tn-bd-1", "asks", Secret("holds t0ken"))


@pytest.fixture
def space(db: None) -> Namespace:
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    provider = factories.provider(kind="kubernetes", capabilities={"boundary_kinds": ["namespace"]})
    factories.host(provider)
    ask = NamespaceAsk(name="space", allocation=AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), 2, 8),)))
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    return namespaces.create(tenant=tenant, ask=ask, actor=owner, now=NOW)


def answer(cluster: Cluster, at: datetime = NOW) -> int:
    return letting_in.answer(lambda: at, driver_of=lambda _provider: cluster)  # type: ignore[arg-type,return-value]


def ask(space: Namespace, person: Person, seconds: int = 900) -> NamespaceCredential:
    return namespace_access.ask(namespace=space, seconds=seconds, actor=factories.actor(person), now=NOW)


def read(space: Namespace, row: NamespaceCredential, person: Person) -> Any:
    actor = factories.actor(person)
    with acting(actor):
        return namespace_access.read(space, row.pk, actor=actor)


def test_a_member_asks_a_worker_answers_and_only_he_reads_it(space: Namespace) -> None:
    ada, bob = factories.member(space.tenant), factories.member(space.tenant)
    cluster = Cluster()
    row = ask(space, ada)
    before = read(space, row, ada)[1]

    made = answer(cluster)

    found = read(space, row, ada)[1]
    assert (before, made) == (None, 1)
    assert (found.token, found.kubeconfig, found.static_kubeconfig) == ("t0ken", "asks", "holds t0ken")
    assert found.expires_at == NOW + timedelta(seconds=900)
    assert cluster.asked == [
        (str(ada.pk), 900, f"acme-{space.name} tenantry kube-credential {space.name} --tenant acme")
    ]
    with pytest.raises(NotVisible):
        read(space, row, bob)
    with connection.cursor() as cursor:
        cursor.execute("SELECT sealed FROM tenants_namespacecredential")
        assert b"t0ken" not in bytes(cursor.fetchone()[0])
    event = Event.objects.get(kind="namespace.credential-made")
    assert event.data["person"] == str(ada.pk)
    assert "t0ken" not in str(event.data)
    assert "t0ken" not in repr(found)


def test_a_member_who_has_a_role_on_the_platform_gets_one_too(space: Namespace) -> None:
    ada = factories.member(space.tenant)
    PlatformMembership.objects.create(person=ada, role=PlatformRole.OPERATOR.value, created_at=NOW)

    row = ask(space, ada)

    assert (answer(Cluster()), read(space, row, ada)[1].token) == (1, "t0ken")


def test_it_is_gone_after_two_minutes(space: Namespace) -> None:
    ada = factories.member(space.tenant)
    row = ask(space, ada)
    answer(Cluster())

    answer(Cluster(), NOW + timedelta(minutes=2, seconds=1))

    with pytest.raises(NotVisible):
        read(space, row, ada)


def test_an_account_that_is_still_being_made_is_waited_for_and_then_explained(space: Namespace) -> None:
    cluster = Cluster(TransientDriverError("this person has no account in the cluster, or not yet"))
    ada = factories.member(space.tenant)
    row = ask(space, ada)

    tries = [answer(cluster, NOW + timedelta(seconds=s)) for s in (1, 10, 21)]

    assert tries == [0, 0, 1]
    assert read(space, row, ada)[0].error == "this person has no account in the cluster, or not yet"


def test_who_left_between_asking_and_answering_gets_none(space: Namespace) -> None:
    ada = factories.member(space.tenant)
    row = ask(space, ada)
    Membership.objects.filter(person=ada).delete()
    cluster = Cluster()

    answer(cluster)

    row.refresh_from_db()
    assert cluster.asked == []
    assert row.error == "You have no role in this namespace's tenant."


def test_a_simulated_provider_says_so_at_once(space: Namespace) -> None:
    ada = factories.member(space.tenant)
    row = ask(space, ada)

    answer(object())  # type: ignore[arg-type]

    assert "simulated" in read(space, row, ada)[0].error


def test_an_hour_is_the_longest_and_strangers_and_early_birds_ask_for_none(space: Namespace) -> None:
    ada = factories.member(space.tenant)
    stranger = factories.person(name="Stranger")

    assert ask(space, ada, seconds=86_400).seconds == 3600
    with pytest.raises((Forbidden, NotVisible)):
        ask(space, stranger)
    Namespace.objects.update(boundary=None)
    space.refresh_from_db()
    with pytest.raises(Conflict):
        ask(space, ada)


LEAVING = {
    "removed": lambda member, boss, _ops: members.remove(membership=member, actor=boss, now=NOW),
    "demoted": lambda member, boss, _ops: members.change_role(membership=member, role=Role.VIEWER, actor=boss, now=NOW),
    "left": lambda member, _boss, ops: leavers.leave(person=member.person, actor=ops, now=NOW),
    "suspended": lambda member, _boss, ops: people.suspend(person=member.person, reason="a test", actor=ops, now=NOW),
}


@pytest.mark.parametrize("how", sorted(LEAVING))
def test_whoever_leaves_makes_workers_look_at_his_namespaces_at_once(space: Namespace, how: str) -> None:
    boss = factories.actor(factories.member(space.tenant, Role.OWNER))
    ops = factories.actor(factories.person(name="Ole", platform=(PlatformRole.OPERATOR,)))
    ada = factories.member(space.tenant)
    Namespace.objects.update(due_at=None)
    Boundary.objects.update(due_at=None)

    LEAVING[how](Membership.objects.get(person=ada), boss, ops)

    assert Namespace.objects.get().due_at == NOW
    assert Boundary.objects.get().due_at == NOW
