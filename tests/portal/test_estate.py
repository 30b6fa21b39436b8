"""The estate: map, stock and lists say what the ledger says; filters; light; who may look."""

from __future__ import annotations

import html
import json
import re
from datetime import timedelta
from fractions import Fraction

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.design import heat
from frontend.design.strip import SlotState
from frontend.kernel import estate, estate_stock
from tenants import geometry, ledger
from tenants.models import GpuDevice, Host
from tenants.states import HoldKind, PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
H100 = "H100-80GB"


@pytest.fixture
def world(db: None) -> World:
    return build()


@pytest.fixture
def aud():
    return factories.person(name="Aud", platform=(PlatformRole.AUDITOR,))


def text(answer) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", answer.content.decode())))


def keep(device, kind, start, size, note=""):
    return ledger.put(kind, device.pk, start, size, from_at=timezone.now(), to_at=None, note=note, now=timezone.now())


# --- who may look -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/ops/estate", "/ops/hosts", "/ops/hosts/{host}", "/ops/gpus/{gpu}"])
def test_every_platform_role_looks_and_nobody_else(world, browse, address):
    url = address.format(host=Host.objects.get().short_id, gpu=GpuDevice.objects.earliest("number").short_id)
    platform = [factories.person(platform=(role,)) for role in PlatformRole]

    statuses = {
        "platform": {browse(who).get(url).status_code for who in platform},
        "owner": browse(world.acme.owner).get(url).status_code,
        "member": browse(world.acme.member).get(url).status_code,
        "visitor": browse(None).get(url).status_code,
    }

    assert statuses == {"platform": {200}, "owner": 403, "member": 403, "visitor": 302}


@pytest.mark.parametrize("address", ["/ops/hosts/ho-none", "/ops/gpus/gp-none"])
def test_what_is_not_there_is_not_found(world, browse, aud, address):
    assert browse(aud).get(address).status_code == 404


# --- the map ----------------------------------------------------------------------------------------------


def test_the_map_has_a_cell_per_host_with_its_free_room_and_its_tenants(world, browse, aud):
    host = Host.objects.get()

    shown = browse(aud).get("/ops/estate")

    cell = re.search(r"<a href=hosts/[^>]*>", shown.content.decode())[0]
    assert f"hosts/{host.short_id}" in cell
    assert 'title="' + f"{host.name}: 52 free" in cell  # six things of two slots each
    assert 'data-holders="acme zebrafish-inc"' in cell
    assert "Acme Works 6 slots · 1 host" in text(shown)


def test_a_chosen_tenant_lights_its_hosts_up_and_no_others(world, browse, aud):
    factories.host(world.provider)

    shown = browse(aud).get("/ops/estate?tenant=acme").content.decode()

    cells = re.findall(r"<a href=hosts/[^>]*>", shown)
    assert len(cells) == 2
    assert ["is-chosen" in cell for cell in cells] == ["acme" in cell for cell in cells]
    assert sum("is-chosen" in cell for cell in cells) == 1
    assert '<option value="acme" selected>Acme Works</option>' in shown


def test_the_states_of_slots_come_from_the_ledger_of_this_moment(world):
    gpus = list(GpuDevice.objects.order_by("-number")[:4])
    keep(gpus[0], HoldKind.FOREIGN, 0, 4, "job")
    keep(gpus[1], HoldKind.FAULT, 0, 8)
    keep(gpus[2], HoldKind.MAINTENANCE, 4, 4)
    keep(gpus[3], HoldKind.RESERVED, 0, 1)
    ledger.put(
        HoldKind.MAINTENANCE, gpus[3].pk, 4, 4, from_at=timezone.now() + timedelta(days=1), to_at=None,
        note="", now=timezone.now(),
    )  # fmt: skip

    found = estate.read(estate.Filters(), now=timezone.now(), most_lit=9)

    assert found.slots == {
        H100: {
            SlotState.USED: 12, SlotState.FOREIGN: 4, SlotState.FAULT: 8, SlotState.MAINTENANCE: 4,
            SlotState.RESERVED: 1, SlotState.FREE: 35,
        }
    }  # fmt: skip


def test_filters_leave_what_they_say(world, browse, aud):
    other = factories.provider(name="second", site="lund")
    open_host, shut = factories.host(other, product="A100-80GB"), factories.host(other, state="cordoned")
    sick = factories.host(other)
    Host.objects.filter(pk=sick.pk).update(healthy=False)
    busy = factories.host(other)
    keep(GpuDevice.objects.filter(host=busy).first(), HoldKind.FOREIGN, 0, 8, "job")
    first = Host.objects.get(provider=world.provider)
    browser = browse(aud)

    def names(query):
        return {row["name"] for row in json.loads(browser.get(f"/ops/hosts?format=json&{query}").content)}

    assert names("site=berlin") == {first.name}
    assert names("provider=second") == {open_host.name, shut.name, sick.name, busy.name}
    assert names("product=A100-80GB") == {open_host.name}
    assert names("state=cordoned") == {shut.name}
    assert names("state=fault") == {sick.name}
    assert names("state=foreign") == {busy.name}
    assert shut.name not in names("state=free")
    assert names(f"q={shut.name}") == {shut.name}
    assert "No host matches these filters" in text(browser.get("/ops/estate?site=nowhere"))
    assert "No host matches these filters" in text(browser.get("/ops/hosts?site=nowhere"))


