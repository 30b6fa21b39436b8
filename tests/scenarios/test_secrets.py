"""Secrets of every kind are planted and used; then everything that is stored, logged, sent or shown is searched.

An endpoint key, a token, a password, a provider's credential, a gateway's enrolment token and its credential, and the
key that it shows to model servers.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.db import connection
from django.test import Client
from psycopg import sql

from provisioners.dispatcher import Dispatcher, celery_publish
from provisioners.gateway import keys
from provisioners.sandbox import control, gateways
from tenants import hop_keys
from tenants.models import Endpoint, GatewayReplica, Intent, ProviderCredential, Revision
from tenants.states import PlatformRole, Role
from tests import factories
from tests.api.client import Answer, Api
from tests.drive import fresh
from tests.scenarios.story import ROOT, Story, node, story

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

PASSWORD = f"canary-password-{uuid4().hex}"
CREDENTIAL = f"canary-credential-{uuid4().hex}"
GPU = {"gpu": {"product": "H100-80GB", "profile": "1g.10gb"}, "vcpu": 2, "memory_gib": 8}
LOOKS_LIKE_A_KEY = re.compile(r"tnt_[a-z]+_[0-9A-Za-z]{6,}_[0-9A-Za-z]{20,}")


@dataclass
class Catch:
    """Everything that left the code under test, as text."""

    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, text: str) -> None:
        self.texts.append((where, text))

    def leaks(self, secrets: dict[str, str]) -> list[str]:
        """Return "kind of secret in place: around it" for each find, in any of the usual spellings."""
        return [
            f"{kind} in {where}: …{text[max(0, at - 80) : at]}"
            for kind, secret in secrets.items()
            for spelling in _spellings(secret)
            for where, text in self.texts
            if (at := text.find(spelling)) >= 0
        ]


def _spellings(secret: str) -> set[str]:
    """Return the text itself, its secret part alone, and both in hex and base64."""
    assert len(secret) >= 20
    parts = {secret} | {tail for tail in (secret.rpartition("_")[2],) if len(tail) >= 20}  # else it is by chance there
    plain = {part.encode() for part in parts}
    return parts | {each.hex() for each in plain} | {base64.b64encode(each).decode().rstrip("=")[:-1] for each in plain}


class Everything(logging.Handler):
    """Keeps all of every record: message, arguments, extras, traceback."""

    def __init__(self, catch: Catch) -> None:
        super().__init__(logging.NOTSET)
        self.catch = catch

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self.catch.add(f"the log of {record.name}", f"{record.getMessage()} {record.__dict__!r} {trace}")


@pytest.fixture
def catch() -> Iterator[Catch]:
    """Log everything there is at DEBUG, statements of the database included."""
    found = Catch()
    handler = Everything(found)
    named = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(each for each in named if isinstance(each, logging.Logger))]
    before = [(each, each.level, each.propagate, each.disabled) for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
        each.propagate, each.disabled = True, False
    logging.root.addHandler(handler)
    connection.force_debug_cursor = True
    try:
        yield found
    finally:
        connection.force_debug_cursor = False
        logging.root.removeHandler(handler)
        for each, level, propagate, disabled in before:
            each.setLevel(level)
            each.propagate, each.disabled = propagate, disabled


class Watched(Api):
    """Catches every answer but those that hand a secret over."""

    def __init__(self, token: str | None, catch: Catch) -> None:
        super().__init__(token)
        self.catch = catch

    def __call__(self, method: str, path: str, body: Any = None, *, hands_over: bool = False, **more: Any) -> Answer:  # type: ignore[override]
        answer = super().__call__(method, path, body, **more)
        if not hands_over:
            self.catch.add(f"the answer {answer.status} of {method} {path}", answer.raw.decode())
        return answer


def test_no_secret_is_stored_logged_sent_or_shown(
    catch: Catch, superuser: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = story(node("node-1"))
    told.here.clock.now = datetime.now(UTC)
    control.change_settings(told.here.estate, {"gateways": "real"})
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    owner = factories.member(tenant, Role.OWNER, who=factories.person(password=PASSWORD))
    operator = factories.person(platform=(PlatformRole.OPERATOR,), password=PASSWORD)
    secrets = {"the password": PASSWORD, "the provider's credential": CREDENTIAL}

    # Planted through the front door.
    login = Watched(None, catch).post("login", {"email": owner.email, "password": PASSWORD}, key=None, hands_over=True)
    secrets["the token"] = login.body["token"]
    me = Watched(secrets["the token"], catch)
    body = {"name": "chat", "model": "llama-3-1-8b", "unit": GPU}
    made = me.post("tenants/acme/endpoints", body, key="once", hands_over=True)
    assert made.status == 201, made
    secrets["the endpoint key"] = made.body["key"]
    again = me.post("tenants/acme/endpoints", body, key="once", hands_over=True)
    assert again.body["key"] == secrets["the endpoint key"]
    log_in = Watched(None, catch).post(
        "login", {"email": operator.email, "password": PASSWORD}, key=None, hands_over=True
    )
    secrets["the operator's token"] = log_in.body["token"]
    ops = Watched(secrets["the operator's token"], catch)
    credential = ops.put(f"providers/{told.here.provider.name}/credentials/token", {"value": CREDENTIAL})
    assert credential.status in {200, 201}, credential
    assert ProviderCredential.objects.count() == 1
    secrets["the key of the last hop"] = hop_keys.plain(Revision.objects.get())

    # Used: passes deliver an enrolment token, a gateway enrols with it and calls home.
    control.add_fault(told.here.estate, "start:namespace.gateway", "lost-answer")
    control.add_fault(told.here.estate, "start:serving.replica*", "fail")
    told.drive(lambda: bool(told.here.estate.tokens))
    uid, token = next(iter(told.here.estate.tokens.items()))
    secrets["the enrolment token"] = token.reveal()
    secrets["the gateway's credential"] = _enrol(uid, token.reveal(), secrets["the endpoint key"], catch)
    _start_a_process(told, uid, tmp_path, catch)
    told.here.estate.gateway_seen(uid, running=True, enrolled=True, pid=0, port=18500, message="")
    GatewayReplica.objects.update(reported_version=1_000_000)
    told.drive(lambda: fresh(Endpoint.objects.get()).phase == "Ready", most=90)
    assert Intent.objects.count() > 5

    # Shown: reads, and problems made with secrets in the request.
    _ask_everything(me, ops, secrets, owner.email)
    catch.add("the OpenAPI document", (ROOT / "docs" / "openapi.yaml").read_text())
    _nudge(told, catch, monkeypatch)
    _dump(superuser, catch)

    assert {where.split(" of ")[0] for where, _ in catch.texts} >= {"the log", "a task", "the argv", "the table"}
    assert len(secrets) == 8
    leaks = catch.leaks(secrets)
    assert leaks == [], "\n".join(leaks)
    assert LOOKS_LIKE_A_KEY.search((ROOT / "docs" / "openapi.yaml").read_text()) is None


def test_the_search_finds_what_is_there(catch: Catch, superuser: psycopg.Connection[Any]) -> None:
    secret = f"tnt_test_abc_{uuid4().hex}"
    factories.tenant(display_name=secret)
    factories.provider(observed={"hex": secret.encode().hex()})
    logging.getLogger("somebody").debug("said", extra={"why": secret})
    _dump(superuser, catch)

    leaks = catch.leaks({"the canary": secret})

    assert {leak.split(":")[0] for leak in leaks} >= {
        "the canary in the table of tenants_tenant", "the canary in the table of tenants_provider",
        "the canary in the log of somebody", "the canary in the log of django.db.backends",
    }  # fmt: skip


def _enrol(uid: str, token: str, key: str, catch: Catch) -> str:
    """Do what a gateway does; return its credential."""
    credential = keys.make_agent_credential(GatewayReplica.objects.get(pk=uid).pk)
    http = Client()
    headers = {"Authorization": f"Bearer {credential.plain}"}
    body = {"token": token, "gateway_uid": uid, "credential_digest": credential.digest, "version": "1"}
    calls = [
        http.post("/agent/v1/enrol", json.dumps(body), content_type="application/json"),
        http.post("/agent/v1/enrol", json.dumps(body), content_type="application/json"),
        http.post("/agent/v1/enrol", json.dumps({**body, "more": 1}), content_type="application/json"),
        http.get("/agent/v1/config?have=0&wait=0", headers=headers),
        http.get("/agent/v1/config?have=0&wait=0", headers={"Authorization": f"Bearer {credential.plain[:-1]}"}),
        http.get("/agent/v1/config?have=0&wait=0", headers={"Authorization": f"Bearer {key}"}),
        http.post("/agent/v1/report", json.dumps({"wrong": token}), content_type="application/json", headers=headers),
    ]
    assert [calls[0].status_code, calls[3].status_code] == [200, 200]
    for number, call in enumerate(calls):
        if number == 3:  # the configuration hands the key of the last hop over
            continue
        catch.add(f"the answer {call.status_code} of agent call {number}", call.content.decode())
    return credential.plain


def _start_a_process(told: Story, uid: str, folder: Path, catch: Catch) -> None:
    """Start the gateway's program as the sandbox does, and look at its arguments and its files."""
    record = told.here.estate.state.gateways[uid]
    child = gateways._spawn(
        sys.executable, folder / uid, 18499, gateways._environment(record, told.here.estate.tokens[uid]), tls=False
    )
    try:
        catch.add("the argv of the gateway", Path(f"/proc/{child.pid}/cmdline").read_text())
        catch.add("the argv of the gateway as asked for", repr(child.args))
    finally:
        child.kill()
        child.wait()
    for file in folder.rglob("*"):
        if file.is_file():
            catch.add(f"the file {file.name}", file.read_text())


