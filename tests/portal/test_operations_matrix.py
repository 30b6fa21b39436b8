"""Every address of models, system, evidence and kept mail, with each method, by whoever may ask; and the form token."""

from __future__ import annotations

from uuid import UUID

import pytest
from django.test import Client

from frontend.addresses_operations import OPERATIONS
from frontend.kernel.page import routes
from tenants.models import Event, FitCorrection, Request, ServedModel, SystemReport
from tenants.states import PlatformRole
from tests import factories
from tests.conftest import NOW
from tests.portal.world import CANARY, World, build

pytestmark = pytest.mark.usefixtures("db")

LEARNT = UUID(int=42)
ALL = [(path, method, declared) for path, declared in routes(OPERATIONS) if declared for method in declared.methods]
OPERATORS_ONLY = {
    "served-models.create", "served-models.update", "fit-corrections.reset", "model-stages.create",
    "model-stages.remove",
}  # fmt: skip
WITHOUT_A_BODY = {"fit-corrections.reset": 400, "model-stages.create": 404, "model-stages.remove": 404}
"""What an operator is told who names no version, no provider and no files; of the others it is 422."""


def filled(path: str) -> str:
    values = {"<str:tenant>": "acme", "<str:name>": "llama-3-1-8b", "<str:correction>": str(LEARNT)}
    for old, new in values.items():
        path = path.replace(old, new)
    return f"/{path}"


def counts() -> tuple[object, ...]:
    rows = tuple(ServedModel.objects.order_by("pk").values_list("pk", "version", "enabled"))
    asked = Request.objects.count(), FitCorrection.objects.filter(reset_at__isnull=True).count()
    return rows, SystemReport.objects.count(), Event.objects.count(), asked


@pytest.fixture
def world(db) -> World:
    made = build()
    FitCorrection.objects.create(id=LEARNT, model=ServedModel.objects.get(), product="H100-80GB", created_at=NOW)
    return made


def expected(who: str, path: str, operation: str) -> set[int]:
    """Return the statuses with which a request without a body is answered."""
    if who == "visitor":
        return {302}
    if path == "outbox":
        return {404}  # this is no demo
    if operation == "requests.create_model":
        return {404} if who == "stranger" else {200, 422} if who in {"member", "owner"} else {403}
    if path.startswith("t/"):
        return {404} if who == "stranger" else {200}
    if who in {"stranger", "member", "owner"}:
        return {403}
    if operation in OPERATORS_ONLY:
        return {WITHOUT_A_BODY.get(operation, 422)} if who == "operator" else {403}
    return {200, 302} if operation == "system.check" else {422} if operation == "evidence.make" else {200}


@pytest.mark.slow
def test_each_address_answers_each_person_as_declared(world, browse):
    people = {
        "visitor": None,
        "stranger": world.foreign.owner,
        "member": world.acme.member,
        "owner": world.acme.owner,
        **{role.value: factories.person(platform=(role,)) for role in PlatformRole},
    }
    wrong = []

    for who, person in people.items():
        browser = browse(person)
        for path, method, declared in ALL:
            before = counts()
            status = browser.generic(method, filled(path)).status_code
            if status not in expected(who, path, declared.operation_id):
                wrong.append((who, method, path, status))
            if status in {302, 403, 404} and declared.operation_id != "system.check" and counts() != before:
                wrong.append((who, method, path, "changed something"))

    assert wrong == []
    assert len(ALL) == 18


def test_a_method_that_is_not_declared_is_refused(world, browse):
    browser = browse(factories.person(platform=(PlatformRole.OPERATOR,)))
    declared = {(path, method) for path, method, _ in ALL}

    statuses = {
        (path, method): browser.generic(method, filled(path)).status_code
        for path, _, _ in ALL
        for method in ("GET", "POST", "PUT", "DELETE")
        if (path, method) not in declared
    }

    assert set(statuses.values()) == {405}


def test_every_change_needs_the_form_token(world):
    browser = Client(headers={"accept": "text/html"}, enforce_csrf_checks=True)
    browser.force_login(factories.person(platform=(PlatformRole.OPERATOR,)), backend="tenants.login.PersonBackend")
    before = counts()

    statuses = [browser.post(filled(path)).status_code for path, method, _ in ALL if method == "POST"]

    assert statuses == [403] * 8
    assert counts() == before


def test_no_page_of_a_member_names_the_foreign_tenant(world, browse):
    browser = browse(world.acme.member)

    found = [
        path for path, method, _ in ALL if method == "GET" and CANARY in browser.get(filled(path)).content.decode()
    ]

    assert found == []
