"""Fixtures of the portal: a browser that is logged in as somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.db import connection
from django.test import Client

from tenants.models import Person


@pytest.fixture
def browse(db: None, settings) -> Iterator[Callable[[Person | None], Client]]:
    """Make a browser: `browse(person)`, `browse(None)` for a visitor; pages run as cp_app, as they do in life."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

    def make(person: Person | None) -> Client:
        client = Client(headers={"accept": "text/html"}, raise_request_exception=False)
        if person is not None:
            client.force_login(person, backend="tenants.login.PersonBackend")
        return client

    yield make
    connection.close()
