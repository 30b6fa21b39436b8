"""A stand-in for the hub on loopback: one repository at one commit, with the routes and headers of the real one.

That a real client takes it for a hub is a test of its own (`test_bring.py`, with huggingface_hub of vLLM's lab).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "meta-llama/Llama-3.1-8B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000
"""From this size on a file is kept by its SHA-256 and served from elsewhere, as with LFS."""


def repository() -> dict[str, bytes]:
    """Return files as publishers leave them: weights twice, pickles and code beside them."""
    shard = {f"model-0000{n}-of-00002.safetensors": bytes([n]) * 3_000_000 for n in (1, 2)}
    index = json.dumps({"weight_map": {f"w{n}": name for n, name in enumerate(shard)}}).encode()
    return {
        **shard,
        "model.safetensors.index.json": index,
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": b'{"model": {}}',
        "tokenizer.model": b"\x00\x01sentencepiece",
        "merges.txt": b"a b\n",
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE": b"as you like",
        "README.md": b"# a model",
        "consolidated.safetensors": b"\x09" * 2_000_000,
        "original/consolidated.00.pth": b"\x80\x04pickle",
        "original/model.safetensors": b"\x07" * 500_000,
        "pytorch_model.bin": b"\x80\x04pickle",
        "modeling_llama.py": b"print('code')",
        ".gitattributes": b"*",
    }


WANTED = frozenset({
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    "config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "LICENSE",
})  # fmt: skip


@dataclass
class Hub:
    """What is served and how badly."""

    files: dict[str, bytes] = field(default_factory=repository)
    repository: str = REPOSITORY
    commit: str = COMMIT
    extra: list[dict[str, Any]] = field(default_factory=list)
    """Further entries of the listing."""
    error: tuple[int, str] | None = None
    """(status, X-Error-Code) of every file."""
    listing_error: tuple[int, str] | None = None
    cut_after: int = 0
    """Each answer breaks off after so many bytes; 0: none does."""
    knows_ranges: bool = True
    busy: int = 0
    """So many requests for files are answered with 503."""
    sent_instead: dict[str, bytes] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)
    """Cleared: large files stop in their middle until it is set."""
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""

    def __post_init__(self) -> None:
        """Hold nothing back."""
        self.held.set()

    @property
    def total(self) -> int:
        """Bytes of what is wanted."""
        return sum(len(data) for name, data in self.files.items() if name in WANTED)

    def digest(self, name: str) -> str:
        """Return what the hub calls a file's content by."""
        data = self.files[name]
        if len(data) >= LARGE:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def listing(self) -> dict[str, Any]:
        """Return the answer about the commit."""
        siblings = []
        for name, data in self.files.items():
            one: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if len(data) >= LARGE:
                one["lfs"] = {"sha256": self.digest(name), "size": len(data), "pointerSize": 134}
            else:
                one["blobId"] = self.digest(name)
            siblings.append(one)
        return {"id": self.repository, "sha": self.commit, "siblings": [*siblings, *self.extra]}

    def tree(self) -> list[dict[str, Any]]:
        """Return the same as huggingface_hub asks for it when it loads a whole commit."""
        found = []
        for one in self.listing()["siblings"]:
            lfs = {"lfs": {**one["lfs"], "oid": one["lfs"]["sha256"]}} if "lfs" in one else {}
            found.append({"type": "file", "path": one["rfilename"], "size": one["size"], "oid": one["blobId"], **lfs})
        return found


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        """Answer without content."""
        self._answer(with_content=False)

    def do_GET(self) -> None:
        """Answer."""
        self._answer(with_content=True)

    def _answer(self, *, with_content: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append(path)
        if path == f"/api/models/{hub.repository}/revision/{hub.commit}":
            if hub.listing_error:
                self._refuse(*hub.listing_error)
            else:
                self._send(200, json.dumps(hub.listing()).encode(), {}, with_content=with_content)
            return
        if path == f"/api/models/{hub.repository}/tree/{hub.commit}":
            self._send(200, json.dumps(hub.tree()).encode(), {}, with_content=with_content)
            return
        elsewhere = path.startswith("/elsewhere/")
        name = path.removeprefix("/elsewhere/" if elsewhere else f"/{hub.repository}/resolve/{hub.commit}/")
        if name not in hub.files:
            self._refuse(404, "EntryNotFound")
        elif hub.error:
            self._refuse(*hub.error)
        elif hub.busy:
            hub.busy -= 1
            self._refuse(503, "")
        elif not elsewhere and len(hub.files[name]) >= LARGE:
            headers = {"Location": f"{hub.url}/elsewhere/{name}", **self._of(name, "X-Linked-Etag")}
            self._send(302, b"", {**headers, "X-Linked-Size": str(len(hub.files[name]))}, with_content=False)
        else:
            self._file(name, with_content=with_content)

    def _of(self, name: str, header: str) -> dict[str, str]:
        return {header: f'"{self.hub.digest(name)}"', "X-Repo-Commit": self.hub.commit}

    def _file(self, name: str, *, with_content: bool) -> None:
        data, headers, status = self.hub.sent_instead.get(name, self.hub.files[name]), self._of(name, "ETag"), 200
        begins = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        if begins and self.hub.knows_ranges:
            headers["Content-Range"] = f"bytes {begins}-{len(data) - 1}/{len(data)}"
            data, status = data[int(begins) :], 206
        self._send(status, data, headers, with_content=with_content)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, with_content: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if not with_content:
            return
        most = self.hub.cut_after if self.hub.cut_after and len(data) >= LARGE // 2 else len(data)
        for at in range(0, min(most, len(data)), 65536):
            if at >= len(data) // 2 and len(data) >= LARGE:
                self.hub.held.wait(60)
            chunk = data[at : min(at + 65536, most)]
            try:
                self.wfile.write(chunk)
            except OSError:
                return
            self.hub.sent += len(chunk)
        if most < len(data):
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"no", {"X-Error-Code": code} if code else {}, with_content=True)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it on loopback."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.held.set()
        server.shutdown()
        server.server_close()
