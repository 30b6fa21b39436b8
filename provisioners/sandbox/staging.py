"""Files of served models in an estate's cache. Simulated: nothing is loaded, bytes come as time passes. Pure."""

from __future__ import annotations

from provisioners.driver import DriverRejected, ModelFiles, NotSupported, StagedModel, StageProgress
from provisioners.sandbox.records import StagedRecord
from provisioners.sandbox.state import State


def stage(state: State, files: ModelFiles, now: float) -> StagedModel:
    """Begin where nothing has begun; return how far the files are. Raises `NotSupported`, `DriverRejected`."""
    if state.settings.models == "local":
        msg = "model servers of this estate read their files where they lie on this machine"
        raise NotSupported(msg)
    if not files.bytes_expected:
        msg = "how large its files are is not known, so there is nothing to simulate"
        raise DriverRejected(msg)
    uid = str(files.uid)
    record = state.staged.get(uid)
    if record is None or (record.source, record.commit) != (files.source, files.commit):
        record = StagedRecord(uid, files.source, files.commit, files.bytes_expected, now)
        state.put("staged", uid, record)
    there = int((now - record.began_at) * state.settings.stage_bytes_s)
    done = max(0, min(record.bytes_total, there))
    progress = StageProgress.DONE if done == record.bytes_total else StageProgress.RUNNING
    return StagedModel(progress, done, record.bytes_total, "simulated: nothing is loaded")


def drop(state: State, files: ModelFiles) -> StagedModel:
    """Forget the files; safe to repeat."""
    state.drop("staged", str(files.uid))
    return StagedModel(StageProgress.ABSENT, 0, None)
