"""Each story is told three times: undisturbed, killed before each commit of the workers, killed after it."""

from __future__ import annotations

import pytest

from tests.scenarios.story import Deaths

SLOW = [pytest.mark.slow]


@pytest.fixture(
    params=[
        "as designed",
        pytest.param("killed before each commit", marks=SLOW),
        pytest.param("killed after each commit", marks=SLOW),
    ]
)
def deaths(request: pytest.FixtureRequest) -> Deaths | None:
    """Return who dies, None where nobody does."""
    if request.param == "as designed":
        return None
    return Deaths(before="before" in request.param)