def _ask_everything(me: Watched, ops: Watched, secrets: dict[str, str], email: str) -> None:
    for path in ("who", "tokens", "tenants/acme/endpoints/chat", "tenants/acme/endpoints/chat/keys", "endpoints",
                 "tenants/acme/events", "tenants/acme/notices", "tenants/acme/endpoints/chat/explain"):  # fmt: skip
        assert me.get(path).status == 200, path
    for path in ("providers", "events", "hosts", "people", "findings", "allocations", "boundaries"):
        assert ops.get(path).status == 200, path
    for secret in secrets.values():
        me.post("tokens:find", {"text": secret})
        me.post("tokens:find", {"text": secret, "more": secret})
        me.post("tenants/acme/endpoints", {"name": secret, "model": secret, "unit": secret, "more": secret})
        me.post("tenants/acme/endpoints", raw=f'{{"name": "{secret}'.encode())
        me.get("who", authorization=f"Bearer {secret}x")
        ops.put("providers/nowhere/credentials/token", {"value": secret, "more": secret})
        ops.put("providers/nowhere/credentials/token", {"value": [secret]})
    me.post("login", {"email": email, "password": f"{PASSWORD}!"}, key=None)
    me.post("login", {"email": PASSWORD, "password": [PASSWORD]}, key=None)
    me.post("tenants/acme/endpoints", {"name": "other", "model": "llama-3-1-8b", "unit": GPU}, key="once")


def _nudge(told: Story, catch: Catch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the tasks that a dispatcher would; catch what goes to the broker."""
    from controlplane.celery import app

    def send(name: str, **options: Any) -> None:
        catch.add("a task of the dispatcher", f"{name} {options!r}")

    monkeypatch.setattr(app, "send_task", send)
    Endpoint.objects.update(due_at=told.now)
    sending = Dispatcher(told.here.engine, celery_publish)
    try:
        assert sending.tick()
    finally:
        sending.stop.set()
        sending._pool.shutdown(wait=True)


def _dump(superuser: psycopg.Connection[Any], catch: Catch) -> None:
    """Read every row of every table, as text."""
    tables = superuser.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    for (table,) in tables.fetchall():
        rows = superuser.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))).fetchall()
        catch.add(f"the table of {table}", "\n".join(row[0] for row in rows))
