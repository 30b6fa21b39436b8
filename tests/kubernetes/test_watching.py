"""What rings when something changes in a cluster, on a stream that tests write themselves."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import pytest

from provisioners.driver import Kind, Ref, Secret, TransientDriverError
from provisioners.kubernetes import inventory, rbac, watching
from provisioners.kubernetes.client import Cluster, Expired, Listing
from provisioners.kubernetes.failures import AccessDenied
from provisioners.kubernetes.objects import Object, marked
from provisioners.kubernetes.settings import Settings
from provisioners.kubernetes.watching import HEARD, Heard, Timing

pytestmark = pytest.mark.slow

POD = Heard("v1", "Pod", bare=False)
QUICK = Timing(pause_s=0.005, longest_pause_s=0.02, denied_s=0.02, lived_s=0.0)
ENDPOINT = Ref(Kind.ENDPOINT, UUID(int=1), UUID(int=9))
OTHER = Ref(Kind.ENDPOINT, UUID(int=2), UUID(int=9))


def pod(version: int, *, ref: Ref = ENDPOINT, uid: str = "u1", ready: bool = True, **metadata: Any) -> Object:
    """Return a pod of ours as it stands at one version of the store."""
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": uid, "uid": uid, "resourceVersion": str(version), **metadata},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }
    return marked(obj, ref, step="serving.replica[0]", want="w")


class End:
    """The stream ends as it should."""


def bookmark(version: int) -> tuple[str, Object]:
    return "BOOKMARK", {"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": str(version)}}


@dataclass
class Fake:
    """A server of one kind: lists in order (the last one stays), and one script per stream."""

    lists: list[Any]
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    listed: int = 0
    since: list[str] = field(default_factory=list)
    served: bool = True
    away: int = 0
    """So many questions more are not answered."""

    def serves(self, api: str, kind: str = "") -> bool:
        del api, kind
        if self.away:
            self.away -= 1
            raise TransientDriverError("away")
        return self.served

    def list(self, api: str, kind: str, *, labels: str = "", bare: bool = False) -> Listing:
        assert (api, kind, bare, labels) == ("v1", "Pod", False, "tenantry.internal/uid")
        answer = self.lists[min(self.listed, len(self.lists) - 1)]
        self.listed += 1
        if isinstance(answer, Exception):
            raise answer
        version, *items = answer
        return Listing(tuple(items), str(version))

    def watch(
        self,
        api: str,
        kind: str,
        *,
        since: str,
        labels: str = "",
        timeout_s: int = 300,
        bare: bool = False,
        opened: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> Iterator[tuple[str, Object]]:
        del api, kind, labels, timeout_s, bare
        self.since.append(since)
        opened(lambda: self.events.put(TransientDriverError("broken off")))
        while True:
            event = self.events.get()
            if isinstance(event, End):
                return
            if isinstance(event, Exception):
                raise event
            yield cast("tuple[str, Object]", event)

    def tell(self, *events: Any) -> None:
        for event in events:
            self.events.put(event)


class Listener:
    """Iterates in a thread of its own and keeps what rang."""

    def __init__(self, fake: Fake, *, timing: Timing = QUICK, heard: tuple[Heard, ...] = (POD,)) -> None:
        self.fake = fake
        self.stop = threading.Event()
        self.rung: list[Ref] = []
        self._arguments = {"name": "east", "heard": heard, "timing": timing}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for ref in watching.changes(self.fake, self.stop, **self._arguments):  # type: ignore[arg-type]
            self.rung.append(ref)

    def settled(self) -> list[Ref]:
        """Return what rang, once everything told before was taken: a last change of a third object shows it."""
        last = Ref(Kind.ENDPOINT, UUID(int=77), UUID(int=9))
        self.fake.tell(("ADDED", pod(1_000_000, ref=last, uid="last")))
        eventually(lambda: last in self.rung)
        return [ref for ref in self.rung if ref != last]


def eventually(is_so: Callable[[], bool], *, within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end, f"not within {within_s} s"
        threading.Event().wait(0.005)


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def start(fake: Fake, **options: Any) -> Listener:
        made.append(Listener(fake, **options))
        return made[-1]

    yield start
    for one in made:
        one.stop.set()
        one.thread.join(timeout=5)
        assert not one.thread.is_alive()


Listen = Callable[..., Listener]


def test_what_is_there_at_the_beginning_rings_nobody_and_a_change_rings_its_owner(listen: Listen) -> None:
    fake = Fake([(10, pod(5), pod(6, ref=OTHER, uid="u2"))])
    listener = listen(fake)

    fake.tell(("MODIFIED", pod(11, ready=False)))

    assert listener.settled() == [ENDPOINT]
    assert fake.since == ["10"]


def test_a_change_that_no_pass_cares_for_rings_nobody(listen: Listen) -> None:
    fake = Fake([(10, pod(5))])
    listener = listen(fake)

    fake.tell(("MODIFIED", pod(11, managedFields=[{"manager": "kubelet", "operation": "Update"}])))

    assert listener.settled() == []


@pytest.mark.parametrize("known", [True, False], ids=["seen before", "never seen"])
def test_what_is_gone_rings_its_owner(listen: Listen, known: bool) -> None:
    fake = Fake([(10, pod(5)) if known else (10,)])
    listener = listen(fake)

    fake.tell(("DELETED", pod(11)))

    assert listener.settled() == [ENDPOINT]


def test_an_object_that_is_given_to_another_rings_both(listen: Listen) -> None:
    fake = Fake([(10, pod(5))])
    listener = listen(fake)

    fake.tell(("MODIFIED", pod(11, ref=OTHER)))

    assert set(listener.settled()) == {ENDPOINT, OTHER}


def test_what_carries_no_mark_of_ours_or_belongs_to_no_row_rings_nobody(listen: Listen) -> None:
    fake = Fake([(10,)])
    listener = listen(fake)
    stranger = pod(11, uid="x")
    stranger["metadata"]["labels"] = {"tenantry.internal/uid": "not-an-id"}
    stranger["metadata"]["annotations"] = {}

    fake.tell(("ADDED", stranger), ("ADDED", pod(12, uid="y", ref=Ref(Kind.LAYOUT, UUID(int=3), UUID(int=0)))))

    assert listener.settled() == []


def test_a_stream_that_ends_goes_on_from_the_last_bookmark(listen: Listen) -> None:
    fake = Fake([(10, pod(5))])
    listener = listen(fake)

    fake.tell(bookmark(40), End(), ("MODIFIED", pod(41, ready=False)), End())

    assert listener.settled() == [ENDPOINT]
    assert fake.since == ["10", "40", "41"]
    assert fake.listed == 1


def test_a_stream_that_breaks_is_resumed_from_the_last_event(listen: Listen) -> None:
    fake = Fake([(10, pod(5))])
    listener = listen(fake)

    fake.tell(("MODIFIED", pod(11, ready=False)), TransientDriverError("lost"), ("MODIFIED", pod(12)))

    assert listener.settled() == [ENDPOINT, ENDPOINT]
    assert fake.since == ["10", "11"]


def test_a_version_that_is_too_old_has_the_list_read_anew_and_what_differs_rings(listen: Listen) -> None:
    third = Ref(Kind.ENDPOINT, UUID(int=3), UUID(int=9))
    fourth = Ref(Kind.ENDPOINT, UUID(int=4), UUID(int=9))
    fake = Fake(
        [
            (10, pod(5), pod(6, ref=OTHER, uid="u2"), pod(7, ref=third, uid="u3")),
            (50, pod(5), pod(44, ref=OTHER, uid="u2", ready=False), pod(45, ref=fourth, uid="u4")),
        ]
    )
    listener = listen(fake)

    fake.tell(Expired("too old"))

    assert sorted(listener.settled(), key=str) == sorted([OTHER, third, fourth], key=str)
    assert fake.since[:2] == ["10", "50"]
    assert fake.listed == 2


def test_an_event_that_is_older_than_what_was_seen_rings_nobody(listen: Listen) -> None:
    fake = Fake([(10, pod(5))])
    listener = listen(fake)

    fake.tell(
        ("MODIFIED", pod(20, ready=False)),
        ("MODIFIED", pod(15)),
        ("DELETED", pod(16)),
        ("MODIFIED", pod(20, ready=False)),
    )

    assert listener.settled() == [ENDPOINT]


def test_a_list_that_is_older_than_what_was_seen_is_read_again(listen: Listen) -> None:
    fake = Fake([(10, pod(5)), (8,), (30, pod(5))])
    listener = listen(fake)

    fake.tell(Expired("too old"))
    eventually(lambda: fake.listed == 3)

    assert listener.settled() == []
    assert fake.since[-1] == "30"


def test_a_store_that_was_put_back_is_believed_after_a_while(listen: Listen) -> None:
    fake = Fake([(1000, pod(900)), (300, pod(250, ready=False))])
    listener = listen(fake)

    fake.tell(Expired("too old"))
    eventually(lambda: "300" in fake.since)
    fake.tell(("MODIFIED", pod(301)))

    assert listener.settled() == [ENDPOINT, ENDPOINT]
    assert fake.listed == 1 + watching.STALE_LISTS


def test_a_server_that_does_not_know_the_version_any_more_is_listed_anew(listen: Listen) -> None:
    fake = Fake([(1000, pod(900))])
    listener = listen(fake, timing=Timing(pause_s=0.005, longest_pause_s=0.02, lived_s=60.0))

    fake.tell(TransientDriverError("too large"), TransientDriverError("too large"))
    eventually(lambda: fake.listed == 2)

    assert listener.settled() == []


def test_a_cluster_that_is_away_is_told_of_once_and_once_more_when_it_is_back(
    listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    away = TransientDriverError("the cluster cannot be reached")
    fake = Fake([away, away, away, away, away, (10, pod(5))])

    with caplog.at_level(logging.WARNING):
        listener = listen(fake)
        fake.tell(("MODIFIED", pod(11, ready=False)))
        assert listener.settled() == [ENDPOINT]

    assert [record.getMessage() for record in caplog.records] == [
        "changes in east are not heard, sweeps find them: the cluster cannot be reached",
        "changes in east are heard again",
    ]


def test_a_cluster_that_is_away_is_asked_ever_more_rarely(listen: Listen) -> None:
    fake = Fake([TransientDriverError("away")])
    listen(fake, timing=Timing(pause_s=0.02, longest_pause_s=30.0))

    threading.Event().wait(0.5)  # 0.02 + 0.04 + … + 0.32 is more than that

    assert 2 <= fake.listed <= 6


def test_a_stream_that_ends_as_soon_as_it_is_opened_is_not_opened_again_and_again(listen: Listen) -> None:
    fake = Fake([(10,)])
    fake.tell(*(End() for _ in range(100)))
    listen(fake, timing=Timing(pause_s=0.02, lived_s=5.0))

    threading.Event().wait(0.5)

    assert 2 <= len(fake.since) <= 6


def test_a_kind_that_the_account_may_not_watch_is_tried_now_and_then(
    listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake([AccessDenied("our account may not do this with a Pod")] * 3 + [(10, pod(5))])
    listener = listen(fake)

    fake.tell(("MODIFIED", pod(11, ready=False)))

    assert listener.settled() == [ENDPOINT]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["not all changes in east are heard, sweeps find them: our account may not do this with a Pod"]


def test_a_kind_that_is_not_served_is_looked_for_now_and_then(listen: Listen) -> None:
    fake = Fake([(10, pod(5))], served=False)
    listener = listen(fake)
    threading.Event().wait(0.05)
    assert fake.listed == 0

    fake.served = True
    fake.tell(("MODIFIED", pod(11, ready=False)))

    assert listener.settled() == [ENDPOINT]


@pytest.mark.parametrize("why", ["not served", "denied"])
def test_a_kind_that_turns_out_to_be_none_of_ours_counts_no_more_as_away(
    listen: Listen, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    fake = Fake([AccessDenied("not yours")], away=4, served=why == "denied")
    listen(fake)

    eventually(lambda: "changes in east are heard again" in caplog.text)


def test_an_answer_that_makes_no_sense_does_not_end_the_listening(
    listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Fake([(10, pod(5))])
    listener = listen(fake)

    fake.tell(("MODIFIED", {"metadata": {"labels": 3, "uid": "u9", "resourceVersion": "11"}}), bookmark(12))

    assert listener.settled() == []
    assert "a watch failed" in caplog.text


def test_stop_ends_it_within_a_second_also_while_nothing_comes_and_while_it_waits(listen: Listen) -> None:
    quiet = listen(Fake([(10,)]))
    away = listen(Fake([TransientDriverError("away")]), timing=Timing(pause_s=60.0, longest_pause_s=60.0))
    eventually(lambda: bool(quiet.fake.since) and away.fake.listed == 1)
    watchers = [thread for thread in threading.enumerate() if thread.name == "watch-east-Pod"]
    began = time.monotonic()

    for one in (quiet, away):
        one.stop.set()
    for thread in (quiet.thread, away.thread, *watchers):
        thread.join(timeout=5)

    assert time.monotonic() - began < 1.0
    assert len(watchers) == 2
    assert not any(thread.is_alive() for thread in (quiet.thread, away.thread, *watchers))


# --- the client's own part ----------------------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch, *lines: bytes) -> list[tuple[str, Object]]:
    """Return what the client makes of the lines of a stream."""
    monkeypatch.setattr(Cluster, "_path", lambda *_: "/pods")
    monkeypatch.setattr(Cluster, "_lines", lambda *_, **__: iter(lines))
    cluster = Cluster(Settings(slug="east", url="https://127.0.0.1:1", ca_pem="", token=Secret("t")))
    try:
        return list(cluster.watch("v1", "Pod", since="7", bare=True))
    finally:
        cluster.close()


def test_events_carry_their_own_kind_also_where_only_metadata_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    line = b'{"type": "ADDED", "object": {"kind": "PartialObjectMetadata", "metadata": {"name": "a"}}}'

    assert told(monkeypatch, line) == [("ADDED", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}})]


def test_an_error_within_the_stream_is_too_old_or_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Expired):
        told(monkeypatch, b'{"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}}')
    with pytest.raises(TransientDriverError) as raised:
        told(monkeypatch, b'{"type": "ERROR", "object": {"code": 504, "message": "Too large resource version"}}')
    assert not isinstance(raised.value, Expired)
    with pytest.raises(TransientDriverError):
        told(monkeypatch, b'{"type": "ADDED", "obj')


# --- rights -------------------------------------------------------------------------------------------


def test_nothing_is_listened_to_that_the_control_plane_may_not_watch_or_does_not_make() -> None:
    rules = [rule.as_rule() for rule in rbac.CONTROL_PLANE]
    plurals = {"NetworkPolicy": "networkpolicies"}
    made = {*inventory.MARKED, ("v1", "Pod"), ("resource.k8s.io/v1", "ResourceClaim")}

    for one in HEARD:
        plural = plurals.get(one.kind, f"{one.kind.lower()}s")
        assert rbac.allows(rules, rbac.Right(one.api.rpartition("/")[0], plural, "watch")), one
        assert (one.api, one.kind) in made, one


def test_of_secrets_only_the_metadata_are_sent() -> None:
    assert [one.bare for one in HEARD if one.kind == "Secret"] == [True]
