"""Usage records on disk between the request and the control plane's answer.

Append-only segments of JSON lines. One segment is open; sealing closes it for good, and its name is the batch's
id, so a segment sent twice is the same batch twice. A record that is written outlives SIGKILL of the gateway; `sync`,
which may be called in a thread, makes sealed ones outlive the machine. Segments found at start are sealed ones, what
the machine's death has torn of them is dropped. Records are sent as they were written: whole lines are put together,
nothing is parsed again in a process that answers requests.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from provisioners.gateway.protocol import MAX_BATCH_RECORDS, BadDocument, UsageRecord, parse
from provisioners.gateway.state import sync_folder

_SUFFIX: Final = ".jsonl"


class Spool:
    """The folder of segments. Used by the event loop only."""

    def __init__(self, path: Path) -> None:
        """Open or make `path`; what an earlier process left is sealed."""
        self.path: Final = path
        self._aside: Final = path / "refused"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sealed: dict[UUID, int] = {}
        self._unsynced: list[int] = []
        for file in sorted(path.glob(f"*{_SUFFIX}"), key=lambda found: found.stat().st_mtime_ns):
            self._sealed[UUID(file.stem)] = sum(1 for _ in _whole_lines(file))
        self._inherited: Final = frozenset(self._sealed)
        self._open: int | None = None
        self._open_id = uuid4()
        self._open_records = 0

    def append(self, *records: UsageRecord) -> None:
        """Keep records, in one write as far as they fit. Raises `OSError` when the disk is full or gone."""
        lines = [record.model_dump_json().encode() + b"\n" for record in records]
        while lines:
            room = MAX_BATCH_RECORDS - self._open_records
            self._write(lines[:room])
            lines = lines[room:]
            if self._open_records >= MAX_BATCH_RECORDS:
                self.seal()

    def _write(self, lines: list[bytes]) -> None:
        if self._open is None:
            self._open_id = uuid4()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._open = os.open(self._file(self._open_id), flags, 0o600)
        text = b"".join(lines)
        written = os.write(self._open, text)
        self._open_records += text.count(b"\n", 0, written)
        if written != len(text):
            self.seal()  # a half line must stay the last of its segment, where it is dropped
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def has(self, uid: UUID) -> bool:
        """Say whether a sealed segment holds the record of request `uid`."""
        text = str(uid).encode()
        return any(text in self._file(batch_id).read_bytes() for batch_id in self._sealed)

    def seal(self) -> None:
        """Close the open segment for more: from here on its content and its id belong together."""
        if self._open is None:
            return
        self._unsynced.append(self._open)
        self._open = None
        self._sealed[self._open_id], self._open_records = self._open_records, 0

    def sync(self) -> None:
        """Make what is sealed outlive the machine. Blocks; the one call that another thread may make meanwhile."""
        files, self._unsynced = self._unsynced, []
        try:
            for file in files:
                os.fsync(file)
        finally:
            for file in files:
                os.close(file)
        if files:
            sync_folder(self.path)

    def batches(self, gateway_uid: UUID) -> Iterator[tuple[UUID, bytes]]:
        """Yield (id, body of `USAGE_PATH`) of the sealed batches, oldest first; empty ones are dropped on the way."""
        for batch_id in tuple(self._sealed):
            lines = list(_whole_lines(self._file(batch_id)))
            if batch_id in self._inherited:
                lines = [line for line in lines if _holds_up(line)]
            if lines:
                head = f'{{"id":"{batch_id}","gateway_uid":"{gateway_uid}","records":['.encode()
                yield batch_id, head + b",".join(line[:-1] for line in lines) + b"]}"
            else:
                self.done(batch_id)

    def done(self, batch_id: UUID) -> None:
        """Forget a batch that the control plane has."""
        self._sealed.pop(batch_id, None)
        self._file(batch_id).unlink(missing_ok=True)

    def set_aside(self, batch_id: UUID) -> None:
        """Keep a batch that the control plane will never take out of the way of the others, for people."""
        self._aside.mkdir(mode=0o700, exist_ok=True)
        self._sealed.pop(batch_id, None)
        self._file(batch_id).replace(self._aside / f"{batch_id}{_SUFFIX}")

    @property
    def records(self) -> int:
        """How many records wait to be sent."""
        return self._open_records + sum(self._sealed.values())

    def close(self) -> None:
        """Seal what is open, and make it last."""
        self.seal()
        self.sync()

    def _file(self, batch_id: UUID) -> Path:
        return self.path / f"{batch_id}{_SUFFIX}"


def _whole_lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield line


def _holds_up(line: bytes) -> bool:
    """Say whether a line is a record: the machine's death may have torn one in the middle of a segment."""
    try:
        parse(UsageRecord, line)
    except BadDocument:
        return False
    return True
