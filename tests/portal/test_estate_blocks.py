"""The map of a large estate: its blocks say what the ledger says, host by host, and lead to the hosts they are of."""

from __future__ import annotations

import html
import re
from collections import Counter
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from frontend.design import heat
from frontend.design.strip import SIGNS, SlotState
from frontend.kernel import estate, estate_blocks, estate_stock
from frontend.views import estate as page
from tenants import ledger
from tenants.models import GpuDevice, Host
from tenants.states import HoldKind, PlatformRole
from tests import factories
from tests.portal.world import World, build

pytestmark = pytest.mark.usefixtures("db")
CODES = [SIGNS[state].code for state in estate_blocks.STATES]
H100, A100 = "H100-80GB", "A100-80GB"
FILTERS = tuple(
    estate.Filters(**given)
    for given in (
        {}, {"site": "berlin"}, {"provider": "second"}, {"product": H100}, {"product": A100}, {"state": "cordoned"},
        {"state": "free"}, {"tenant": "acme"},
    )
)  # fmt: skip


@pytest.fixture
def world(db: None) -> World:
    """Thirty-odd hosts of two providers: some held, broken, mixed, shut, one with a GPU that was taken out."""
    made = build()
    second = factories.provider(name="second", site="lund")
    rows = [factories.host(second, gpus=2) for _ in range(29)]
    factories.host(second, gpus=1, state="cordoned")
    keep(rows[0], HoldKind.FAULT, 0, 8)
    keep(rows[0], HoldKind.FOREIGN, 0, 4, gpu=1)
    keep(rows[1], HoldKind.MAINTENANCE, 4, 4)
    keep(rows[2], HoldKind.RESERVED, 0, 1)
    keep(rows[3], HoldKind.MAINTENANCE, 0, 8, later=True)
    mixed = factories.host(second, gpus=2)
    GpuDevice.objects.filter(host=mixed, index=1).update(product=A100)
    Host.objects.filter(pk=mixed.pk).update(gpu_product="")
    keep(mixed, HoldKind.FOREIGN, 0, 8, gpu=1)
    GpuDevice.objects.filter(host=rows[4], index=1).update(removed_at=timezone.now(), placeable=False)
    ledger.recount(rows[4].pk, now=timezone.now())
    return made


def keep(host: Host, kind: HoldKind, start: int, size: int, *, gpu: int = 0, later: bool = False) -> None:
    now = timezone.now()
    device = GpuDevice.objects.get(host=host, index=gpu)
    begin = now + timedelta(days=1) if later else now
    assert ledger.put(kind, device.pk, start, size, from_at=begin, to_at=None, note="", now=now) is not None


def look(host: estate.Seen) -> heat.Look:
    """Return what a host is at a glance, from the slots of each of its GPUs."""
    sizes: Counter[SlotState] = Counter()
    for gpu in host.gpus:
        for state, size in gpu:
            sizes[state] += size
    worst = next((state for state in estate_blocks.STATES if sizes[state]), SlotState.USED)
    return SIGNS[worst].code, -(-sizes[worst] * heat.BLOCK_STEPS // (host.slots or 1))


@pytest.mark.parametrize("filters", FILTERS)
def test_blocks_say_what_the_ledger_says_of_each_host(world, filters):
    now = timezone.now()

    found = estate_blocks.read(filters, now=now)
    told = estate.read(filters, now=now, most_lit=99)

    assert found.hosts == len(told.hosts)
    assert found.gpus == told.gpus
    expected = []
    for provider in sorted({(host.site, host.provider) for host in told.hosts}):
        rows = [host for host in told.hosts if (host.site, host.provider) == provider]
        for first in range(0, len(rows), estate.BLOCK):
            block = rows[first : first + estate.BLOCK]
            expected.append(
                estate_blocks.Block(
                    site=block[0].site, provider=block[0].provider, first=block[0].name, last=block[-1].name,
                    after=rows[first - 1].short_id if first else "", hosts=len(block),
                    gpus=sum(len(host.gpus) for host in block), free=sum(host.free for host in block),
                    open_free=sum(host.free for host in block if host.is_open),
                    closed=sum(not host.is_open for host in block),
                    lit=sum(filters.tenant in host.holders for host in block) if filters.tenant else 0,
                    looks=tuple(sorted(map(look, block), key=lambda one: (CODES.index(one[0]), -one[1]))),
                )
            )  # fmt: skip
    assert found.blocks == expected
    kept = {
        product: {state: size for state, size in states.items() if state is not SlotState.FREE}
        for product, states in told.slots.items()
    }
    assert {key: states for key, states in found.kept.items() if states} == {
        key: states for key, states in kept.items() if states
    }
    assert found.shares == told.shares


@pytest.mark.parametrize("filters", FILTERS)
def test_stock_is_that_of_the_gpus_that_the_filters_leave(world, filters):
    found = {line.product: line for line in estate_stock.read(filters)}

    devices = GpuDevice.objects.filter(removed_at__isnull=True, host__in=estate.hosts(filters))
    if filters.product:
        devices = devices.filter(product=filters.product)
    for product, line in found.items():
        rows = list(devices.filter(product=product))
        assert (line.gpus, line.closed, line.slots, line.free) == (
            len(rows),
            sum(not row.placeable for row in rows),
            sum(row.slots for row in rows),
            sum(row.free.bit_count() for row in rows if row.placeable),
        )
    assert set(found) == set(devices.values_list("product", flat=True))


def test_a_cell_leads_to_the_page_of_the_list_with_its_hosts(world, browse, monkeypatch):
    monkeypatch.setattr(page, "MOST_CELLS", 8)
    browser = browse(factories.person(platform=(PlatformRole.AUDITOR,)))

    shown = browser.get("/ops/estate").content.decode()

    cells = re.findall(r'<a href="(hosts[^"]*)" title="([^"]*)"', shown)
    assert len(cells) == 3  # one of the first provider, two of the second
    seen = []
    for url, words in cells:
        body = browser.get(f"/ops/{html.unescape(url)}").content.decode()
        names = re.findall(r'row-title"><a href="/ops/hosts/ho-\w+">([^<]*)', body)
        first, last = re.match(r"(\S+) to (\S+):", words).groups()
        assert (names[0], names[-1]) == (first, last)
        seen += names
    assert sorted(seen) == sorted(Host.objects.values_list("name", flat=True))
    assert "<path class=" in shown
    assert "A cell is 24 neighbouring hosts" in shown


def test_a_chosen_tenant_lights_its_blocks_up(world, browse, monkeypatch):
    monkeypatch.setattr(page, "MOST_CELLS", 8)
    browser = browse(factories.person(platform=(PlatformRole.AUDITOR,)))

    shown = browser.get("/ops/estate?tenant=acme").content.decode()

    lit = re.findall(r'<a href="hosts[^>]*class="is-chosen"[^>]*>', shown)
    assert len(lit) == 1
    assert "1 with acme" in lit[0]
    assert "tenant=" not in lit[0]


def test_the_number_of_queries_does_not_grow_with_the_blocks(world, browse, monkeypatch):
    monkeypatch.setattr(page, "MOST_CELLS", 8)
    browser = browse(factories.person(platform=(PlatformRole.AUDITOR,)))
    counted = []
    for more in (0, 30):
        for _ in range(more):
            factories.host(world.provider, gpus=1)
        browser.get("/ops/estate")
        with CaptureQueriesContext(connection) as found:
            assert browser.get("/ops/estate").status_code == 200
        counted.append(len(found))

    assert counted[0] == counted[1]
    assert counted[0] <= 35
