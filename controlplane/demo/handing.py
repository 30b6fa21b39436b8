"""Hands estates that were played in this process over to the sandbox server, which serves them from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httpx

from provisioners.sandbox.estate import Estate

DEADLINE_S: Final = 30.0


class HandingFailed(RuntimeError):
    """The sandbox did not take an estate."""


def hand_over(estates: Mapping[str, Estate], *, url: str, token: str) -> None:
    """Give the records of estates that no server has had yet to the one at `url`. Raises `HandingFailed`."""
    with httpx.Client(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE_S, trust_env=False
    ) as client:
        for name, estate in estates.items():
            rows = [[table, key, row] for (table, key), row in estate.state.take_changes().items() if row is not None]
            try:
                answer = client.put(f"/estates/{name}/records", json={"records": rows})
            except httpx.HTTPError as error:
                msg = f"the sandbox cannot be reached: {type(error).__name__}"
                raise HandingFailed(msg) from error
            if not answer.is_success:
                msg = f"the sandbox refused the estate {name}: {answer.status_code} {answer.text[:200]}"
                raise HandingFailed(msg)
