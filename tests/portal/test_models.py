"""Models: what a tenant may use, where it fits now and how exactly it is told; and the operators' list."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.design.moments import absolute
from frontend.kernel import room
from tenants.models import Allocation, Event, GpuDevice, Host, ServedModel, Tenant, Unit
from tenants.states import PlatformRole, StockVisibility
from tests import factories
from tests.conftest import NOW
from tests.portal.world import CANARY, build

pytestmark = pytest.mark.usefixtures("db")

COMMIT = "c" * 40


@pytest.fixture
def world(db):
    return build()


@pytest.fixture
def operator(db):
    return factories.person(platform=(PlatformRole.OPERATOR,))


@pytest.fixture
def auditor(db):
    return factories.person(platform=(PlatformRole.AUDITOR,))


def offered(name: str, repository: str, **values: object) -> ServedModel:
    return ServedModel.objects.create(name=name, repository=repository, commit=COMMIT, created_at=NOW, **values)


def page(browser, query: str = "") -> str:
    answer = browser.get(f"/t/acme/models{query}")
    assert answer.status_code == 200
    return answer.content.decode()


def rows(browser, query: str = "") -> dict[str, dict[str, object]]:
    answer = browser.get(f"/t/acme/models?format=json{query}")
    return {row["name"]: row for row in json.loads(answer.content)}


# --- room ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "mask", "count"),
    [("1g.10gb", 0xFF, 7), ("2g.20gb", 0xFF, 3), ("3g.40gb", 0xFF, 2), ("", 0xFF, 1), ("", 0x7F, 0),
     ("3g.40gb", 0xF0, 1), ("1g.10gb+me", 0xFF, 1)],
)  # fmt: skip
def test_windows_that_fit_side_by_side_are_counted(profile, mask, count):
    assert room.windows_in("H100-80GB", profile, mask) == count


def test_a_count_is_told_as_exactly_as_the_tenant_may_know():
    told = {level.value: [room.words(n, level.value) for n in (0, 3, 12, 40)] for level in StockVisibility}

    assert told == {
        "exact": ["0 free", "3 free", "12 free", "40 free"],
        "bands": ["none free", "a few free", "some free", "plenty free"],
        "yes-no": ["none free", "there is room", "there is room", "there is room"],
    }


# --- a tenant's page -------------------------------------------------------------------------------------


def test_a_card_says_size_room_speed_and_price_and_deploy_opens_new_with_the_model(browse, world):
    text = page(browse(world.acme.member))

    assert "llama-3-1-8b" in text
    assert "H100-80GB 3g.40gb" in text
    assert "some free" in text
    assert "Tokens/s, estimated" in text
    assert 'href="/t/acme/new/endpoint?model=llama-3-1-8b&amp;users=4&amp;context=8192"' in text
    assert "gated by its publisher" in text


def test_deploy_leads_to_new_with_the_model_chosen(browse, world):
    offered("qwen3-8b", "Qwen/Qwen3-8B")
    browser = browse(world.acme.member)

    answer = browser.get("/t/acme/new/endpoint?model=qwen3-8b&users=4&context=8192").content.decode()

    assert 'value="qwen3-8b" checked' in answer


def test_exact_stock_is_a_number_and_operators_always_see_it(browse, world, operator):
    Tenant.objects.filter(pk=world.acme.tenant.pk).update(stock_visibility="exact")
    exact = rows(browse(world.acme.member))["llama-3-1-8b"]["free"]
    Tenant.objects.filter(pk=world.acme.tenant.pk).update(stock_visibility="yes-no")

    assert exact.endswith(" free")
    assert exact.split()[0].isdigit()
    assert rows(browse(world.acme.member))["llama-3-1-8b"]["free"] == "there is room"
    assert rows(browse(operator))["llama-3-1-8b"]["free"] == exact


@pytest.mark.no_audit
def test_what_is_full_waits_and_what_is_too_big_says_why(browse, world):
    offered("deepseek-v3", "deepseek-ai/DeepSeek-V3")
    offered("homemade", "acme/homemade")
    GpuDevice.objects.update(free=0)
    Host.objects.update(empty_gpus=0)

    found = rows(browse(world.acme.member))
    text = page(browse(world.acme.member))

    assert {name: row["verdict"] for name, row in found.items()} == {
        "llama-3-1-8b": "wait", "deepseek-v3": "never", "homemade": "unknown",
    }  # fmt: skip
    assert "none is free now. Ask, and it starts by itself when one is." in text
    assert "Nothing here fits." in text
    assert text.count("?model=") == 1


@pytest.mark.no_audit
def test_what_waits_names_ones_own_that_ends_next_and_nobody_elses(browse, world):
    GpuDevice.objects.update(free=0)
    Host.objects.update(empty_gpus=0)
    later = timezone.now() + timedelta(days=9)
    Allocation.objects.filter(tenant=world.foreign.tenant).update(expires_at=later - timedelta(days=8))
    Allocation.objects.filter(tenant=world.acme.tenant, name="box").update(expires_at=later)
    browser = browse(world.acme.member)
    Unit.objects.filter(allocation__name="box").update(profile="3g.40gb")

    text = page(browser)

    assert f"Your box, of such a size, ends {absolute(later)}." in text
    Unit.objects.filter(allocation__name="box").update(profile="1g.10gb")
    assert "of such a size" not in page(browser)


def test_where_no_gpu_is_open_it_says_so(browse, world):
    GpuDevice.objects.update(placeable=False)

    assert "No GPU is open here at the moment." in page(browse(world.acme.member))


def test_more_users_choose_a_larger_size_and_filters_stand_in_the_address(browse, world):
    browser = browse(world.acme.member)

    few, many = rows(browser, "&users=1&context=2048"), rows(browser, "&users=64&context=32768")

    assert few["llama-3-1-8b"]["size"] == "H100-80GB 1g.20gb"
    assert many["llama-3-1-8b"]["size"] != few["llama-3-1-8b"]["size"]
    assert "No model matches these filters" in page(browser, "?q=zzz")
    assert rows(browser, "&fits=never") == {}


def test_policy_leaves_models_out_and_says_so(browse, world):
    offered("qwen3-8b", "Qwen/Qwen3-8B")
    Tenant.objects.filter(pk=world.acme.tenant.pk).update(policy={"models": ["qwen3-8b"]})

    text = page(browse(world.acme.member))

    assert "llama-3-1-8b" not in text
    assert "1 more model is offered, but the policy of acme leaves it out." in text


def test_viewers_look_and_do_not_deploy_and_strangers_see_nothing(browse, world):
    assert "?model=" not in page(browse(world.acme.viewer))
    assert browse(world.foreign.owner).get("/t/acme/models").status_code == 404
    assert browse(None).get("/t/acme/models").status_code == 302
    assert CANARY not in page(browse(world.acme.member))


def test_without_a_model_the_page_says_who_offers_them(browse, world):
    ServedModel.objects.update(enabled=False)

    assert "No model may be used here" in page(browse(world.acme.member))


def test_the_number_of_statements_does_not_grow_with_models(browse, world):
    counts = []
    for upto in (10, 40):
        for number in range(ServedModel.objects.count(), upto):
            offered(f"m{number}", "Qwen/Qwen3-8B")
        browser = browse(world.acme.member)
        page(browser)
        with CaptureQueriesContext(connection) as seen:
            page(browser)
        counts.append(len(seen))

    assert counts[0] == counts[1]


def test_the_list_is_a_file_as_well(browse, world):
    answer = browse(world.acme.member).get("/t/acme/models?format=csv")
    row = next(csv.DictReader(io.StringIO(answer.content.decode())))

    assert (row["name"], row["repository"], row["verdict"]) == (
        "llama-3-1-8b", "meta-llama/Llama-3.1-8B-Instruct", "now",
    )  # fmt: skip


# --- the operators' list ---------------------------------------------------------------------------------


def test_an_operator_offers_a_pinned_model_and_tenants_see_it(browse, world, operator):
    answer = browse(operator).post(
        "/ops/offer-model",
        {"name": "qwen3-8b", "repository": "Qwen/Qwen3-8B", "commit": "D" * 40, "licence": "apache-2.0",
         "quantisation": "native"},
    )  # fmt: skip

    row = ServedModel.objects.get(name="qwen3-8b")
    assert (answer.status_code, answer["Location"]) == (302, "/ops/models")
    assert (row.repository, row.commit, row.licence, row.enabled) == ("Qwen/Qwen3-8B", "d" * 40, "apache-2.0", True)
    assert Event.objects.filter(kind="served-model.created", actor=f"person:{operator.pk}").count() == 1
    assert "qwen3-8b" in page(browse(world.acme.member))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("commit", "main", "Pin a full commit"),
        ("repository", "../etc", "Give owner/name of a repository."),
        ("name", "Big Model", "Use a DNS label"),
        ("name", "llama-3-1-8b", "A served model llama-3-1-8b exists already."),
    ],
)
def test_a_fault_stands_at_its_field_and_nothing_is_lost(browse, world, operator, field, value, sentence):
    given = {"name": "fresh", "repository": "Qwen/Qwen3-8B", "commit": COMMIT, "quantisation": "native", field: value}

    answer = browse(operator).post("/ops/offer-model", given)
    text = answer.content.decode()

    assert answer.status_code in {409, 422}
    assert sentence in text.split(f'id="{field}-error"')[1].split("</p>")[0]
    assert f'value="{value}"' in text
    assert ServedModel.objects.count() == 1


def test_retiring_says_who_goes_on_and_leaves_them_alone(browse, world, operator):
    browser, row = browse(operator), ServedModel.objects.get()

    text = browser.get(f"/ops/models/{row.name}").content.decode()
    answer = browser.post(f"/ops/models/{row.name}/change", {"version": row.version, "do": "retire"})

    assert "2 endpoints go on serving it" in text
    assert answer.status_code == 302
    assert ServedModel.objects.get().enabled is False
    assert "llama-3-1-8b" not in page(browse(world.acme.member))
    assert browse(world.acme.member).get("/t/acme/endpoints/chat").status_code == 200


def test_a_retired_model_is_offered_again_and_a_licence_corrected(browse, world, operator):
    browser, row = browse(operator), ServedModel.objects.get()

    browser.post(f"/ops/models/{row.name}/change", {"version": row.version, "do": "retire"})
    browser.post(f"/ops/models/{row.name}/change", {"version": row.version + 1, "do": "offer"})
    browser.post(f"/ops/models/{row.name}/change", {"version": row.version + 2, "licence": "llama3.1"})
    stale = browser.post(f"/ops/models/{row.name}/change", {"version": row.version, "licence": "other"})

    row.refresh_from_db()
    assert (row.enabled, row.licence) == (True, "llama3.1")
    assert stale.status_code == 412


def test_auditors_read_the_list_and_members_do_not(browse, world, auditor):
    browser = browse(auditor)

    text = browser.get("/ops/models").content.decode()

    assert "llama-3-1-8b" in text
    assert "Offer it" not in text
    assert browser.get("/ops/models/llama-3-1-8b").status_code == 200
    assert browser.post("/ops/offer-model", {}).status_code == 403
    assert browser.post("/ops/models/llama-3-1-8b/change", {"do": "retire"}).status_code == 403
    assert browse(world.acme.owner).get("/ops/models").status_code == 403
    assert browser.get("/ops/models/none").status_code == 404


def test_the_operators_list_filters_and_exports(browse, world, operator):
    offered("old", "acme/old", enabled=False)
    browser = browse(operator)

    retired = json.loads(browser.get("/ops/models?state=retired&format=json").content)
    found = json.loads(browser.get("/ops/models?q=llama&format=json").content)

    assert [row["name"] for row in retired] == ["old"]
    assert [(row["name"], row["endpoints"]) for row in found] == [("llama-3-1-8b", 2)]
