"""The API's fixtures."""

from __future__ import annotations

from typing import Any

import pytest

from tenants.models import Person, ServiceAccount
from tests.api.client import Api, token_of


@pytest.fixture
def api(db: None) -> Any:
    """Make a caller: `api(person)`, `api(service_account)`, `api(None)` for anonymous."""

    def make(who: Person | ServiceAccount | None, **options: Any) -> Api:
        return Api(token_of(who, **options) if who is not None else None)

    return make
