"""The program that brings a model's files into a mirror, or takes them away again. It runs in a pod, with any Python.

Files that a model server reads at the commit come into a hidden folder beside the final one, each checked by the digest
that the commit gives it; one rename moves all of them into place. Killed anywhere, it goes on where it was. Only what
it brought is ever removed. Each second it says `{"bytes_done": …, "bytes_total": …}` on a line, and at its end its
verdict: `done`, `removed`, or `failed` with a word of `WORDS`. It ends with 0 once that is said; anything else is an
accident, after which it is to be started again. Routes and headers: huggingface_hub 2.4 (`HfApi.model_info`,
`hf_hub_url`, `hf_raise_for_status`). ADR 17.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import http.client
import importlib
import json
import os
import re
import shutil
import signal
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, urlsplit

WORDS = (
    "gated", "not-found", "no-safetensors", "not-whole", "other-bytes", "strange-list", "no-room", "no-right",
    "hub-away", "foreign", "unfinished",
)  # fmt: skip
RECORD = ".tenantry.json"
"""In each folder that was brought: what it is made of. A folder without it is somebody else's."""
KEPT = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
INDEX = "model.safetensors.index.json"
MODULES = "modules.json"
MOST_LISTED = 64 * 2**20
"""Bytes of a listing or an index that are read."""
AT_ONCE = 4
CHUNK = 2**20
ANSWER_S = 30.0
TRIES = 6
"""In a row without a byte in between."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_PART = re.compile(r"[0-9a-f]{8,32}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}(/[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}){0,4}")
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_RIGHT = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Failed(Exception):
    """It cannot be done; the word says why."""

    def __init__(self, word: str, **more: Any) -> None:
        """Keep the word and what belongs to it."""
        super().__init__(word)
        self.verdict = {"failed": word, **more}


class File(NamedTuple):
    """One file of a commit."""

    path: str
    size: int
    digest: str
    """`sha256:…` of the content, or `blob:…`, what git calls it by."""


class Stopped(Exception):
    """Another file has failed."""


# --- what is chosen ---------------------------------------------------------------------------------------


def listed(answer: Any, commit: str) -> list[File]:
    """Return the files of a hub's answer about a commit, without those whose names are no plain paths."""
    found = []
    if not isinstance(answer, dict) or answer.get("sha", commit) != commit:
        raise Failed("strange-list")
    for one in answer.get("siblings") or ():
        path = str(one.get("rfilename", ""))
        if not _PATH.fullmatch(path):
            continue
        lfs = one.get("lfs") or {}
        sha256, size = lfs.get("sha256"), lfs.get("size", one.get("size"))
        digest = f"sha256:{sha256}" if sha256 else f"blob:{one.get('blobId', '')}"
        if not isinstance(size, int) or size < 0 or not re.fullmatch(r"sha256:[0-9a-f]{64}|blob:[0-9a-f]{40}", digest):
            raise Failed("strange-list")  # nothing could be checked
        found.append(File(path, size, digest))
    return found


def chosen(files: list[File], index: Any, modules: Any) -> list[File]:
    """Return what a model server reads: all weights that the index names, or lie beside `config.json`, and small files.

    Copies of the weights that others read (`original/`, a consolidated file beside the index) are left out; parts
    that `modules.json` names (models that embed) are in.
    """
    by_path = {file.path: file for file in files}
    named = set((index or {}).get("weight_map", {}).values()) if isinstance(index, dict) else set()
    if named - by_path.keys():
        raise Failed("not-whole")
    folders = {str(one.get("path")) for one in modules or () if isinstance(one, dict)} - {""}
    found = [file for file in files if _is_small(file.path)]
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if name.endswith(".safetensors") and (folder in folders or (not folder and (not named or name in named))):
            found.append(file)
    if not any(file.path.endswith(".safetensors") for file in found):
        raise Failed("no-safetensors")
    return found


