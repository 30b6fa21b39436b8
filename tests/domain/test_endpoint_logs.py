"""The log of what serves an endpoint: asked for once, answered by a worker, without keys, gone after minutes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError

from provisioners import reading_logs
from provisioners.driver import LogLine, Ref, TransientDriverError
from tenants.errors import Conflict, Forbidden, InvalidSpec, NotVisible
from tenants.models import Endpoint, EndpointLog
from tenants.operations import endpoint_logs, endpoints
from tenants.specs import AllocationSpec, EndpointAsk, GpuAsk, RevisionAsk, UnitAsk
from tenants.states import Role
from tests import factories
from tests.conftest import NOW

pytestmark = pytest.mark.usefixtures("db")


class Driver:
    """A driver that has lines, or says why not."""

    def __init__(self, *lines: str, error: str = "") -> None:
        self.lines, self.error = lines, error

    def logs(self, ref: Ref, *, since: str, tail: int) -> Iterator[LogLine]:
        del ref, since
        if self.error:
            raise TransientDriverError(self.error)
        for line in self.lines[-tail:]:
            yield LogLine("2026-01-02T03:04:05Z", line, "vllm")


@pytest.fixture
def chat(db: None) -> Endpoint:
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace"]}))
    factories.served_model()
    spec = AllocationSpec(units=(UnitAsk(GpuAsk("H100-80GB", "1g.10gb"), vcpu=4, memory_gib=16),))
    owner = factories.actor(factories.member(tenant, Role.OWNER))
    made = endpoints.create(
        tenant=tenant, ask=EndpointAsk("chat", RevisionAsk("llama-3-1-8b"), spec), actor=owner, now=NOW
    )
    return Endpoint.objects.get(pk=made.endpoint.pk)


@pytest.fixture
def member(chat: Endpoint) -> Any:
    return factories.actor(factories.member(chat.tenant))


def answer(driver: Driver, at: datetime = NOW) -> int:
    return reading_logs.answer(lambda: at, driver_of=lambda _provider: driver)  # type: ignore[arg-type,return-value]


def ask(chat: Endpoint, actor: Any, at: datetime = NOW, tail: int = 2) -> EndpointLog:
    return endpoint_logs.ask(endpoint=chat, tail=tail, actor=actor, now=at)


def test_lines_are_asked_for_once_and_read_by_a_worker(chat: Endpoint, member: Any) -> None:
    first, second = ask(chat, member), ask(chat, member)
    assert answer(Driver("one", "two", "three")) == 1
    soon = ask(chat, member, NOW + timedelta(seconds=4))
    later = ask(chat, member, NOW + timedelta(seconds=6))

    row = endpoint_logs.read(chat, first.pk)
    assert first.pk == second.pk == soon.pk
    assert later.pk != first.pk
    assert [line["text"] for line in row.lines] == ["two", "three"]
    assert (row.lines[0]["at"], row.lines[0]["source"], row.error) == ("2026-01-02T03:04:05Z", "vllm", "")


def test_an_asking_that_somebody_else_made_and_a_worker_answered_meanwhile_is_taken(
    chat: Endpoint, member: Any, superuser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = ask(chat, member, NOW - timedelta(minutes=1))
    answer(Driver("long ago"), NOW - timedelta(minutes=1))

    def too_late(**values: Any) -> EndpointLog:  # the other one's row is committed and answered by now
        superuser.execute(
            "INSERT INTO tenants_endpointlog (id, tenant_id, endpoint_id, tail, asked_at, answered_at, lines, error) "
            "SELECT gen_random_uuid(), tenant_id, endpoint_id, tail, %s, %s, %s, '' FROM tenants_endpointlog",
            [values["asked_at"], values["asked_at"], '[{"at": "", "source": "vllm", "text": "just now"}]'],
        )
        raise IntegrityError

    monkeypatch.setattr(EndpointLog.objects, "create", too_late)

    found = ask(chat, member)

    assert found.pk != older.pk
    assert [line["text"] for line in found.lines] == ["just now"]


def test_a_provider_that_does_not_answer_is_told_in_words(chat: Endpoint, member: Any) -> None:
    asked = ask(chat, member)

    answer(Driver(error="the cluster is away"))

    row = EndpointLog.objects.get(pk=asked.pk)
    assert (row.lines, row.error) == ([], "It could not be read: the cluster is away.")
    assert ask(chat, member).pk != asked.pk


def test_what_was_read_is_gone_after_five_minutes(chat: Endpoint, member: Any) -> None:
    asked = ask(chat, member)
    answer(Driver("one"))

    answer(Driver(), NOW + timedelta(minutes=5, seconds=1))

    with pytest.raises(NotVisible):
        endpoint_logs.read(chat, asked.pk)


def test_only_members_ask_and_only_of_what_has_a_place(chat: Endpoint, member: Any) -> None:
    viewer = factories.actor(factories.member(chat.tenant, Role.VIEWER))

    with pytest.raises(Forbidden):
        ask(chat, viewer)
    with pytest.raises(InvalidSpec):
        ask(chat, member, tail=0)
    Endpoint.objects.filter(pk=chat.pk).update(boundary=None)
    with pytest.raises(Conflict, match="no place yet"):
        ask(chat, member)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("key tnt_prod_abcdefgh_0123456789abcdef", "key …"),
        ("Authorization: Bearer s3cret-and-more", "Authorization: Bearer …"),
        ("token hf_ABCDEFGHIJKLMN used", "token … used"),
        ("bell\x07 and\ttab\n", "bell  and tab"),
        ("x" * 5000, "x" * endpoint_logs.LONGEST_LINE),
    ],
)
def test_keys_and_control_characters_are_taken_out(line: str, kept: str) -> None:
    assert endpoint_logs.clean([("", "vllm", line)]) == [{"at": "", "source": "vllm", "text": kept}]


def test_the_newest_lines_are_kept_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_logs, "MOST_TEXT", 25)

    found = endpoint_logs.clean([("", "", f"line {number} ..") for number in range(10)])

    assert [line["text"] for line in found] == ["line 8 ..", "line 9 .."]
