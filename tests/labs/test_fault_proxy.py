"""The proxy in front of a lab's apiserver makes the trouble that it is told to make, and no other."""

from __future__ import annotations

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from controlplane.labs.kubernetes.credentials import Credentials
from controlplane.labs.kubernetes.faults import Fault, FaultProxy, What


class Server(BaseHTTPRequestHandler):
    """Stands for an apiserver: remembers what it carried out."""

    done: list[str] = []

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        type(self).done.append(f"{self.command} {self.path} {body}".strip())
        text = ("x" * 4000).encode()
        self.send_response(201 if self.command == "POST" else 200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815 - http.server looks for these names

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    made = Credentials(tmp_path_factory.mktemp("pki"))
    made.make()
    return made


@pytest.fixture
def proxy(pki):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pki.certificate("apiserver"), pki.key("apiserver"))
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Server.done.clear()
    with FaultProxy(f"https://127.0.0.1:{server.server_address[1]}", pki.folder) as running:
        yield running
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def client(proxy, pki):
    tls = ssl.create_default_context(cafile=str(pki.ca))
    with httpx.Client(base_url=proxy.url, verify=tls, timeout=5, trust_env=False) as made:
        yield made


def test_what_meets_no_fault_passes_untouched(client):
    answer = client.post("/api/v1/pods?dryRun=All", content=b"body")

    assert (answer.status_code, len(answer.content)) == (201, 4000)
    assert Server.done == ["POST /api/v1/pods?dryRun=All body"]


def test_a_refusal_never_reaches_the_server_and_ends_after_its_times(proxy, client):
    proxy.add(Fault(What.REFUSE, path="/pods", status=429, seconds=3, times=2))

    answers = [client.get("/api/v1/pods") for _ in range(3)]

    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "3"
    assert answers[0].json()["reason"] == "TooManyRequests"
    assert len(Server.done) == 1


def test_a_lost_answer_was_carried_out(proxy, client):
    proxy.add(Fault(What.LOSE, method="PATCH"))

    with pytest.raises(httpx.HTTPError):
        client.patch("/api/v1/pods/a", content=b"p")

    assert Server.done == ["PATCH /api/v1/pods/a p"]


def test_a_cut_connection_was_not(proxy, client):
    proxy.add(Fault(What.CUT, after=1))
    assert client.get("/first").status_code == 200

    with pytest.raises(httpx.HTTPError):
        client.get("/second")

    assert Server.done == ["GET /first"]
    assert client.get("/third").status_code == 200


def test_an_answer_that_breaks_off_is_an_error_and_not_a_short_list(proxy, client):
    proxy.add(Fault(What.TRUNCATE))

    with pytest.raises(httpx.HTTPError):
        client.get("/api/v1/pods")
