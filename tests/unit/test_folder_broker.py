"""The broker in a folder: messages are there whole or not at all, and a broken one stops nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
from kombu.connection import Connection
from kombu.exceptions import ChannelError

from controlplane import folder_broker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def channel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    folder_broker.register()
    options = {
        "data_folder_in": str(folder / "data"),
        "data_folder_out": str(folder / "data"),
        "control_folder": str(folder / "control"),
    }
    with Connection("filesystem://", transport_options=options) as connection:
        yield connection.channel()


def test_a_message_that_was_put_is_got_once(channel: Any) -> None:
    channel._put("passes", {"number": 1})

    got = channel._get("passes")

    assert got == {"number": 1}
    with pytest.raises(Empty):
        channel._get("passes")


def test_a_message_shows_under_its_name_only_when_it_is_complete(
    channel: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)

    with pytest.raises(KeyboardInterrupt):
        channel._put("passes", {"number": 1})

    assert [file.suffix for file in (folder / "data").iterdir()] == [".new"]
    with pytest.raises(Empty):
        channel._get("passes")


def test_an_empty_message_is_thrown_away_and_the_next_one_is_got(channel: Any, folder: Path) -> None:
    (folder / "data" / "0_broken.passes.msg").touch()
    channel._put("passes", {"number": 2})

    got = channel._get("passes")

    assert got == {"number": 2}
    assert list((folder / "data").iterdir()) == []


def test_a_broken_table_of_queues_is_written_anew(channel: Any, folder: Path) -> None:
    (folder / "control").mkdir()
    (folder / "control" / "passes.exchange").write_text("[[")

    channel._queue_bind("passes", "passes", "", "passes")
    channel._queue_bind("passes", "other", "", "other")

    assert sorted(each.queue for each in channel.get_table("passes")) == ["other", "passes"]


def test_who_waits_for_messages_outlives_a_folder_that_is_away(channel: Any, folder: Path) -> None:
    (folder / "data").rmdir()
    with pytest.raises(Empty):
        channel._get("passes")
    (folder / "data").touch()
    with pytest.raises(Empty):
        channel._get("passes")
    (folder / "data").unlink()
    (folder / "data").mkdir()
    channel._put("passes", {"number": 3})

    got = channel._get("passes")

    assert got == {"number": 3}


def test_a_folder_that_is_a_plain_file_is_an_error_that_the_dispatcher_knows(channel: Any, folder: Path) -> None:
    (folder / "data").rmdir()
    (folder / "data").touch()

    with pytest.raises(ChannelError):
        channel._put("passes", {"number": 1})
