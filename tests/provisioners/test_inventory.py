"""The inventory pass on the sandbox's core: what is found, what is kept out of the market, what is never freed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from provisioners import inventory, inventory_isolation
from provisioners.driver import ObservedProvider, Restored, TransientDriverError
from provisioners.sandbox import control, files, views
from provisioners.sandbox.driver import InProcessSandbox
from provisioners.sandbox.estate import Estate
from provisioners.sandbox.records import GpuRecord
from tenants.models import Event, Finding, GpuDevice, Hold, Host, MigDevice, Provider
from tests import factories
from tests.conftest import NOW
from tests.drive import FakeClock

pytestmark = pytest.mark.usefixtures("db")


def host_document(name: str = "node-1", *, binding: str = "device", count: int = 2, **group: Any) -> dict[str, Any]:
    kinds = ["vm"] if binding == "host" else ["namespace"]
    gpus = [{"product": "H100-80GB", "count": count, **group}] if count else []
    return {
        "host": name, "name": f"{name}.example", "binding": binding, "boundary_kinds": kinds,
        "vcpu": 64, "memory_gib": 512, "gpus": gpus,
    }  # fmt: skip


class Site:
    """An estate, its provider row without any host, and a clock."""

    def __init__(self, *hosts: dict[str, Any]) -> None:
        self.clock = FakeClock()
        document = {"schema": files.SCHEMA, "hosts": list(hosts or [host_document()])}
        self.estate = Estate(files.build(document), clock=self.clock.timestamp, url="http://sandbox.invalid")
        control.no_delays(self.estate)
        self.driver = InProcessSandbox(self.estate)
        self.provider = factories.provider()

    def look(self) -> inventory.Summary:
        self.clock.move(1)
        return inventory.run(self.provider.pk, self.driver, self.clock(), clock=self.clock)

    def open_all(self) -> None:
        self.look()
        Host.objects.update(state="open")
        self.look()

    def show(self, change: Callable[[ObservedProvider], ObservedProvider]) -> inventory.Summary:
        """Apply a snapshot that was bent on its way."""
        self.clock.move(1)
        seen = change(self.driver.snapshot())
        return inventory.apply(self.provider.pk, seen, self.clock(), clock=self.clock)


@pytest.fixture
def site() -> Site:
    return Site()


def open_findings() -> dict[str, int]:
    found: dict[str, int] = {}
    for kind in Finding.objects.filter(resolved_at__isnull=True).values_list("kind", flat=True):
        found[kind] = found.get(kind, 0) + 1
    return found


def holds(kind: str) -> list[tuple[str, int, int, str]]:
    rows = Hold.objects.filter(kind=kind).select_related("device").order_by("device__provider_ref", "start")
    return [(row.device.provider_ref, row.start, row.size, row.note) for row in rows]


def gpu(ref: str) -> GpuDevice:
    return GpuDevice.objects.get(provider_ref=ref, removed_at__isnull=True)


# --- hosts and GPUs -----------------------------------------------------------------------------------


def test_a_new_host_joins_with_its_gpus_and_takes_nothing_before_it_is_open(site: Site) -> None:
    site.look()

    host = Host.objects.get()
    assert (host.state, host.placeable, host.binding) == ("joining", False, "device")
    assert host.boundary_kinds == ["namespace"]
    assert (host.total_vcpu, host.free_vcpu, host.gpu_count, host.empty_gpus) == (64, 64, 2, 2)
    assert host.gpu_product == "H100-80GB"
    assert [(d.index, d.slots, d.free, d.mode) for d in GpuDevice.objects.order_by("number")] == [
        (0, 8, 0xFF, "empty"),
        (1, 8, 0xFF, "empty"),
    ]
    provider = Provider.objects.get()
    assert provider.healthy
    assert provider.capabilities["boundary_kinds"] == ["namespace"]
    assert provider.capabilities["simulated"] is True


def test_a_snapshot_with_nothing_new_writes_one_timestamp_and_calls_the_provider_once(site: Site) -> None:
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, "3g.40gb"]], vcpu=4, memory_gib=8)
    site.open_all()
    calls: list[str] = []
    driver = site.driver

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(driver, name)

    site.clock.move(1)
    with CaptureQueriesContext(connection) as captured:
        summary = inventory.run(site.provider.pk, Counting(), site.clock(), clock=site.clock)  # type: ignore[arg-type]

    assert summary.idle
    assert calls == ["snapshot"]
    writes = [q["sql"] for q in captured if q["sql"].lstrip().upper().startswith(("UPDATE", "INSERT", "DELETE"))]
    assert len(writes) == 1
    assert '"snapshot_at"' in writes[0]
    assert len(captured) < 60


def test_the_number_of_queries_does_not_grow_with_hosts() -> None:
    small, large = Site(host_document("a")), Site(*(host_document(f"n{number}") for number in range(12)))
    counts = []
    for one in (small, large):
        one.open_all()
        with CaptureQueriesContext(connection) as captured:
            assert one.look().idle
        counts.append(len(captured))

    assert counts[0] == counts[1]


def test_an_unknown_product_is_a_finding_and_left_alone(site: Site) -> None:
    def odd(seen: ObservedProvider) -> ObservedProvider:
        host = seen.hosts[0]
        return replace(seen, hosts=(replace(host, gpus=(replace(host.gpus[0], product="Z9000"), host.gpus[1])),))

    site.show(odd)

    assert open_findings() == {"unknown-product": 1}
    assert GpuDevice.objects.count() == 1


def test_totals_that_change_move_the_free_counters_by_the_difference(site: Site) -> None:
    site.open_all()
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, ""]], vcpu=16, memory_gib=64)
    site.look()

    site.show(lambda seen: replace(seen, hosts=(replace(seen.hosts[0], vcpu=96, memory_gib=256),)))

    host = Host.objects.get()
    assert (host.total_vcpu, host.free_vcpu, host.total_memory_gib, host.free_memory_gib) == (96, 80, 256, 192)


def test_a_host_that_shrinks_below_what_is_given_out_is_a_finding_and_takes_nothing_new(site: Site) -> None:
    site.open_all()
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, ""]], vcpu=16, memory_gib=64)
    site.look()

    site.show(lambda seen: replace(seen, hosts=(replace(seen.hosts[0], vcpu=8),)))

    host = Host.objects.get()
    assert (host.total_vcpu, host.free_vcpu, host.placeable) == (16, 0, False)
    assert open_findings() == {"host-shrunk": 1}

    site.look()

    host.refresh_from_db()
    assert (host.total_vcpu, host.free_vcpu, host.placeable) == (64, 48, True)
    assert open_findings() == {}


def test_foreign_use_of_processors_alone_makes_the_host_smaller(site: Site) -> None:
    control.add_foreign_use(site.estate, "database", "node-1", [], vcpu=10, memory_gib=100)

    site.look()

    host = Host.objects.get()
    assert (host.total_vcpu, host.free_vcpu, host.total_memory_gib) == (54, 54, 412)


def test_a_host_that_is_down_or_gone_takes_nothing_and_comes_back(site: Site) -> None:
    site.open_all()
    control.set_host_health(site.estate, "node-1", healthy=False, message="no heartbeat")

    site.look()
    down = Host.objects.get()
    site.show(lambda seen: replace(seen, hosts=()))
    gone, findings = Host.objects.get(), open_findings()
    control.set_host_health(site.estate, "node-1", healthy=True)
    site.look()
    back = Host.objects.get()

    assert (down.healthy, down.placeable, down.message) == (False, False, "no heartbeat")
    assert (gone.healthy, gone.message) == (False, "The provider does not show it any more.")
    assert findings == {"host-missing": 1}
    assert (back.healthy, back.placeable, open_findings()) == (True, True, {})


def test_a_host_in_maintenance_at_the_provider_alone_takes_nothing(site: Site) -> None:
    site.open_all()
    site.driver.evacuate("node-1")

    site.look()

    assert Host.objects.values_list("healthy", "placeable", "message").get() == (
        False,
        False,
        "It is in maintenance at the provider.",
    )


def test_carved_devices_are_kept_and_a_layout_out_of_the_catalogue_blocks_the_gpu() -> None:
    site = Site(host_document(layout_change="fixed", layout=[[0, 4, "3g.40gb"], [4, 4, "3g.40gb"]]))
    site.open_all()

    assert list(MigDevice.objects.order_by("device__index", "start").values_list("profile", "start", "size")) == [
        ("3g.40gb", 0, 4), ("3g.40gb", 4, 4), ("3g.40gb", 0, 4), ("3g.40gb", 4, 4),
    ]  # fmt: skip

    def wrong(seen: ObservedProvider) -> ObservedProvider:
        first, second = seen.hosts[0].gpus
        carved = replace(first, windows=((1, 4, "3g.40gb"),))
        return replace(seen, hosts=(replace(seen.hosts[0], gpus=(carved, second)),))

    site.show(wrong)

    assert open_findings() == {"layout-mismatch": 1}
    assert (gpu("node-1-gpu-0").placeable, gpu("node-1-gpu-1").placeable) == (False, True)


def test_inferred_starts_are_trusted_once_a_matching_layout_is_reported() -> None:
    document = host_document(count=0)
    document["gpus"] = [{"product": "B200-180GB", "count": 1}]
    try:
        site = Site(document)
    except files.BadEstate:
        pytest.skip("the catalogue has no B200")
    site.look()
    if gpu("node-1-gpu-0").windows_trusted:
        pytest.skip("the placements of this product are verified")

    part = next(p for p in inventory.inventory_hosts.gpu_catalogue.product("B200-180GB").profiles if p.starts)
    window = (part.starts[0], part.size, part.name)
    site.show(
        lambda seen: replace(
            seen, hosts=(replace(seen.hosts[0], gpus=(replace(seen.hosts[0].gpus[0], windows=(window,)),)),)
        )
    )

    assert gpu("node-1-gpu-0").windows_trusted


# --- foreign use --------------------------------------------------------------------------------------


def test_foreign_use_is_held_with_its_room_and_given_back_after_two_looks_without_it(site: Site) -> None:
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, "3g.40gb"]], vcpu=8, memory_gib=32)
    site.open_all()

    assert holds("foreign") == [("node-1-gpu-0", 0, 4, "nightly")]
    assert gpu("node-1-gpu-0").free == 0xF0
    assert Host.objects.values_list("free_vcpu", "free_memory_gib").get() == (56, 480)

    control.remove_foreign_use(site.estate, "nightly")
    site.look()
    assert holds("foreign") == [("node-1-gpu-0", 0, 4, "nightly")]
    site.look()

    assert holds("foreign") == []
    assert gpu("node-1-gpu-0").free == 0xFF
    assert Host.objects.values_list("free_vcpu", "free_memory_gib").get() == (64, 512)


def test_thirty_percent_in_foreign_use_is_all_held_before_anything_can_be_placed() -> None:
    site = Site(*(host_document(f"n{number}", count=4) for number in range(5)))
    taken = [(number, index) for number in range(5) for index in range(4)][::3][:6]
    for number, index in taken:
        control.add_foreign_use(site.estate, f"job-{number}-{index}", f"n{number}", [[f"n{number}-gpu-{index}", 0, ""]])

    site.open_all()

    assert [ref for ref, *_ in holds("foreign")] == sorted(f"n{number}-gpu-{index}" for number, index in taken)
    assert GpuDevice.objects.filter(free=0, placeable=True).count() == 6
    assert GpuDevice.objects.filter(free=0xFF, placeable=True).count() == 14


def test_incomplete_and_stale_lists_conclude_nothing_from_absence(site: Site) -> None:
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, ""]])
    site.open_all()

    for _ in range(3):
        site.show(lambda seen: replace(seen, hosts=(), uses=(), objects=(), complete=False))

    host = Host.objects.get()
    assert (host.healthy, host.placeable) == (True, True)
    assert holds("foreign") == [("node-1-gpu-0", 0, 8, "nightly")]
    assert open_findings() == {}


def test_one_lying_stale_list_frees_nothing(site: Site) -> None:
    site.open_all()
    control.add_fault(site.estate, "snapshot", "stale", lying=True)
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-1", 0, ""]])
    site.show(lambda seen: replace(seen, uses=(*seen.uses, *views.snapshot(site.estate.state, 0.0).uses)))
    assert holds("foreign") == [("node-1-gpu-1", 0, 8, "nightly")]

    control.add_fault(site.estate, "snapshot", "stale", lying=True)
    site.estate.state.captured[next(iter(site.estate.state.faults))]["uses"] = []
    site.look()
    site.look()

    assert holds("foreign") == [("node-1-gpu-1", 0, 8, "nightly")]


def test_an_older_snapshot_is_dropped_when_a_newer_one_was_applied(site: Site) -> None:
    old = site.driver.snapshot()
    site.open_all()
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, ""]])
    site.look()

    summary = inventory.apply(site.provider.pk, old, NOW - timedelta(seconds=5), clock=site.clock)

    assert summary.superseded
    assert holds("foreign") == [("node-1-gpu-0", 0, 8, "nightly")]


def test_lists_that_show_everything_twice_count_once(site: Site) -> None:
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 0, ""]], vcpu=8, memory_gib=32)
    site.open_all()
    control.add_fault(site.estate, "snapshot", "duplicates")

    site.look()

    assert open_findings() == {"duplicates-in-lists": 1}
    assert Host.objects.values_list("free_vcpu", "gpu_count").get() == (56, 2)
    site.look()
    assert open_findings() == {}


def test_foreign_use_without_a_device_gets_a_legal_window_and_without_room_blocks_the_host() -> None:
    site = Site(host_document(binding="host", count=1))
    site.open_all()

    def hidden(*profiles: tuple[str, int]) -> Callable[[ObservedProvider], ObservedProvider]:
        from provisioners.driver import ObservedUse

        uses = tuple(
            ObservedUse("node-1", "", None, size, profile, None, None, f"hidden-{n}")
            for n, (profile, size) in enumerate(profiles)
        )
        return lambda seen: replace(seen, uses=uses)

    site.show(hidden(("3g.40gb", 4), ("3g.40gb", 4)))

    assert sorted(start for _, start, size, _ in holds("foreign") if size == 4) == [0, 4]
    assert open_findings() == {}

    site.show(hidden(("3g.40gb", 4), ("3g.40gb", 4), ("1g.10gb", 1)))

    assert open_findings() == {"use-without-place": 1}
    assert Host.objects.get().placeable is False


def test_foreign_use_that_takes_more_than_the_host_has_is_a_finding(site: Site) -> None:
    control.add_foreign_use(site.estate, "greedy", "node-1", [["node-1-gpu-0", 0, ""]], vcpu=64, memory_gib=512)
    site.look()

    site.show(lambda seen: replace(seen, uses=(replace(seen.uses[0], vcpu=100),)))

    assert Host.objects.values_list("free_vcpu", "free_memory_gib").get() == (0, 0)
    assert open_findings() == {"host-overcommitted": 1}


# --- faults -------------------------------------------------------------------------------------------


def test_a_faulty_gpu_is_held_at_once_and_given_back_when_it_is_well(site: Site) -> None:
    control.add_foreign_use(site.estate, "nightly", "node-1", [["node-1-gpu-0", 2, "2g.20gb"]])
    site.open_all()
    control.set_gpu_health(site.estate, "node-1-gpu-0", healthy=False, message="Xid 79")

    site.look()

    assert holds("fault") == [("node-1-gpu-0", 0, 2, "faulty GPU"), ("node-1-gpu-0", 4, 4, "faulty GPU")]
    bad = gpu("node-1-gpu-0")
    assert (bad.free, bad.placeable, bad.message) == (0, False, "Xid 79")
    assert Event.objects.filter(kind="host.gpu-faulty").count() == 1

    control.set_gpu_health(site.estate, "node-1-gpu-0", healthy=True)
    site.look()

    assert holds("fault") == []
    assert (gpu("node-1-gpu-0").free, gpu("node-1-gpu-0").placeable) == (0xF3, True)


def test_a_gpu_that_vanishes_is_unhealthy_and_another_at_its_place_takes_over(site: Site) -> None:
    site.open_all()
    old = gpu("node-1-gpu-0")
    record = site.estate.state.gpus.pop("node-1-gpu-0")
    site.estate.state.index()

    site.look()

    missing = gpu("node-1-gpu-0")
    assert (missing.healthy, missing.placeable, open_findings()) == (False, False, {"gpu-missing": 1})
    assert holds("fault") == [("node-1-gpu-0", 0, 8, "faulty GPU")]

    site.estate.state.put("gpus", "new-gpu", GpuRecord("new-gpu", record.host, record.product, record.index))
    site.estate.state.index()
    site.look()

    heir = gpu("new-gpu")
    old.refresh_from_db()
    assert old.removed_at is not None
    assert (heir.index, heir.healthy, heir.placeable, heir.free) == (0, True, True, 0xFF)
    assert heir.number > old.number
    assert holds("fault") == []
    assert open_findings() == {}
    assert Host.objects.values_list("gpu_count", "empty_gpus").get() == (2, 2)


# --- the provider -------------------------------------------------------------------------------------


def test_a_provider_that_cannot_be_read_is_not_healthy_and_nothing_else_changes(site: Site) -> None:
    site.open_all()
    control.add_fault(site.estate, "snapshot", "fail")

    with pytest.raises(TransientDriverError):
        site.look()

    assert Provider.objects.get().healthy is False
    assert Host.objects.get().placeable is True
    site.look()
    assert Provider.objects.get().healthy is True


def test_a_provider_is_never_called_inside_a_transaction(site: Site) -> None:
    from tenants.actor import SYSTEM
    from tenants.transactions import acting

    with acting(SYSTEM), pytest.raises(inventory.InTransaction):
        site.look()


def test_a_large_estate_is_taken_in_by_several_passes_and_closes_no_finding_meanwhile() -> None:
    site = Site(*(host_document(f"node-{number}") for number in range(5)))
    site.look()
    Host.objects.update(state="open")
    first = Host.objects.order_by("pk").first()
    assert first is not None
    site.estate.state.hosts[first.provider_ref].healthy = False
    Finding.objects.create(
        provider=site.provider,
        kind=inventory.DUPLICATES,
        subject="x",
        detail="x",
        first_seen_at=NOW,
        last_seen_at=NOW,
    )

    cut = inventory.run(site.provider.pk, site.driver, site.clock(), clock=site.clock, budget_s=0)
    still, kept = Host.objects.get(pk=first.pk).healthy, open_findings()
    whole = site.look()

    assert (cut.more, cut.hosts_changed, still, kept) == (True, 0, True, {inventory.DUPLICATES: 1})
    assert (whole.more, Host.objects.get(pk=first.pk).healthy) == (False, False)
    assert open_findings() == {}


def test_acceptance_that_runs_out_of_time_goes_on_with_the_next_pass() -> None:
    site = Site(*(host_document(f"node-{number}") for number in range(3)))
    site.look()
    Host.objects.update(acceptance={"requested_at": NOW.isoformat(), "requested_by": "x"})

    cut = inventory.run(site.provider.pk, site.driver, site.clock(), clock=site.clock, budget_s=0)
    before = Host.objects.filter(state="accepted").count()
    whole = site.look()

    assert (cut.more, before) == (True, 0)
    assert (whole.more, Host.objects.filter(state="accepted").count()) == (False, 3)


def test_a_host_that_is_being_tried_is_looked_at_again_as_soon_as_the_provider_wants(monkeypatch) -> None:
    site = Site(*(host_document(f"node-{number}") for number in range(2)))
    site.look()
    Host.objects.update(acceptance={"requested_at": NOW.isoformat(), "requested_by": "x"})
    waits = {"node-0": 7.0, "node-1": 5.0}

    def trying(host: str) -> Any:
        raise TransientDriverError("it boots", retry_after_s=waits[host])

    monkeypatch.setattr(site.driver, "acceptance", trying, raising=False)
    tried = site.look()
    monkeypatch.undo()
    done = site.look()

    assert (tried.again_s, tried.more) == (5.0, False)
    assert (done.again_s, Host.objects.filter(state="accepted").count()) == (None, 2)


# --- rules of the whole provider --------------------------------------------------------------------


def test_what_isolates_all_and_was_put_back_is_told_once_and_settles_when_no_snapshot_tells_it(site: Site) -> None:
    changed = Restored("Policy pods", NOW, "kubectl-edit", ("spec.validations",))
    gone = Restored("Policy marks", NOW + timedelta(minutes=1))

    def restored(*what: Restored, looked: bool = True) -> tuple[dict[str, int], int]:
        site.show(lambda seen: replace(seen, restored=what if looked else None))
        return open_findings(), Event.objects.filter(kind="provider.isolation-restored").count()

    def later(look: Any, *what: Restored) -> Any:
        site.clock.move(inventory_isolation.PAUSE.total_seconds())
        return look(*what)

    told = [
        restored(),
        restored(changed),
        restored(changed),
        restored(changed, gone),  # so soon after the first it is a finding, and tried again with the next
        later(restored, changed, replace(gone, at=NOW + timedelta(minutes=2))),
        restored(looked=False),
        restored(),
    ]

    none, one, two = {}, {"isolation-restored": 1}, {"isolation-restored": 2}
    assert told == [(none, 0), (one, 1), (one, 1), (two, 1), (two, 2), (two, 2), (none, 2)]
    assert Finding.objects.get(subject="Policy pods").detail == (
        f"Policy pods was changed by kubectl-edit (spec.validations); it was put back at {NOW:%Y-%m-%d %H:%M} UTC."
    )
    assert "was not there" in Finding.objects.get(subject="Policy marks").detail


def test_hosts_are_locked_before_boundaries_findings_and_events(site: Site) -> None:
    site.open_all()
    gone = Restored("Policy marks", site.clock())
    shown = site.estate.state.gpus["node-1-gpu-0"]
    site.estate.state.put("gpus", shown.device, replace(shown, product="A100-80GB"))

    with CaptureQueriesContext(connection) as found:
        site.show(lambda seen: replace(seen, restored=(gone,)))

    texts = [query["sql"] for query in found]
    last = texts[len(texts) - 1 - next(n for n, text in enumerate(reversed(texts)) if "set_config" in text) :]
    locks = [
        "ledger_refresh_placeable",
        '"tenants_host"',
        '"tenants_boundary"',
        'INTO "tenants_finding"',
        "event_append",
    ]
    at = [next(n for n, text in enumerate(last) if word in text and (word[0] != '"' or "FOR NO KEY" in text))
          for word in locks]  # fmt: skip
    assert at == sorted(at), [(word, last[n][:80]) for word, n in zip(locks, at, strict=True)]
    assert open_findings() == {"gpu-product-changed": 1, "isolation-restored": 1}