def test_an_empty_estate_says_what_comes_next(browse, aud):
    assert "Nothing is connected yet" in text(browse(aud).get("/ops/estate"))
    factories.provider(name="young")
    assert "No hosts yet" in text(browse(aud).get("/ops/estate"))
    assert "No hosts yet" in text(browse(aud).get("/ops/hosts"))


def test_hosts_that_look_alike_share_one_picture_in_a_large_estate():
    free, full = ((SlotState.FREE, 8),), ((SlotState.USED, 8),)
    pictures = heat.Pictures()
    hosts = [
        heat.Cell(f"hosts/ho-{n}", f"h{n}", gpus)
        for n, gpus in enumerate([(free, full), (full, free), (free, free), (full, full)])
    ]

    drawn = heat.cells(hosts, "Hosts", "dense", pictures)

    assert re.findall(r"<use href=#(h\d)", drawn) == ["h0", "h0", "h1"]  # the free one is the ground
    assert pictures.drawn().count("<symbol") == 2


def test_the_worst_of_a_gpu_is_what_its_picture_shows():
    assert heat.look(((SlotState.USED, 7), (SlotState.FAULT, 1))) == ("x", 1)
    assert heat.look(((SlotState.USED, 1), (SlotState.FREE, 7))) == ("u", 1)
    assert heat.look(((SlotState.USED, 4), (SlotState.FREE, 4))) == ("u", 1)
    assert heat.look(((SlotState.USED, 5), (SlotState.FREE, 3))) == ("u", 2)
    assert heat.look(((SlotState.FREE, 8),)) == ("u", 0)


# --- stock ------------------------------------------------------------------------------------------------


def test_what_fits_is_as_many_as_can_be_placed_one_after_the_other():
    """Held to brute force over every mask that a GPU can have."""
    for name in ("", "1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "1g.20gb", "7g.80gb"):
        windows = [mask for mask, _start in geometry.legal_masks(H100, name)]
        for mask in geometry.reachable_masks(H100):
            best = _most(mask, windows)
            assert estate_stock.most(H100, name, mask) == best, (name, bin(mask))


def _most(mask: int, windows: list[int]) -> int:
    return max((1 + _most(mask & ~window, windows) for window in windows if mask & window == window), default=0)


def test_fragmentation_is_that_of_the_published_measure():
    masks = {0b00000001: 3, 0b11111111: 2, 0b00110000: 4}
    mix = {"1g.10gb": 2, "3g.40gb": 1, "": 1, "not-a-profile": 5}
    every = [mask for mask, count in masks.items() for _ in range(count)]

    known = {name: count for name, count in mix.items() if name != "not-a-profile"}
    assert estate_stock.wasted(H100, masks, mix) == geometry.fragmentation(H100, every, known)
    assert estate_stock.wasted(H100, {0: 3}, mix) is None
    assert estate_stock.wasted(H100, masks, {}) is None
    assert estate_stock.wasted("unheard-of", masks, mix) is None
    assert estate_stock.wasted(H100, {0b11111111: 1}, {"": 1}) == Fraction(0)


def test_stock_counts_what_is_open_and_names_the_biggest_part_left(world, browse, aud):
    shut = factories.host(world.provider, gpus=2, state="cordoned")
    browser = browse(aud)

    rows = {row["product"]: row for row in json.loads(browser.get("/ops/estate?format=json").content)}

    assert rows[H100]["gpus"] == 10
    assert rows[H100]["closed_gpus"] == 2
    assert rows[H100]["slots"] == 80
    assert rows[H100]["free_slots"] == 52
    assert rows[H100]["biggest_part"] == "whole GPU"
    assert "whole=6" in rows[H100]["fits"]
    assert "10 GPUs, 2 not available" in text(browser.get("/ops/estate"))
    assert shut.name in browser.get("/ops/estate").content.decode()


# --- lists ------------------------------------------------------------------------------------------------


def test_the_list_shows_a_strip_per_gpu_with_holder_and_way_to_it(world, browse, aud):
    gpu = GpuDevice.objects.filter(holds__tenant=world.acme.tenant).first()

    shown = browse(aud).get("/ops/hosts").content.decode()

    assert shown.count('class="strip-row"') == 8
    assert f'href="/ops/gpus/{gpu.short_id}"' in shown
    assert 'data-holder="acme"' in shown
    assert 'href="/t/acme/endpoints/chat"' in shown


def test_pages_of_the_list_hold_every_host_once(world, browse, aud):
    for _ in range(30):
        factories.host(world.provider, gpus=1)
    browser = browse(aud)

    seen, url = [], "/ops/hosts"
    while url:
        body = browser.get(url).content.decode()
        seen += re.findall(r'row-title"><a href="/ops/hosts/(ho-\w+)"', body)
        found = re.search(r'href="(\?[^"]*after=[^"]*)"[^>]*>\s*<span>Next', body)
        url = "/ops/hosts" + html.unescape(found[1]) if found else ""

    assert sorted(seen) == sorted(Host.objects.values_list("short_id", flat=True))


@pytest.mark.parametrize("address", ["/ops/estate", "/ops/hosts"])
def test_the_number_of_queries_does_not_grow_with_the_estate(world, browse, aud, address):
    browser = browse(aud)
    for _ in range(9):
        factories.host(world.provider, gpus=2)
    browser.get(address)

    with CaptureQueriesContext(connection) as few:
        browser.get(address)
    for _ in range(30):
        factories.host(world.provider, gpus=2)
    with CaptureQueriesContext(connection) as many:
        browser.get(address)

    assert len(many) == len(few)
    assert len(few) <= 34
