"""From New to an answer through Django's client: presets, previews, problems at fields, keys shown once, plans."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.utils import timezone

from frontend.kernel import words
from provisioners import steps
from tenants.models import Allocation, Endpoint, EndpointKey, Machine, Quota
from tests import factories
from tests.api.client import watched
from tests.portal.world import SSH, World, build

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]
NEW = "/t/acme/new/endpoint"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def mia(world, browse):
    return browse(world.acme.member)


def text(answer) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.content.decode()))


def test_everything_is_filled_in_and_one_submit_deploys(mia):
    shown = mia.get(NEW)
    preset = re.search(r'name="name"[^>]*value="([^"]+)"', shown.content.decode())

    answer = mia.post(NEW, {})

    made = Endpoint.objects.get(name=preset[1])
    assert "Fits now." in text(shown)
    assert (answer.status_code, answer["Location"]) == (302, f"/t/acme/endpoints/{made.name}")
    assert made.managed_by == "portal"
    assert made.allocation.duration_s == 30 * 86400
    assert made.revision.arguments == {"max_model_len": 8192, "max_num_seqs": 4}


def test_more_users_choose_a_larger_size_and_say_why_not_smaller(mia):
    few = text(mia.get(NEW, {"users": 1, "context": 2048}, headers={"hx-request": "true"}))
    many = text(mia.get(NEW, {"users": 64, "context": 8192}, headers={"hx-request": "true"}))

    assert re.search(r"H100-80GB \S+ Cheapest that fits", few)
    assert re.search(r"H100-80GB Cheapest that fits", many)
    assert "Why not smaller:" in many


def test_a_preview_changes_nothing(mia):
    before = (Endpoint.objects.count(), Allocation.objects.count(), EndpointKey.objects.count())

    assert mia.get(NEW).status_code == 200

    assert (Endpoint.objects.count(), Allocation.objects.count(), EndpointKey.objects.count()) == before


def test_beyond_a_limit_the_screen_names_who_decides_and_the_deploy_files_the_request(mia):
    Quota.objects.filter(tenant__name="acme", dimension="gpu.H100-80GB.slices").update(amount=6)

    shown = text(mia.get(NEW, {"users": 4}))
    answer = mia.post(NEW, {"users": 4, "name": "big"})

    assert "Needs a decision" in shown
    assert "an owner of the tenant" in shown
    assert answer.status_code == 302
    assert Endpoint.objects.get(name="big").phase == "AwaitingApproval"
    assert "Waits for a decision" in text(mia.get("/t/acme/endpoints/big"))


def test_a_name_that_is_taken_comes_back_at_its_field_with_everything_else_kept(mia):
    answer = mia.post(NEW, {"name": "chat", "users": 7})

    body = answer.content.decode()
    assert answer.status_code == 409
    assert re.search(r'data-field="name".*?field-error.*?chat exists already', body, re.DOTALL)
    assert re.search(r'name="users" value="7"', body)


def test_a_bad_name_is_422_at_its_field(mia):
    answer = mia.post(NEW, {"name": "Not A Name"})

    assert answer.status_code == 422
    assert re.search(r'data-field="name".*?field-error.*?Use a-z', answer.content.decode(), re.DOTALL)
    assert not Endpoint.objects.filter(name="Not A Name").exists()


def test_the_first_key_is_shown_once_and_only_to_the_browser_that_made_it(mia, world, browse):
    address = mia.post(NEW, {"name": "fresh"})["Location"]
    secret = r"tnt_test_[A-Za-z0-9]{12}_[A-Za-z0-9]+"

    first, second = mia.get(address).content.decode(), mia.get(address).content.decode()
    other = browse(world.acme.owner).get(address).content.decode()

    assert re.search(secret, first)
    assert not re.search(secret, second)
    assert not re.search(secret, other)


def test_a_stolen_cookie_with_a_key_does_not_open_for_another_person(mia, world, browse):
    address = mia.post(NEW, {"name": "fresh"})["Location"]
    owner = browse(world.acme.owner)
    owner.cookies["tenantry_once"] = mia.cookies["tenantry_once"].value

    assert not re.search(r"tnt_test_", owner.get(address).content.decode())


def test_keys_are_made_rolled_and_revoked(mia, world):
    made = mia.post("/t/acme/endpoints/chat/keys/new", {"name": "laptop"})
    shown = mia.get(made["Location"]).content.decode()
    key = EndpointKey.objects.get(endpoint=world.acme.endpoint, name="laptop")
    mia.post(f"/t/acme/endpoints/chat/keys/{key.public_id}/roll", {"overlap_s": "3600"})
    rolled = EndpointKey.objects.filter(endpoint=world.acme.endpoint, name="laptop").latest("created_at")
    mia.post(f"/t/acme/endpoints/chat/keys/{rolled.public_id}/revoke")

    key.refresh_from_db()
    rolled.refresh_from_db()
    assert re.search(r"tnt_test_[A-Za-z0-9]{12}_", shown)
    assert timedelta(minutes=59) < key.expires_at - timezone.now() <= timedelta(hours=1)
    assert rolled.revoked_at is not None


def test_a_machine_asks_for_no_key_where_none_may_stay_and_says_how_to_log_in(mia):
    shown = mia.get("/t/acme/new/machine").content.decode()
    refused = mia.post("/t/acme/new/machine", {"name": "one", "ssh_key": SSH})
    made = mia.post("/t/acme/new/machine", {"name": "one"})

    assert 'name="ssh_key"' not in shown
    assert re.search(r"data-login.*?tenantry ssh.*?operator", shown, re.DOTALL)
    assert refused.status_code == 422
    assert re.search(r'data-field="ssh_key".*?field-error', refused.content.decode(), re.DOTALL)
    assert made["Location"] == "/t/acme/machines/one"


def test_a_machine_with_a_wrong_key_is_refused_at_the_field_and_made_with_a_right_one(mia, world):
    factories.allow_keys(world.acme.tenant)
    refused = mia.post("/t/acme/new/machine", {"name": "one", "ssh_key": "no key"})
    made = mia.post("/t/acme/new/machine", {"name": "one", "ssh_key": SSH})

    assert refused.status_code == 422
    assert re.search(r'data-field="ssh_key".*?field-error', refused.content.decode(), re.DOTALL)
    assert made["Location"] == "/t/acme/machines/one"
    assert Machine.objects.get(name="one").ssh_keys == [SSH]


def test_production_is_deleted_only_with_its_name_typed(mia, world):
    Allocation.objects.filter(pk=world.acme.endpoint.allocation_id).update(service_class="production")

    without = mia.post("/t/acme/endpoints/chat/delete")
    kept = Endpoint.objects.get(name="chat").deletion_requested_at
    with_name = mia.post("/t/acme/endpoints/chat/delete", {"confirm": "chat"})

    assert (without.status_code, kept) == (400, None)
    assert with_name.status_code == 302
    assert Endpoint.objects.get(name="chat").deletion_requested_at is not None


def test_renewing_gives_a_new_term(mia, world):
    answer = mia.post("/t/acme/endpoints/chat/renew", {"days": "90"})

    assert answer.status_code == 302
    assert Allocation.objects.get(pk=world.acme.endpoint.allocation_id).duration_s == 90 * 86400


def test_lists_filter_by_the_address_and_export_what_they_show(mia):
    found = text(mia.get("/t/acme/endpoints", {"q": "cha"}))
    nothing = text(mia.get("/t/acme/endpoints", {"q": "nope"}))
    rows = mia.get("/t/acme/endpoints", {"format": "json"}).json()
    table = mia.get("/t/acme/endpoints", {"format": "csv"}).content.decode().splitlines()

    assert "1 in all" in found
    assert "Nothing matches these filters" in nothing
    assert [(row["name"], row["size"]) for row in rows] == [("chat", "H100-80GB 2g.20gb")]
    assert table[0] == "name,short_id,phase,size,place,cost_a_day,currency,until,created_at"
    assert len(table) == 2


@pytest.mark.parametrize("address", ["/t/acme", "/t/acme/endpoints", "/t/acme/machines", "/t/acme/namespaces"])
def test_the_number_of_queries_does_not_depend_on_the_number_of_things(mia, world, address):
    with watched() as few:
        mia.get(address)
    for number in range(4):
        mia.post(NEW, {"name": f"more-{number}"})
        mia.post("/t/acme/new/namespace", {"name": f"space-{number}"})
        mia.post("/t/acme/new/machine", {"name": f"vm-{number}"})

    with watched() as many:
        mia.get(address)

    assert few != []
    assert len(many) == len(few), many


def test_every_step_of_the_workers_has_words_for_tenants():
    assert set(words.STEPS) == set(steps.REGISTRY)
    assert {name: str(said[0]) for name, said in words.STEPS.items()} == {
        name: entry.words for name, entry in steps.REGISTRY.items()
    }
