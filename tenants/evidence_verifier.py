"""Verifies a pack of evidence, anywhere: `python3 verify.py PACK.zip`. Standard library only; it is in every pack.

It recomputes the SHA-256 of every file, of every event and of every checkpoint, looks whether each event follows from
the one before, and whether the checkpoints name the same events. Exit status 0: whole; 1: not.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from typing import Any

MANIFEST = "manifest.json"
SEPARATOR = chr(31)


def digest(text: str) -> str:
    """Return the SHA-256 of a text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def event_hash(event: dict[str, Any]) -> str:
    """Return the hash that an event must have: over the one before it and every field, in the database's words."""
    fields = [
        event["previous"], event["chain"], str(event["seq"]), str(event["at_us"]), event["tenant_id"] or "-",
        event["kind"], event["object_kind"], event["object_id"] or "-", event["actor"], event["person_id"] or "-",
        event["data_text"],
    ]  # fmt: skip
    return digest(SEPARATOR.join(fields))


def checkpoint_hash(checkpoint: dict[str, Any]) -> str:
    """Return the hash that a checkpoint must have."""
    return digest(SEPARATOR.join([checkpoint["previous"], str(checkpoint["at_us"]), checkpoint["heads_text"]]))


def faults(pack: zipfile.ZipFile) -> list[str]:
    """Return in one sentence each what does not fit; empty: the pack is whole."""
    manifest = json.loads(pack.read(MANIFEST))
    listed = manifest["files"]
    unlisted = sorted(set(pack.namelist()) - set(listed) - {MANIFEST})
    found = [f"{name} is not in the manifest." for name in unlisted]
    for name, facts in sorted(listed.items()):
        if name not in pack.namelist():
            found.append(f"{name} is missing.")
        elif hashlib.sha256(pack.read(name)).hexdigest() != facts["sha256"]:
            found.append(f"{name} is not the file that the manifest describes.")
    events = lines(pack, "events.jsonl")
    found += event_faults(events)
    found += checkpoint_faults(events, lines(pack, "checkpoints.jsonl"))
    return found


def lines(pack: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    """Return the objects of a file of one JSON object a line; none where the file is missing."""
    if name not in pack.namelist():
        return []
    return [json.loads(line) for line in pack.read(name).decode().splitlines() if line]


def event_faults(events: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with events, given by chain and number."""
    found = []
    before: dict[str, Any] | None = None
    for event in events:
        where = f"Event {event['seq']} of chain {event['chain']}"
        if event_hash(event) != event["hash"]:
            found.append(f"{where} does not have the hash of what it says.")
        if before is not None and before["chain"] == event["chain"]:
            if event["seq"] != before["seq"] + 1:
                found.append(f"{where} follows number {before['seq']}: something between them is missing.")
            elif event["previous"] != before["hash"]:
                found.append(f"{where} does not follow from the one before.")
        before = event
    return found


def checkpoint_faults(events: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with checkpoints, alone and against the events."""
    found = []
    known = {(event["chain"], event["seq"]): event["hash"] for event in events}
    for checkpoint in checkpoints:
        if checkpoint_hash(checkpoint) != checkpoint["hash"]:
            found.append(f"The checkpoint of {checkpoint['at']} does not have the hash of what it says.")
        for chain, (seq, hash_of_head) in json.loads(checkpoint["heads_text"]).items():
            if known.get((chain, seq), hash_of_head) != hash_of_head:
                found.append(f"The checkpoint of {checkpoint['at']} names another event {seq} of chain {chain}.")
    return found


def uncovered(events: list[dict[str, Any]], checkpoints: list[dict[str, Any]]) -> int:
    """Return how many of the newest events no checkpoint of the pack covers yet."""
    heads: dict[str, int] = {}
    for checkpoint in checkpoints:
        for chain, (seq, _hash) in json.loads(checkpoint["heads_text"]).items():
            heads[chain] = max(heads.get(chain, 0), seq)
    return sum(event["seq"] > heads.get(event["chain"], 0) for event in events)


def main(arguments: list[str]) -> int:
    """Verify the pack that the command line names; print what was found."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python3 verify.py PACK.zip\n")
        return 2
    with zipfile.ZipFile(arguments[0]) as pack:
        found = faults(pack)
        events, checkpoints = lines(pack, "events.jsonl"), lines(pack, "checkpoints.jsonl")
    for sentence in found:
        sys.stdout.write(f"{sentence}\n")
    open_end = uncovered(events, checkpoints)
    word = "BROKEN" if found else "whole"
    sys.stdout.write(
        f"{word}: {len(events)} events, {len(checkpoints)} checkpoints; {open_end} events are newer than the last one\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
