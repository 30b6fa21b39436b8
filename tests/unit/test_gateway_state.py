"""What a gateway keeps on disk: identity, configuration, usage; killed at every write."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from provisioners.driver import Secret
from provisioners.gateway import spool as spool_module
from provisioners.gateway import state as state_module
from provisioners.gateway.protocol import (
    ConfigDocument,
    EnrolAnswer,
    RequestOutcome,
    SigningKey,
    UsageBatch,
    UsageRecord,
    parse,
)
from provisioners.gateway.signing import BadSignature, Signer
from provisioners.gateway.spool import Spool
from provisioners.gateway.state import ConfigRefused, StateError, StateFolder

AT = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
GATEWAY, BOUNDARY = UUID(int=2), UUID(int=1)
SIGNER = Signer(bytes(range(32)))
ANSWER = EnrolAnswer(gateway_uid=GATEWAY, boundary_uid=BOUNDARY, key_id=SIGNER.key_id, public_key=SIGNER.public_key)


def config(version: int = 1, **fields: object) -> ConfigDocument:
    given = {"version": version, "boundary_uid": BOUNDARY, "gateway_uid": GATEWAY, "issued_at": AT, **fields}
    return ConfigDocument(**given)  # type: ignore[arg-type]


def record(number: int = 0) -> UsageRecord:
    return UsageRecord(
        request_id=str(number),
        key_id="k1",
        endpoint_uid=UUID(int=3),
        unit_uid=None,
        revision=1,
        route="chat/completions",
        model="alpha",
        streamed=False,
        started_at=AT,
        duration_ms=5,
        status=200,
        outcome=RequestOutcome.COMPLETED,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def enrolled(folder: Path) -> StateFolder:
    state = StateFolder(folder, GATEWAY, Secret("tne_once"))
    state.enrolled(ANSWER)
    return state


# --- identity ---------------------------------------------------------------------------------------


def test_the_token_is_kept_until_enrolment_is_answered_and_forgotten_then(folder: Path) -> None:
    state = StateFolder(folder, GATEWAY, Secret("tne_once"))
    credential = state.identity.credential
    state.close()
    state = StateFolder(folder, GATEWAY, None)
    assert (state.identity.token, state.identity.credential, state.identity.enrolled) == ("tne_once", credential, False)

    state.enrolled(ANSWER)
    state.close()
    state = StateFolder(folder, GATEWAY, None)

    assert (state.identity.token, state.identity.credential, state.identity.enrolled) == ("", credential, True)
    assert "tne_once" not in (folder / "identity.json").read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {0o600}


def test_a_fresh_token_replaces_one_that_was_never_answered_and_keeps_the_credential(folder: Path) -> None:
    state = StateFolder(folder, GATEWAY, Secret("tne_first"))
    credential = state.identity.credential
    state.close()

    state = StateFolder(folder, GATEWAY, Secret("tne_second"))

    assert (state.identity.token, state.identity.credential) == ("tne_second", credential)


def test_secrets_are_in_no_repr(folder: Path) -> None:
    state = StateFolder(folder, GATEWAY, Secret("tne_once"))

    assert "tne_once" not in repr(state.identity)
    assert state.identity.credential not in repr(state.identity)


def test_a_folder_in_use_without_token_or_of_another_gateway_is_refused_in_plain_words(folder: Path) -> None:
    with pytest.raises(StateError, match="not enrolled and no token given"):
        StateFolder(folder, GATEWAY, None)
    state = enrolled(folder)

    with pytest.raises(StateError, match="used by another gateway process"):
        StateFolder(folder, GATEWAY, None)
    state.close()
    with pytest.raises(StateError, match="belongs to gateway"):
        StateFolder(folder, uuid4(), Secret("tne_other"))


def test_an_enrolment_answer_for_another_gateway_is_refused(folder: Path) -> None:
    state = StateFolder(folder, GATEWAY, Secret("tne_once"))

    with pytest.raises(ConfigRefused):
        state.enrolled(ANSWER.model_copy(update={"gateway_uid": uuid4()}))

    assert not state.identity.enrolled


# --- configuration ----------------------------------------------------------------------------------


def test_the_last_accepted_configuration_is_there_after_a_restart(folder: Path) -> None:
    state = enrolled(folder)
    accepted = state.accept(SIGNER.sign(config(3)), have=None)
    state.close()

    state = StateFolder(folder, GATEWAY, None)

    assert state.last_config() == accepted == config(3)


def test_older_twisted_and_foreign_configurations_are_refused_and_the_kept_one_stays(folder: Path) -> None:
    state = enrolled(folder)
    have = state.accept(SIGNER.sign(config(3)), have=None)

    with pytest.raises(ConfigRefused, match="older than 3"):
        state.accept(SIGNER.sign(config(2)), have=have)
    with pytest.raises(ConfigRefused, match="twice with different content"):
        state.accept(SIGNER.sign(config(3, report_interval_s=11.0)), have=have)
    with pytest.raises(ConfigRefused, match="another boundary"):
        state.accept(SIGNER.sign(config(4, boundary_uid=uuid4())), have=have)
    with pytest.raises(ConfigRefused, match="another gateway"):
        state.accept(SIGNER.sign(config(4, gateway_uid=uuid4())), have=have)
    with pytest.raises(BadSignature):
        state.accept(Signer.generate()[0].sign(config(4)), have=have)

    assert state.last_config() == have
    assert state.accept(SIGNER.sign(config(3)), have=have) is have


def test_a_configuration_changed_on_disk_is_not_served(folder: Path) -> None:
    state = enrolled(folder)
    state.accept(SIGNER.sign(config(3)), have=None)
    (folder / "config.json").write_text(Signer.generate()[0].sign(config(9)).model_dump_json())

    with pytest.raises(BadSignature):
        state.last_config()


def test_the_signing_key_can_be_changed_in_two_steps_also_across_restarts(folder: Path) -> None:
    new, _ = Signer.generate()
    both = tuple(SigningKey(key_id=s.key_id, public_key=s.public_key) for s in (SIGNER, new))
    state = enrolled(folder)

    first = state.accept(SIGNER.sign(config(1, signing_keys=both)), have=None)
    state.close()
    state = StateFolder(folder, GATEWAY, None)
    assert state.last_config() == first
    second = state.accept(new.sign(config(2, signing_keys=both[1:])), have=first)
    state.close()
    state = StateFolder(folder, GATEWAY, None)

    assert state.last_config() == second
    with pytest.raises(BadSignature):
        state.accept(SIGNER.sign(config(3)), have=second)


def test_a_removed_gateway_keeps_only_that_it_was_removed(folder: Path) -> None:
    state = enrolled(folder)
    state.accept(SIGNER.sign(config()), have=None)

    state.forget()
    state.close()
    state = StateFolder(folder, GATEWAY, None)

    assert state.identity.removed
    assert state.last_config() is None


# --- killed at any line -----------------------------------------------------------------------------

CALLS = ["open", "write", "fsync", "close", "replace"]


def killed_at(call: str, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do `work` in a child that kills itself (SIGKILL) on entering its first `call`."""

    def kill(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            if call == "replace":
                monkeypatch.setattr(Path, "replace", kill)
            else:
                monkeypatch.setattr(state_module.os, call, kill)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


@pytest.mark.parametrize("call", CALLS)
def test_killed_while_a_configuration_is_written_the_old_one_is_whole(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = enrolled(folder)
    have = state.accept(SIGNER.sign(config(1)), have=None)

    killed_at(call, lambda: state.accept(SIGNER.sign(config(2)), have=have), monkeypatch)

    assert state.last_config() == config(1)
    assert state.accept(SIGNER.sign(config(2)), have=have) == config(2)
    assert state.last_config() == config(2)


@pytest.mark.parametrize("call", CALLS)
def test_killed_while_enrolment_is_kept_it_can_be_asked_for_again(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFolder(folder, GATEWAY, Secret("tne_once"))
    digest = state.credential_digest

    killed_at(call, lambda: state.enrolled(ANSWER), monkeypatch)
    state.close()
    state = StateFolder(folder, GATEWAY, None)

    assert (state.identity.token, state.credential_digest) == ("tne_once", digest)


# --- the spool --------------------------------------------------------------------------------------


def batches(spool: Spool) -> list[UsageBatch]:
    return [parse(UsageBatch, body) for _, body in spool.batches(GATEWAY)]


def test_records_come_out_as_they_went_in_and_a_batch_keeps_its_id(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(record(number))
    assert (spool.records, batches(spool)) == (3, [])

    spool.seal()
    (first,) = batches(spool)
    spool.append(record(3))
    (again,) = batches(spool)

    assert first == again
    assert first.records == tuple(record(number) for number in range(3))
    assert spool.records == 4


def test_a_batch_is_forgotten_only_when_it_is_done(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(record())
    spool.seal()
    (batch,) = batches(spool)

    assert [b.id for b in batches(Spool(tmp_path))] == [batch.id]
    spool.done(batch.id)

    assert (spool.records, batches(Spool(tmp_path)), list(tmp_path.iterdir())) == (0, [], [])


def test_a_full_segment_is_sealed_by_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path)

    for number in range(spool_module.MAX_BATCH_RECORDS + 1):
        spool.append(record(number))

    (batch,) = batches(spool)
    assert len(batch.records) == 500
    assert spool.records == 501


def test_records_outlive_sigkill(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            spool = Spool(tmp_path)
            for number in range(7):
                spool.append(record(number))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)

    spool = Spool(tmp_path)

    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert [r.request_id for batch in batches(spool) for r in batch.records] == [str(n) for n in range(7)]


def test_a_torn_last_line_costs_that_record_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(record(1))
    spool.append(record(2))
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-10])

    (batch,) = batches(Spool(tmp_path))

    assert [r.request_id for r in batch.records] == ["1"]


def test_a_full_disk_raises_and_the_records_around_it_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path)
    spool.append(record(1))
    real = os.write
    with monkeypatch.context() as full:
        full.setattr(spool_module.os, "write", lambda file, data: real(file, data[:20]))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            spool.append(record(2))
    spool.append(record(3))
    spool.seal()

    assert [r.request_id for batch in batches(spool) for r in batch.records] == ["1", "3"]


def test_a_batch_set_aside_is_kept_for_people(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(record())
    spool.seal()
    (batch,) = batches(spool)

    spool.set_aside(batch.id)

    assert batches(Spool(tmp_path)) == []
    assert [path.stem for path in (tmp_path / "refused").iterdir()] == [str(batch.id)]


def test_a_line_that_a_dying_machine_tore_in_the_middle_costs_that_record_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(record(number))
    spool.close()
    (segment,) = tmp_path.glob("*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(lines[0] + lines[1][:30] + bytes(20) + b"\n" + lines[2])

    (batch,) = batches(Spool(tmp_path))

    assert [r.request_id for r in batch.records] == ["0", "2"]


def test_what_is_sealed_is_synced_once_and_may_be_sent_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(spool_module.os, "fsync", synced.append)
    spool = Spool(tmp_path)
    for number in range(spool_module.MAX_BATCH_RECORDS + 1):
        spool.append(record(number))

    before = len(synced), len(batches(spool))
    spool.seal()
    spool.sync()
    spool.sync()

    assert (before, len(batches(spool))) == ((0, 1), 2)
    assert len(synced) == 3  # both segments, and the names in their folder
