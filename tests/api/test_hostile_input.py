"""Bad and hostile input: 4xx that names the field, and nothing changed. Never a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenants.models import Endpoint, Event
from tests import factories
from tests.api.world import ALLOCATION, ENDPOINT, GPU

pytestmark = pytest.mark.usefixtures("db")

ADDRESS = "tenants/acme/endpoints"


@pytest.fixture
def me(api):
    tenant = factories.tenant(name="acme")
    factories.generous(tenant)
    factories.host(factories.provider(capabilities={"boundary_kinds": ["namespace", "vm"]}))
    factories.served_model()
    return api(factories.member(tenant))


def changed(**fields: Any) -> dict[str, Any]:
    return {**ENDPOINT, **fields}


BODIES: list[tuple[str, Any, str]] = [
    ("unknown field", changed(colour="red"), "colour"),
    ("unknown field deep down", changed(unit={**GPU, "gpu": {"product": "H100-80GB", "x": 1}}), "unit.gpu.x"),
    ("missing field", {"name": "a"}, "model"),
    ("number for text", changed(name=7), "name"),
    ("text for number", changed(replicas="2"), "replicas"),
    ("float for number", changed(replicas=1.5), "replicas"),
    ("boolean for number", changed(replicas=True), "replicas"),
    ("text for boolean", {"name": "x", "units": [GPU], "gang": "yes"}, "gang"),
    ("list for object", changed(unit=[GPU]), "unit"),
    ("null for text", changed(name=None), "name"),
    ("negative number", changed(replicas=-1), "replicas"),
    ("huge number", changed(unit={**GPU, "vcpu": 2**40}), "unit.vcpu"),
    ("number beyond the column", changed(term={"duration_s": 2**52}), "term.duration_s"),
    ("control character", changed(name="a\u0000b"), "name"),
    ("control character in free text", changed(description="bell\u0007"), "description"),
    ("direction mark", changed(description="abc\u202edef"), "description"),
    ("look-alike letters", changed(name="аcme"), "name"),
    ("upper case", changed(name="Chat"), "name"),
    ("name with a dot", changed(name="a.b"), "name"),
    ("name that is a path", changed(name="../x"), "name"),
    ("name of 41 characters", changed(name="a" * 41), "name"),
    ("name that ends in a newline", changed(name="chat\n"), "name"),
    ("empty name", changed(name=""), "name"),
    ("over-long text", changed(description="x" * 501), "description"),
    ("too many labels", changed(labels={f"k{i}": "v" for i in range(33)}), "labels"),
    ("label with a space", changed(labels={"a b": "c"}), "labels.a b"),
    ("label value of another type", changed(labels={"a": 1}), "labels.a"),
    ("engine argument off the list", changed(arguments={"trust_remote_code": True}), "arguments.trust_remote_code"),
    ("engine argument of the wrong type", changed(arguments={"max_model_len": "1;rm"}), "arguments.max_model_len"),
    ("moment without a zone", changed(term={"not_after": "2027-01-01T00:00:00"}), "term.not_after"),
    ("moment as a number", changed(term={"not_after": 1893456000}), "term.not_after"),
    ("moment far away", changed(term={"not_after": "9999-12-31T23:59:59Z"}), "term.not_after"),
    ("unknown enum", changed(on_shortage="maybe"), "on_shortage"),
    ("unknown GPU", changed(unit={**GPU, "gpu": {"product": "H999"}}), "units[0].gpu.product"),
    ("unknown profile", changed(unit={**GPU, "gpu": {**GPU["gpu"], "profile": "9g.1gb"}}), "units[0].gpu.profile"),
    ("kind that is not offered", changed(where={"kind": "cluster"}), "where.kind"),
    ("unknown model", changed(model="no-such-model"), "model"),
]  # fmt: skip


def test_a_bad_body_names_its_field_and_changes_nothing(me):
    before = Event.objects.count()
    wrong = []

    for what, body, field in BODIES:
        answer = me.post(ADDRESS if what != "text for boolean" else "tenants/acme/namespaces", body)
        named = [each["field"] for each in answer.body.get("errors", []) if each["reason"]]
        if answer.status != 400 or field not in named:
            wrong.append(f"{what}: {answer}")

    assert wrong == []
    assert Endpoint.objects.count() == 0
    assert Event.objects.count() == before


RAW: list[tuple[str, bytes, int, str]] = [
    ("no JSON", b"{", 400, "invalid"),
    ("empty", b"", 400, "invalid"),
    ("a bare word", b"NaN", 400, "invalid"),
    ("infinity", b'{"name": Infinity}', 400, "invalid"),
    ("a number that overflows", b'{"replicas": 1e999}', 400, "invalid"),
    ("an endless integer", b'{"replicas": ' + b"9" * 5000 + b"}", 400, "invalid"),
    ("duplicate keys", b'{"name": "a", "name": "b"}', 400, "invalid"),
    ("bad UTF-8", b'{"name": "\xff\xfe"}', 400, "invalid"),
    ("a byte order mark", b'\xef\xbb\xbf{"name": "a"}', 400, "invalid"),
    ("half a surrogate pair", b'{"name": "\\ud800"}', 400, "invalid"),
    ("a list", b"[]", 400, "invalid"),
    ("a text", b'"chat"', 400, "invalid"),
    ("null", b"null", 400, "invalid"),
    ("deep lists", b'{"name": ' + b"[" * 100 + b"]" * 100 + b"}", 400, "invalid"),
    ("very deep lists", b"[" * 100_000, 400, "invalid"),
    ("deep objects", b'{"a":' * 20_000 + b"1" + b"}" * 20_000, 400, "invalid"),
    ("brackets within text are no depth", json.dumps({"name": "[" * 200}).encode(), 400, "invalid"),
    ("a body of more than 1 MiB", b'"' + b"x" * 1_048_576 + b'"', 413, "too-large"),
]  # fmt: skip


def test_a_body_that_is_not_plain_json_is_refused(me):
    wrong = []

    for what, raw, status, code in RAW:
        answer = me("POST", ADDRESS, raw=raw)
        if (answer.status, answer.body["code"]) != (status, code):
            wrong.append(f"{what}: {answer}")

    assert wrong == []
    assert Endpoint.objects.count() == 0


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", ""]
)
def test_another_content_type_is_415(me, kind):
    answer = me.post(ADDRESS, ENDPOINT, content_type=kind)

    assert (answer.status, answer.body["errors"][0]["field"]) == (415, "Content-Type")


QUERIES = [
    ("?colour=red", "colour"),
    ("?limit=0", "limit"),
    ("?limit=201", "limit"),
    ("?limit=ten", "limit"),
    ("?limit=1&limit=2", "limit"),
    ("?cursor=%00", "cursor"),
    ("?cursor=nonsense", "cursor"),
    ("?cursor=99999999999999999999-0", "cursor"),
    ("?phase=Sleeping", "phase"),
    ("?label=a%20b", "label[0]"),
    ("?name=%00", "name"),
    ("?live=maybe", "live"),
    ("?%00=1", "\u0000"),
    ("?order=random", "order"),
]


def test_a_bad_query_parameter_is_named(me):
    for query, field in QUERIES:
        answer = me.get(f"endpoints{query}")

        assert (answer.status, answer.body["errors"][0]["field"]) == (400, field), (query, answer)


def test_a_page_is_at_most_200_rows_and_unknown_options_of_a_change_are_refused(me):
    assert me.get("endpoints?limit=200").status == 200
    assert me.post(f"{ADDRESS}?plan=perhaps", ENDPOINT).body["errors"][0]["field"] == "plan"
    assert me.post(f"{ADDRESS}?wait=61", ENDPOINT).body["errors"][0]["field"] == "wait"
    assert me.post(f"{ADDRESS}?wait=1&for=Happy", ENDPOINT).body["errors"][0]["field"] == "for"
    assert me.post(f"{ADDRESS}?force=1", ENDPOINT).body["errors"][0]["field"] == "force"
    assert Endpoint.objects.count() == 0


PATHS = [
    "tenants/acme%00/endpoints",
    "tenants/acme/endpoints/%00",
    "tenants/acme/endpoints/%ff%fe",
    "tenants/acme/endpoints/" + "a" * 300,
    "tenants/acme/endpoints/..%2f..%2fetc",
    "tenants/acme/endpoints/'; DROP TABLE tenants_tenant; --",
    "tenants/acme/endpoints/%E2%80%AE",
    "tenants/00000000-0000-0000-0000-000000000000/endpoints",
    "tenants/ACME/endpoints",
    "objects/zz-0000",
    "objects/ep-",
]


def test_a_hostile_path_is_404(me):
    for path in PATHS:
        answer = me.get(path)

        assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json"), (path, answer)


def test_a_bad_idempotency_key_is_refused(me):
    for key, status in (("", 400), (None, 428), ("x" * 201, 400), ("a b", 400), ("\x7f", 400), ("ä", 400)):
        answer = me.post(ADDRESS, ENDPOINT, key=key)

        assert (answer.status, answer.body["errors"][0]["field"]) == (status, "Idempotency-Key"), (key, answer)
    assert Endpoint.objects.count() == 0


def test_a_bad_if_match_is_refused(me):
    me.post(ADDRESS, ENDPOINT)

    for tag in ("3", 'W/"1"', '"x"', '"0"', '"1", "2"', '"99999999999"'):
        answer = me.patch(f"{ADDRESS}/fresh", {"description": "x"}, if_match=tag)
        assert (answer.status, answer.body["errors"][0]["field"]) == (412, "If-Match"), tag


def test_a_batch_names_the_entry_at_fault(me):
    good = {**ALLOCATION, "name": "one"}
    bad = {**ALLOCATION, "name": "two", "units": [{**GPU, "gpu": {"product": "H100-80GB", "profile": "9g.9gb"}}]}

    answer = me.post("tenants/acme/allocations:batch", {"allocations": [good, bad]})

    assert answer.status == 400
    assert answer.body["errors"][0]["field"] == "allocations[1].units[0].gpu.profile"


def test_an_operation_without_a_body_takes_none(me):
    me.post(ADDRESS, ENDPOINT)

    answer = me.delete(f"{ADDRESS}/fresh", {"force": True}, if_match='"1"')
    assert answer.status == 400
    assert Endpoint.objects.get().deletion_requested_at is None


@pytest.mark.parametrize("word", ["0.5", "1767225600", "2026-01-01"])
def test_a_moment_is_written_out_and_never_a_number(api, word: str) -> None:
    tenant = factories.tenant(name="acme")
    me = api(factories.member(tenant))

    answer = me.get(f"tenants/acme/events?until={word}")

    assert answer.status in {400, 422}
    assert "until" in answer.raw.decode()
