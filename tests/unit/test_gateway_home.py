"""The loops by which a gateway calls home."""

from __future__ import annotations

import asyncio

import pytest

from provisioners.gateway import home
from provisioners.gateway.home import Removed


def test_a_loop_that_ends_by_a_bug_begins_anew_and_a_removal_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "LONGEST_RETRY_S", 0.0)
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise Removed
        message = "a bug"
        raise LookupError(message)

    with pytest.raises(Removed):
        asyncio.run(home._for_ever(loop))

    assert runs == 3
