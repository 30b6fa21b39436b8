"""Traces as requests: the mapping to profiles, the order, the compressed time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from provisioners.sandbox.traces import kind_of, openb_requests

OPENB = Path(__file__).resolve().parents[3] / "shared" / "traces" / "openb" / "openb_pod_list_default.csv"
HEAD = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"


@pytest.mark.parametrize(
    ("pod", "kind"),
    [
        ((1, 110, 1024), ("1g.10gb", 0)),
        ((1, 110, 16384), ("1g.20gb", 0)),
        ((1, 230, 1024), ("2g.20gb", 0)),
        ((1, 470, 65536), ("3g.40gb", 0)),
        ((1, 650, 1024), ("4g.40gb", 0)),
        ((1, 810, 1024), ("", 1)),
        ((1, 1000, 1024), ("", 1)),
        ((4, 1000, 1024), ("", 4)),
    ],
)
def test_a_pod_becomes_the_nearest_profile(pod: tuple[int, int, int], kind: tuple[str, int]) -> None:
    assert kind_of(*pod) == kind


def test_the_last_requests_come_in_order_within_the_given_time(tmp_path: Path) -> None:
    path = tmp_path / "pods.csv"
    path.write_text(
        HEAD
        + "cpu-only,1000,1024,0,0,,LS,Running,50,900,50\n"
        + "late,4500,2049,1,1000,,LS,Running,300,100,300\n"
        + "early,1000,1024,1,460,,LS,Running,100,500,100\n"
        + "first,1000,1024,2,1000,,LS,Running,10,500,10\n"
    )

    requests = openb_requests(path, last=2, tenants=20, within_s=60)

    assert [(one.name, one.arrives_s, one.leaves_s) for one in requests] == [("early", 0, 120), ("late", 60, 60)]
    assert [(one.profile, one.gpu_count) for one in requests] == [("3g.40gb", 0), ("", 1)]
    assert (requests[1].vcpu, requests[1].memory_gib) == (5, 3)
    assert openb_requests(path, last=0, tenants=20, within_s=60) == []


@pytest.mark.shared
def test_the_last_2000_requests_of_openb_are_spread_over_20_tenants() -> None:
    requests = openb_requests(OPENB, last=2000, tenants=20, within_s=900)

    per_tenant = Counter(one.tenant for one in requests)
    assert len(requests) == 2000
    assert set(per_tenant) == set(range(20))
    assert max(per_tenant.values()) < 160
    assert (requests[0].arrives_s, requests[-1].arrives_s) == (0, 900)
    assert all(one.leaves_s >= one.arrives_s for one in requests)
    assert requests == openb_requests(OPENB, last=2000, tenants=20, within_s=900)