def _is_small(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix in KEPT or (name.stem.upper().startswith(LICENCES) and name.suffix in {"", ".md"})


# --- the hub ----------------------------------------------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow the hub to where it keeps its files, and from https nowhere else than to https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        was, now = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if now not in {"http", "https"} or (was == "https" and now != "https"):
            raise Failed("hub-away", why="it sends elsewhere without TLS")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Hub:
    """A hub, asked without an account."""

    def __init__(self, address: str, repository: str, commit: str, *, pause_s: float = 1.0) -> None:
        """Ask about one commit; `pause_s` is the first of the pauses between tries."""
        self._address = address.rstrip("/")
        self._repository, self._commit = repository, commit
        self._pause_s = pause_s
        self.stop = threading.Event()
        """Set where another file has failed."""
        context = ssl.create_default_context()
        with contextlib.suppress(ImportError, OSError):  # what huggingface_hub trusts, where the image has it
            context.load_verify_locations(importlib.import_module("certifi").where())
        self._opener = urllib.request.build_opener(_Redirects(), urllib.request.HTTPSHandler(context=context))

    def files(self) -> list[File]:
        """Return every file of the commit."""
        url = f"{self._address}/api/models/{self._repository}/revision/{self._commit}?blobs=true"
        try:
            return listed(json.loads(self._whole(url)), self._commit)
        except (ValueError, AttributeError, TypeError) as error:
            raise Failed("strange-list") from error

    def document(self, file: File | None) -> Any:
        """Return a JSON file of the commit, None for one that it has not."""
        if file is None:
            return None
        data = self._whole(self._url(file))
        if len(data) != file.size or not _is(file, _hashed(file, data)):
            raise Failed("other-bytes", path=file.path)
        try:
            return json.loads(data)
        except ValueError as error:
            raise Failed("strange-list") from error

    def _url(self, file: File) -> str:
        return f"{self._address}/{self._repository}/resolve/{self._commit}/{quote(file.path)}"

    def _whole(self, url: str) -> bytes:
        for attempt in range(1, TRIES + 1):
            try:
                with self._open(url, 0) as answer:
                    data: bytes = answer.read(MOST_LISTED + 1)
            except (OSError, http.client.HTTPException) as error:
                self._rest(attempt, error)
            else:
                if len(data) > MOST_LISTED:
                    raise Failed("strange-list")
                return data
        raise AssertionError  # the last try raises

    def _open(self, url: str, at: int) -> Any:
        headers = {"User-Agent": "tenantry-staging/1", "Accept-Encoding": "identity"}
        if at:
            headers["Range"] = f"bytes={at}-"
        return self._opener.open(urllib.request.Request(url, headers=headers), timeout=ANSWER_S)  # noqa: S310

    def load(self, file: File, to: Path, meter: Meter) -> None:
        """Load a file and see that it is what the commit says; go on with a part of it that is there."""
        part = to.with_name(f"{to.name}.part")
        to.parent.mkdir(parents=True, exist_ok=True)
        for is_last in (False, True):  # what an earlier run left may have been damaged
            state, at = _begun(file, part)
            meter.add(at)
            at = self._rest_of(file, part, state, at, meter)
            if _is(file, state):
                break
            part.unlink()
            meter.add(-at)
            if is_last:
                raise Failed("other-bytes", path=file.path)
        part.rename(to)

    def _rest_of(self, file: File, part: Path, state: Any, at: int, meter: Meter) -> int:
        """Append what is missing of a file; return how long it is then. `state` is fed with what is appended."""
        attempt = 0
        with part.open("ab") as out:
            while at < file.size:
                before, wrong = at, None
                try:
                    for chunk in self._chunks(file, at):
                        out.write(chunk)
                        state.update(chunk)
                        at += len(chunk)
                        meter.add(len(chunk))
                except (OSError, http.client.HTTPException) as error:
                    if _is_of_the_disk(error):
                        raise
                    wrong = error
                attempt = 0 if at > before else attempt + 1
                if at < file.size:
                    self._rest(attempt, wrong or TimeoutError("it broke off"))
            out.flush()
            os.fsync(out.fileno())
        return at

    def _chunks(self, file: File, at: int) -> Iterator[bytes]:
        """Yield what the hub has of a file from a byte on. Raises `Failed` where that is more than there should be."""
        with self._open(self._url(file), at) as answer:
            if at and answer.status == 206 and _begins(answer) != at:
                msg = "another part than was asked for"
                raise http.client.HTTPException(msg)
            if at and answer.status != 206:
                self._skip(answer, at)
            while chunk := answer.read(min(CHUNK, file.size - at) or 1):
                if self.stop.is_set():
                    raise Stopped
                at += len(chunk)
                if at > file.size:
                    raise Failed("other-bytes", path=file.path)
                yield chunk

    def _skip(self, answer: Any, count: int) -> None:
        while count > 0:
            chunk = answer.read(min(CHUNK, count))
            if not chunk:
                msg = "it broke off"
                raise http.client.HTTPException(msg)
            count -= len(chunk)

    def _rest(self, attempt: int, error: Exception) -> None:
        """Wait before another try. Raises `Failed` where there is none left or none would help."""
        pause_s = self._pause_s * 2 ** max(0, attempt - 1)
        if isinstance(error, urllib.error.HTTPError):
            told = error.headers.get("X-Error-Code", "")
            error.close()
            if told == "GatedRepo":
                raise Failed("gated") from error
            if told in {"RepoNotFound", "RevisionNotFound", "EntryNotFound"} or error.code in {404, 410}:
                raise Failed("not-found") from error
            is_hub = urlsplit(error.geturl()).netloc == urlsplit(self._address).netloc
            if error.code in {401, 403} and is_hub:
                raise Failed("gated") from error
            wait_s = error.headers.get("Retry-After", "")
            pause_s = max(pause_s, min(60.0, float(wait_s))) if wait_s.isdigit() else pause_s
        if attempt >= TRIES:
            reason = getattr(error, "reason", "") or error
            raise Failed("hub-away", why=f"{getattr(error, 'code', '')} {reason}".strip()[:200]) from error
        if self.stop.wait(min(60.0, pause_s)):
            raise Stopped


def _is_of_the_disk(error: Exception) -> bool:
    is_other = isinstance(error, (urllib.error.URLError, ssl.SSLError))  # its number is OpenSSL's
    return isinstance(error, OSError) and not is_other and error.errno in _NO_ROOM | _NO_RIGHT


def _begins(answer: Any) -> int:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _hashed(file: File, data: bytes = b"") -> Any:
    state = hashlib.sha256() if file.digest.startswith("sha256:") else hashlib.sha1(usedforsecurity=False)
    if file.digest.startswith("blob:"):
        state.update(b"blob %d\0" % file.size)
    state.update(data)
    return state


def _is(file: File, state: Any) -> bool:
    return bool(state.hexdigest() == file.digest.partition(":")[2])


def _begun(file: File, part: Path) -> tuple[Any, int]:
    """Return (digest so far, bytes) of a part that an earlier run left."""
    state, at = _hashed(file), 0
    if not part.exists() or part.stat().st_size > file.size:
        part.unlink(missing_ok=True)
        return state, 0
    with part.open("rb") as there:
        while chunk := there.read(CHUNK):
            state.update(chunk)
            at += len(chunk)
    return state, at


# --- telling ----------------------------------------------------------------------------------------------


class Meter:
    """Bytes that are there, told when they have changed."""

    def __init__(self, total: int) -> None:
        """Count up to `total`."""
        self._total, self._done, self._said = total, 0, -1
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self._done += count

    def say(self) -> None:
        """Print how far it is, where that has changed."""
        if self._done != self._said:
            self._said = self._done
            _say({"bytes_done": self._said, "bytes_total": self._total})


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


# --- bringing and removing --------------------------------------------------------------------------------


class Places:
    """Where a commit's files lie in a mirror, and where they lie until they are whole."""

    def __init__(self, root: Path, repository: str, commit: str, part: str) -> None:
        """Name them; `part` keeps apart those who bring the same commit into one export."""
        beside = root / repository
        self.final = beside / commit
        self.hidden = beside / f".{commit}.{part}"
        self.leaving = beside / f".{commit}.{part}.gone"


def bring(hub: Hub, places: Places) -> dict[str, Any]:
    """Bring a commit's files to their place; return the verdict."""
    shutil.rmtree(places.leaving, ignore_errors=True)  # a removal that was called off in its middle
    if places.final.exists():
        shutil.rmtree(places.hidden, ignore_errors=True)
        return _there(places.final)
    every = hub.files()
    by_path = {file.path: file for file in every}
    files = chosen(every, hub.document(by_path.get(INDEX)), hub.document(by_path.get(MODULES)))
    total = sum(file.size for file in files)
    meter = Meter(total)
    places.hidden.mkdir(parents=True, exist_ok=True)
    _tidy(places.hidden, {file.path for file in files})
    missing = []
    for file in files:
        there = places.hidden / file.path
        if there.is_file() and there.stat().st_size == file.size:  # it was checked before it got its name
            meter.add(file.size)
        else:
            missing.append(file)
    begun = sum(part.stat().st_size for part in places.hidden.rglob("*.part"))
    room = os.statvfs(places.hidden)
    needed, free = sum(file.size for file in missing) - begun, room.f_bavail * room.f_frsize
    if needed > free:
        raise Failed("no-room", bytes_needed=needed, bytes_free=free)
    meter.say()
    _load_all(hub, missing, places.hidden, meter)
    record = {file.path: {"size": file.size, "digest": file.digest} for file in files}
    (places.hidden / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    try:
        places.hidden.rename(places.final)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        shutil.rmtree(places.hidden, ignore_errors=True)  # somebody else was first
        return _there(places.final)
    return {"done": True, "bytes_done": total, "bytes_total": total, "files": len(files)}


def _tidy(folder: Path, wanted: set[str]) -> None:
    """Leave nothing in a folder but files that are wanted, and parts of them."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name.removesuffix(".part") not in wanted):
            path.unlink()


def _load_all(hub: Hub, missing: list[File], folder: Path, meter: Meter) -> None:
    """Load files, small ones first: what is refused is refused before many bytes have come."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        todo = {
            pool.submit(hub.load, file, folder / file.path, meter)
            for file in sorted(missing, key=lambda file: file.size)
        }
        left = todo
        while left:
            over, left = wait(left, timeout=1.0, return_when=FIRST_EXCEPTION)
            meter.say()
            if any(one.exception() for one in over):
                hub.stop.set()
                pool.shutdown(cancel_futures=True)
                break
    wrong = [error for one in todo if not one.cancelled() and (error := one.exception())]
    for error in sorted(wrong, key=lambda error: isinstance(error, Stopped)):
        raise error


def _there(folder: Path) -> dict[str, Any]:
    """Return the verdict on files that lie in their place already."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    if not any(path.suffix == ".safetensors" for path in files):
        raise Failed("unfinished")
    size = sum(path.stat().st_size for path in files)
    return {"done": True, "bytes_done": size, "bytes_total": size, "files": len(files), "was_there": True}


def remove(places: Places) -> dict[str, Any]:
    """Take a commit's files away, out of sight at once; return the verdict."""
    if places.final.exists():
        if not (places.final / RECORD).is_file():
            raise Failed("foreign")
        shutil.rmtree(places.leaving, ignore_errors=True)
        places.final.rename(places.leaving)
    for folder in (places.leaving, places.hidden):
        if folder.exists():
            shutil.rmtree(folder)
    return {"removed": True}


def _given(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=("bring", "remove"))
    for name in ("root", "repository", "commit", "part"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--hub", default="")
    parser.add_argument("--told", default="")
    parser.add_argument("--pause-s", type=float, default=1.0)
    given = parser.parse_args(words)
    for value, pattern in ((given.repository, _REPOSITORY), (given.commit, _COMMIT), (given.part, _PART)):
        if not pattern.fullmatch(value) or ".." in value:
            parser.error(f"{value[:60]!r} is not taken")
    return given


def _ended(number: int, _frame: Any) -> NoReturn:
    os._exit(128 + number)  # the first process of a container has no default for it


def main(words: list[str]) -> int:
    """Do what is asked and say the verdict."""
    signal.signal(signal.SIGTERM, _ended)
    os.umask(0o022)
    given = _given(words)
    places = Places(Path(given.root), given.repository, given.commit, given.part)
    try:
        if given.task == "remove":
            verdict = remove(places)
        else:
            verdict = bring(Hub(given.hub, given.repository, given.commit, pause_s=given.pause_s), places)
    except Failed as failed:
        verdict = failed.verdict
    except OSError as error:
        if error.errno not in _NO_ROOM | _NO_RIGHT:
            raise
        verdict = {"failed": "no-room" if error.errno in _NO_ROOM else "no-right"}
    _say(verdict)
    if given.told:
        Path(given.told).write_text(json.dumps(verdict), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
