"""From a provider's row to its driver: what is not configured yet is said, and is nobody's bug."""

from __future__ import annotations

import pytest

from provisioners import connections, sweep
from provisioners.driver import TransientDriverError
from provisioners.passes import Engine
from tenants.models import Provider
from tests import factories
from tests.drive import FakeClock

pytestmark = pytest.mark.usefixtures("db")


def test_a_provider_without_its_credential_is_said_to_lack_it() -> None:
    provider = factories.provider(config={"url": "http://127.0.0.1:9", "estate": "lab"})

    with pytest.raises(TransientDriverError, match="credential 'token' is missing"):
        connections.driver_of(provider)


def test_the_inventory_of_a_provider_without_credential_waits_and_raises_nothing() -> None:
    clock = FakeClock()
    provider = factories.provider(config={"url": "http://127.0.0.1:9", "estate": "lab"}, due_at=clock())

    made = sweep.look_at(provider.pk, engine=Engine(clock=clock))

    row = Provider.objects.get(pk=provider.pk)
    assert (made, row.breaker_failures) == (1, 1)
    assert row.due_at is not None
    assert row.due_at > clock()
