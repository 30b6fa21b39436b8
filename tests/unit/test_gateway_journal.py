"""The journal of open requests: what a process that was killed leaves, and that nothing torn is taken for anything."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from provisioners.gateway.journal import SLOT_BYTES, Journal, Opening
from provisioners.gateway.protocol import RequestOutcome, TokenSource

AT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def opening(number: int = 1, **fields: object) -> Opening:
    given = {
        "uid": UUID(int=number),
        "request_id": f"r{number}",
        "key_id": "k1",
        "endpoint_uid": UUID(int=3),
        "unit_uid": UUID(int=4),
        "revision": 2,
        "route": "chat/completions",
        "model": "alpha",
        "streamed": True,
        "started_at": AT,
        **fields,
    }
    return Opening(**given)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_a_request_that_was_open_comes_back_as_far_as_it_had_come(path: Path) -> None:
    journal = Journal(path, slots=4)
    slot = journal.open(opening())
    assert slot is not None
    slot.progress(status=200, prompt=7, completion=5, events=6, first_us=20_000, last_us=60_000)
    other = journal.open(opening(2))
    assert other is not None
    other.close()
    journal.close()

    ((_, left),) = Journal(path, slots=4).left()
    record = left.record

    assert (record.uid, record.request_id, record.key_id, record.revision) == (UUID(int=1), "r1", "k1", 2)
    assert (record.prompt_tokens, record.completion_tokens, record.token_source) == (7, 5, TokenSource.LAST_SEEN)
    assert (record.duration_ms, record.ttft_ms, record.itl_us, record.status) == (60, 20, 10_000, 200)
    assert (record.outcome, record.started_at) == (RequestOutcome.GATEWAY_DIED, AT)


def test_what_is_left_stays_until_it_is_closed_and_its_place_is_not_given_away(path: Path) -> None:
    first = Journal(path, slots=2)
    first.open(opening(1))
    first.close()

    second = Journal(path, slots=2)
    assert second.open(opening(2)) is not None
    assert second.open(opening(3)) is None
    second.close()
    third = Journal(path, slots=2)
    found = list(third.left())
    for slot, _ in found:
        slot.close()
    third.close()

    assert {left.record.uid for _, left in found} == {UUID(int=1), UUID(int=2)}
    assert list(Journal(path, slots=2).left()) == []


def test_a_journal_of_a_version_with_more_slots_is_read_whole(path: Path) -> None:
    journal = Journal(path, slots=8)
    for number in range(8):
        journal.open(opening(number + 1))
    journal.close()

    assert len(list(Journal(path, slots=2).left())) == 8
    assert path.stat().st_size == 8 * SLOT_BYTES


def test_a_long_name_is_shortened_rather_than_the_request_forgotten(path: Path) -> None:
    journal = Journal(path, slots=1)
    journal.open(opening(request_id="r" * 128, model="m" * 1900))
    journal.close()

    ((_, left),) = Journal(path, slots=1).left()
    record = left.record

    assert (record.request_id, record.model, record.uid) == ("r" * 64, "m" * 64, UUID(int=1))


def test_progress_is_never_seen_undone_between_two_notes(path: Path) -> None:
    """What another process sees at any moment is what a kill at that moment would leave."""
    Journal(path, slots=1).close()
    with path.open("rb") as file:
        seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    child = os.fork()
    if child == 0:  # pragma: no cover - it is killed
        journal = Journal(path, slots=1)
        slot = journal.open(opening())
        assert slot is not None
        for number in range(1, 1 << 62):
            slot.progress(status=200, prompt=7, completion=number, events=number, first_us=1, last_us=number)
    try:
        began, last, back = time.monotonic(), 0, 0
        while last < 50_000 and time.monotonic() < began + 60:
            (now,) = struct.unpack_from("<Q", seen, 32)
            back += now < last
            last = max(last, now)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.close()

    assert last >= 50_000
    assert back == 0


@pytest.mark.parametrize("at", [9, 13, 70, 200])
def test_a_slot_that_does_not_hold_up_is_nothing(path: Path, at: int) -> None:
    journal = Journal(path, slots=1)
    journal.open(opening())
    journal.close()
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)

    assert list(Journal(path, slots=1).left()) == []


def test_progress_outlives_sigkill_at_any_instruction(path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - it is killed
        journal = Journal(path, slots=1)
        slot = journal.open(opening())
        assert slot is not None
        for number in range(1, 1 << 30):
            slot.progress(status=200, prompt=7, completion=number, events=number, first_us=1, last_us=number)
            if number % 1000 == 0:
                os.write(writing, struct.pack("<Q", number))
    os.close(writing)
    told = struct.unpack("<Q", os.read(reading, 8))[0]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 1 << 16):
        told = struct.unpack("<Q", more[-8:])[0]
    os.close(reading)

    ((_, left),) = Journal(path, slots=1).left()
    record = left.record

    assert told <= record.completion_tokens <= told + 1000
