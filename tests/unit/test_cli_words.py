"""What people type and what they read: GPUs, durations, labels, limits; times, sizes, reasons."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.cli import asks, words
from controlplane.cli.app import hoisted
from controlplane.cli.cells import said, size, stage, why
from controlplane.cli.failures import ExitCode, UsageFault, exit_code_of, request_command
from controlplane.cli.nouns import ALL, noun, split_object

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "product", "profile", "count", "units"),
    [
        ("H100-80GB", "H100-80GB", "", 1, 1),
        ("H100-80GBx4", "H100-80GB", "", 4, 1),
        ("H100-80GB/1g.10gb", "H100-80GB", "1g.10gb", 1, 1),
        ("H100-80GB/1g.10gbx3", "H100-80GB", "1g.10gb", 3, 3),
        ("H100-80GB/1g.10gb+me", "H100-80GB", "1g.10gb+me", 1, 1),
        ("RTX-PRO-6000-96GB/4g.96gb", "RTX-PRO-6000-96GB", "4g.96gb", 1, 1),
    ],
)
def test_a_gpu_is_read_as_product_profile_and_count(text, product, profile, count, units):
    gpu = asks.Gpu.parse(text)

    assert (gpu.product, gpu.profile, gpu.count, gpu.units) == (product, profile, count, units)
    assert gpu.as_json()["count"] == (1 if profile else count)


@pytest.mark.parametrize("text", ["", "H100 80GB", "H100-80GB/", "/1g.10gb", "a/b/c"])
def test_what_is_no_gpu_is_refused(text):
    with pytest.raises(UsageFault, match="is no GPU"):
        asks.Gpu.parse(text)


def test_layouts_are_read_gpu_by_gpu():
    assert asks.layouts(["0=2x3g.40gb,1g.10gb", "all=whole"]) == [
        {"device": "0", "profiles": ["3g.40gb", "3g.40gb", "1g.10gb"]},
        {"device": "all", "profiles": []},
    ]


@pytest.mark.parametrize("text", ["", "0", "0=", "=whole", "0=3g.40gb,", "0=x3g.40gb", "0=200x1g.10gb"])
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(UsageFault, match="not a layout"):
        asks.layouts([text])


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("15m", 900), ("8h", 28800), ("7d", 604800), ("2w", 1209600), ("1d12h", 129600)]
)
def test_durations_are_seconds(text, expected):
    assert asks.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "7", "d", "7d!", "7 d", "-1h", "1.5h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageFault, match="is no duration"):
        asks.seconds(text)


def test_a_date_means_its_end_and_a_plus_means_from_now():
    assert asks.instant("2026-12-31") == "2027-01-01T00:00:00+00:00"
    assert asks.instant("2026-12-31T18:00Z") == "2026-12-31T18:00:00+00:00"
    assert asks.instant("+7d", now=NOW) == "2026-06-08T12:00:00+00:00"
    with pytest.raises(UsageFault, match="is no time"):
        asks.instant("tomorrow")


def test_engine_arguments_get_their_types_and_dashes_become_underscores():
    found = asks.typed_pairs(["max-model-len=4096", "enable-prefix-caching=true", "gpu_memory_utilization=0.9", "x=y"])

    assert found == {"max_model_len": 4096, "enable_prefix_caching": True, "gpu_memory_utilization": 0.9, "x": "y"}


def test_limits_are_whole_numbers():
    assert asks.limits(["gpu.H100-80GB.slices=8", "vcpu=0"]) == {"gpu.H100-80GB.slices": 8, "vcpu": 0}
    with pytest.raises(UsageFault, match="whole number"):
        asks.limits(["vcpu=-1"])


def test_an_endpoint_says_only_what_was_said():
    body = asks.endpoint("chat", "llama-3-1-8b", asks.Capacity(asks.Gpu.parse("H100-80GB")), asks.Tags())

    assert body == {
        "name": "chat",
        "model": "llama-3-1-8b",
        "unit": {"gpu": {"product": "H100-80GB", "profile": "", "count": 1}, "vcpu": 8, "memory_gib": 64},
        "replicas": 1,
        "managed_by": "cli",
    }


def test_windows_of_a_namespace_are_units():
    capacity = asks.Capacity(
        asks.Gpu.parse("A100-80GB/1g.10gbx2"), units=2, kind="namespace", duration="7d", on_shortage="request"
    )

    body = asks.units_of_many("lab", capacity, asks.Tags(("team=blue",), "for tests"))

    assert len(body["units"]) == 4
    assert body["where"] == {"kind": "namespace"}
    assert body["term"] == {"duration_s": 604800}
    assert (body["on_shortage"], body["labels"], body["description"]) == ("request", {"team": "blue"}, "for tests")


def test_a_machine_is_one_unit():
    with pytest.raises(UsageFault, match="one MIG window or whole GPUs"):
        asks.machine("box", "debian-12", 100, (), asks.Capacity(asks.Gpu.parse("H100-80GB/1g.10gbx2")), asks.Tags())


def test_times_are_said_in_their_two_largest_units():
    assert words.span(0) == "0s"
    assert words.span(59) == "59s"
    assert words.span(60) == "1m"
    assert words.span(3 * 3600 + 120) == "3h2m"
    assert words.span(86400 * 3 + 3600 * 4 + 59) == "3d4h"
    assert words.ago("2026-06-01T11:00:00Z", now=NOW) == "1h"
    assert words.ago("2026-06-01T13:00:00Z", now=NOW) == "in 1h"
    assert words.until("2026-06-08T12:00:00+00:00", now=NOW) == "2026-06-08 (in 7d)"
    assert words.until("2026-05-08T12:00:00+00:00", now=NOW) == "2026-05-08 (over)"
    assert words.ago("not a time") == "not a time"


def test_amounts_are_grouped_and_lose_their_zeros():
    assert words.amount(12345) == "12,345"
    assert words.amount("0.420000") == "0.42"
    assert words.amount("100.0") == "100"
    assert words.amount("many") == "many"


def test_units_are_counted_by_size():
    unit = {"product": "H100-80GB", "profile": "1g.10gb", "gpu_count": 0}

    assert size([unit, unit, {"product": "A100-80GB", "profile": "", "gpu_count": 4}]) == (
        "2 × H100-80GB/1g.10gb, A100-80GBx4"
    )


def test_why_is_the_first_hurdle_and_nothing_when_ready():
    placed = {"type": "Placed", "status": "False", "reason": "NoCapacity", "message": "All are held."}
    ready = {"type": "Ready", "status": "True", "reason": "Done", "message": ""}

    assert (
        why([{"type": "Ready", "status": "False", "reason": "Starting", "message": "starting"}, placed])
        == "All are held."
    )
    assert why([ready]) == "-"
    assert why([ready, {"type": "Healthy", "status": "False", "reason": "Unhealthy", "message": "slow"}]) == "slow"
    assert why([{"type": "Suspended", "status": "True", "reason": "ByOperator", "message": "unpaid"}]) == "unpaid"


def test_the_next_stage_is_the_first_that_is_not_done():
    done = {"decider": "tenant-owner", "done_at": "2026-06-01T12:00:00Z"}

    assert stage([done, {"decider": "platform-approver", "done_at": None}]) == "platform-approver"
    assert stage([done]) == "-"


def test_nothing_is_a_dash_and_false_is_no():
    assert (said(None), said(""), said([]), said(False), said(0)) == ("-", "-", "-", "no", "0")


def test_global_options_may_stand_anywhere_before_two_dashes():
    assert hoisted(["get", "endpoints", "-o", "json", "-q"]) == ["--output=json", "--quiet", "get", "endpoints"]
    assert hoisted(["get", "--tenant=a", "x"]) == ["--tenant=a", "get", "x"]
    assert hoisted(["ledger", "audit", "--", "-o", "json"]) == ["ledger", "audit", "--", "-o", "json"]
    assert hoisted(["get", "-o"]) == ["--output", "get"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 2), (401, 5), (403, 5), (404, 4), (409, 6), (412, 6), (422, 6), (428, 6), (429, 1), (500, 1), (503, 1)],
)
def test_each_http_status_has_its_exit_status(status, code):
    assert exit_code_of(status) == ExitCode(code)


def test_the_ready_made_request_becomes_a_command():
    ready = {
        "kind": "quota",
        "tenant": "aurora",
        "payload": {"mode": "add", "limits": {"vcpu": 8}, "ancestors": {"acme": {"vcpu": 4}}, "until": None},
    }

    assert request_command(ready) == "tenantry request quota --tenant aurora vcpu=8 --above=acme:vcpu=4"


def test_every_noun_is_found_by_each_of_its_words_and_no_word_means_two():
    every = [word for each in ALL for word in (each.name, each.singular, *each.short)]

    assert len(set(every)) == len(every) - sum(each.name == each.singular for each in ALL)
    assert all(noun(each.singular) is each for each in ALL)
    assert split_object("ep/chat") == (noun("endpoints"), "chat")
    with pytest.raises(UsageFault, match="there is no noun"):
        noun("pods")
    with pytest.raises(UsageFault, match="name one object"):
        split_object("endpoint")


def test_addresses_need_a_tenant_where_the_noun_has_one():
    assert noun("endpoints").collection() == "/endpoints"
    assert noun("endpoints").collection(tenant="a") == "/tenants/a/endpoints"
    assert noun("keys").collection(tenant="a", parent="chat") == "/tenants/a/endpoints/chat/keys"
    assert noun("requests").one("rq-1", tenant="a") == "/requests/rq-1"
    with pytest.raises(UsageFault, match="--tenant"):
        noun("quotas").collection()
    with pytest.raises(UsageFault, match="of which tenant"):
        noun("endpoints").one("chat")
