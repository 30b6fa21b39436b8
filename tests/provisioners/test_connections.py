"""From a provider's row to its driver: what is not configured yet is said, and is nobody's bug; nothing stays open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import signals
from django.db import connection

from controlplane.labs.vsphere.control import Control
from controlplane.labs.vsphere.vcenter import VCenter
from provisioners import connections, registry, sweep, tasks
from provisioners.driver import TransientDriverError
from provisioners.passes import Engine
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.state import State
from provisioners.vsphere import driver as vsphere
from tenants.models import Provider
from tests import factories
from tests.drive import FakeClock
from tests.vsphere.ground import settings_for

pytestmark = pytest.mark.usefixtures("db")


def test_a_provider_without_its_credential_is_said_to_lack_it() -> None:
    provider = factories.provider(config={"url": "http://127.0.0.1:9", "estate": "lab"})

    with pytest.raises(TransientDriverError, match="credential 'token' is missing") as raised:
        connections.driver_of(provider)
    assert raised.value.field == "secret.token"


@pytest.mark.parametrize(
    ("kind", "config", "field"),
    [
        ("vsphere", {"url": "http://vc", "user": "u"}, "config.url"),
        ("kubernetes", {"url": "https://10.0.0.1:6443"}, "secret.token"),
        ("vsphere", {"user": "u"}, "config.url"),
        ("vsphere", {"url": "https://vc", "user": "u"}, "secret.password"),
    ],
)
def test_what_is_missing_or_cannot_be_used_is_said_with_its_field(
    kind: str, config: dict[str, str], field: str
) -> None:
    with pytest.raises(TransientDriverError) as raised:
        connections.driver_of(factories.provider(kind=kind, config=config))

    assert raised.value.field == field


def test_the_inventory_of_a_provider_without_credential_waits_and_raises_nothing() -> None:
    clock = FakeClock()
    provider = factories.provider(config={"url": "http://127.0.0.1:9", "estate": "lab"}, due_at=clock())

    made = sweep.look_at(provider.pk, engine=Engine(clock=clock))

    row = Provider.objects.get(pk=provider.pk)
    assert (made, row.breaker_failures) == (1, 1)
    assert row.due_at is not None
    assert row.due_at > clock()


# --- nothing stays open ---------------------------------------------------------------------------


class Closable(InProcessSandbox):
    """A driver that says whether it is open."""

    is_open = True

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider whose drivers say whether they are open."""

    def made(*_: object) -> Closable:
        return Closable(Estate(State(), clock=FakeClock().timestamp, url="http://sandbox.invalid"))

    monkeypatch.setattr(registry, "DRIVERS", {"sandbox": made})
    yield factories.provider()
    connections.close_all()


def test_a_driver_is_told_how_many_processes_share_its_provider(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    told: list[object] = []
    settings.TENANTRY_WORKERS, settings.TENANTRY_WORKER_SLOTS = 3, 4
    made = registry.DRIVERS["sandbox"]
    monkeypatch.setattr(registry, "DRIVERS", {"sandbox": lambda *given: (told.append(given[2]), made(*given))[1]})

    driver_of(provider)

    assert told == [13]  # and the dispatcher


def changed(provider: Provider) -> Provider:
    """Return the provider's row after somebody changed its settings."""
    Provider.objects.filter(pk=provider.pk).update(version=provider.version + 1)
    return Provider.objects.get(pk=provider.pk)


def driver_of(provider: Provider) -> Any:
    return connections.driver_of(provider)


def test_a_driver_that_is_replaced_is_closed(provider: Provider) -> None:
    before = driver_of(provider)
    assert driver_of(provider) is before

    after = driver_of(changed(provider))

    assert (before.is_open, after.is_open) == (False, True)


def test_a_driver_that_another_thread_uses_is_closed_only_after_that(provider: Provider) -> None:
    with ThreadPoolExecutor(1) as other:
        before = driver_of(provider)
        assert other.submit(driver_of, provider).result() is before
        new = changed(provider)

        after = driver_of(new)
        meanwhile = before.is_open
        assert other.submit(driver_of, new).result() is after

    assert (meanwhile, before.is_open, after.is_open) == (True, False, True)


def test_a_driver_whose_last_user_has_ended_is_closed_with_the_next_question(provider: Provider) -> None:
    found: list[Any] = []

    def listen() -> None:
        found.append(driver_of(provider))
        connection.close()

    listener = threading.Thread(target=listen)
    listener.start()
    listener.join()

    after = driver_of(changed(provider))

    assert (found[0].is_open, after.is_open) == (False, True)


@pytest.mark.parametrize("signal", [signals.worker_process_shutdown, signals.worker_shutdown], ids=["child", "worker"])
def test_a_worker_that_ends_closes_its_drivers(provider: Provider, signal: Any) -> None:
    assert tasks.log_out
    before = driver_of(provider)

    signal.send(sender=None)

    assert not before.is_open
    assert driver_of(provider) is not before


@pytest.mark.real
@pytest.mark.vcsim
def test_no_session_is_left_in_a_vcenter(
    provider: Provider, vcenter: VCenter, vcenter_control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings_for(vcenter)
    monkeypatch.setattr(registry, "DRIVERS", {"sandbox": lambda *_: vsphere.VSphereDriver(made)})
    vcenter_control.forget_calls()

    driver_of(provider).capabilities()
    driver_of(changed(provider)).capabilities()
    meanwhile = vcenter_control.calls()
    connections.close_all()

    assert (meanwhile["Login"], meanwhile["Logout"]) == (2, 1)
    assert vcenter_control.calls()["Logout"] == 2
