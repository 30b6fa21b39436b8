"""A provider that is busy and says when to come again is asked then, however often it was busy before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from provisioners.driver import TransientDriverError
from provisioners.outcome import ProviderKind
from provisioners.passes import Engine, Prepared, Seen

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Machines(ProviderKind):
    word = "machine"


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize(("asked", "expected"), [(2.0, 2), (None, 60)])
def test_a_busy_provider_is_asked_again_when_it_says_and_a_broken_one_ever_more_slowly(asked, expected):
    row = SimpleNamespace(pk=uuid4(), failures=9, conditions=[], generation=1)
    engine = Engine(jitter=lambda: 1.0)
    error = TransientDriverError("16 machines are being made; this one waits", retry_after_s=asked)

    due_at = Machines()._failed(row, error, Prepared(deleting=True), Seen(), engine, now=NOW)

    assert due_at == NOW + timedelta(seconds=expected)
    assert row.conditions[0]["message"] == "16 machines are being made; this one waits"
