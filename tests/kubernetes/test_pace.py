"""How fast a cluster is asked: by our own limit, and slower where the server asks for it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from provisioners.driver import Secret, TransientDriverError
from provisioners.kubernetes.client import LONGEST_HOLD_S, Cluster, _Pace
from provisioners.kubernetes.settings import settings_of


def test_calls_beyond_the_burst_wait_their_turn_and_no_longer() -> None:
    pace = _Pace(50.0)
    for _ in range(50):
        pace.take()

    began = time.monotonic()
    for _ in range(5):
        pace.take()

    assert 0.05 < time.monotonic() - began < 2.0


def test_a_call_whose_turn_is_too_far_off_fails_and_says_when() -> None:
    pace = _Pace(0.1)
    pace.take()

    with pytest.raises(TransientDriverError) as raised:
        pace.take()

    assert raised.value.retry_after_s is not None
    assert raised.value.retry_after_s > LONGEST_HOLD_S


def test_what_the_server_asks_for_holds_every_thread_back() -> None:
    pace = _Pace(1000.0)
    pace.hold(0.2)
    began = time.monotonic()
    waited: list[float] = []

    def call() -> None:
        pace.take()
        waited.append(time.monotonic() - began)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert min(waited) >= 0.15


def test_processes_share_a_clusters_limits() -> None:
    settings = settings_of({"url": "https://x.invalid", "reads_per_s": 20, "writes_per_s": 10}, {"token": Secret("t")})
    alone, one_of_five = Cluster(settings), Cluster(replace(settings, processes=5))

    assert [alone._paces[writes]._per_s for writes in (False, True)] == [20.0, 10.0]
    assert [one_of_five._paces[writes]._per_s for writes in (False, True)] == [4.0, 2.0]
    one_of_many = Cluster(replace(settings, processes=500))
    assert [one_of_many._paces[writes]._per_s for writes in (False, True)] == [1.0, 1.0]
