"""A client that speaks HTTP to the API, and the check that every statement of a request runs inside `acting`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from django.test import Client

from tenants import tokens
from tenants.models import Person, ServiceAccount
from tenants.transactions import acting, current_actor
from tests import factories
from tests.conftest import NOW

FREE = ("SELECT set_config", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "SET ", "SELECT pg_sleep")


class Answer:
    """One answer, parsed."""

    def __init__(self, response: Any, statements: list[str]) -> None:
        self.status: int = response.status_code
        self.headers = response.headers
        self.raw: bytes = response.content if not response.streaming else b""
        self.statements = statements

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    def __repr__(self) -> str:
        return f"{self.status} {self.raw[:2000].decode(errors='replace')}"


class Api:
    """Calls as one principal, by token."""

    def __init__(self, token: str | None) -> None:
        self.client = Client(raise_request_exception=False)
        self.token = token

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        key: str | None = "new",
        **headers: str,
    ) -> Answer:
        extra = {f"HTTP_{name.upper()}": value for name, value in headers.items() if name != "content_type"}
        if self.token is not None:
            extra.setdefault("HTTP_AUTHORIZATION", f"Bearer {self.token}")
        if method == "POST" and key is not None:
            extra["HTTP_IDEMPOTENCY_KEY"] = uuid4().hex if key == "new" else key
        data = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        with watched() as statements:
            response = self.client.generic(
                method,
                path if path.startswith("/") else f"/api/v1/{path}",
                data,
                content_type=headers.get("content_type", "application/json"),
                **extra,
            )
        return Answer(response, statements)

    def get(self, path: str, **headers: str) -> Answer:
        return self("GET", path, **headers)

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self("POST", path, body, **options)

    def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self("PUT", path, body, **options)

    def patch(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self("PATCH", path, body, **options)

    def delete(self, path: str, body: Any = None, **options: Any) -> Answer:
        return self("DELETE", path, body, **options)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the statements of a request; fail for one outside a read block or an operation."""
    from django.db import connection

    seen: list[str] = []
    outside: list[str] = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith(FREE):
            seen.append(sql)
            if current_actor() is None:
                outside.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(look):
        yield seen
    assert outside == [], "statements outside a read block or an operation"


def token_of(who: Person | ServiceAccount, **options: Any) -> str:
    """Issue a token without going through REST."""
    owner = who if isinstance(who, Person) else who.owner
    actor = factories.actor(owner)
    with acting(actor):
        issued = tokens.issue_row(
            name="test",
            person=who if isinstance(who, Person) else None,
            service_account=who if isinstance(who, ServiceAccount) else None,
            actor=actor,
            now=NOW,
            **options,
        )
    return issued.plain
