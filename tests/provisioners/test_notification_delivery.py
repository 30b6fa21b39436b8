"""Deliveries against a real receiver: down, slow, lying, redirecting, rebinding, and workers that die in between."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.core import mail

from provisioners import egress, notifying
from provisioners.egress import Answer
from provisioners.notifying import Notifier
from tenants.models import Delivery, DeliveryAttempt, Notification, OutboxMail, Webhook
from tenants.notifications import addresses, fanout, signing
from tenants.operations import notifications, requests
from tenants.states import Role
from tests import factories
from tests.conftest import NOW

pytestmark = [pytest.mark.usefixtures("db"), pytest.mark.slow]

LOOPBACK = addresses.networks("127.0.0.0/8")
HOUR = timedelta(hours=1)


class Receiver:
    """A real HTTP server whose next answers are set, and that remembers what it got."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answer: Any = self.ok
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
                receiver.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/in"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    @staticmethod
    def ok(handler):
        Receiver.status(200)(handler)

    @staticmethod
    def status(code, **headers):
        def answer(handler):
            handler.send_response(code)
            for name, value in {"Content-Length": "0", **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()

        return answer

    def hang(self, _):
        self.released.wait(20)

    def drip(self, handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.released.wait(0.05):
            try:
                handler.wfile.write(b"x")
                handler.wfile.flush()
            except OSError:
                return

    @staticmethod
    def lie(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nall is")
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def flood(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        try:
            for _ in range(1000):
                handler.wfile.write(b"x" * 10_000)
        except OSError:
            pass

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


class World:
    """A tenant whose owner is told by mail and by webhook of what its member asks for."""

    def __init__(self, settings):
        settings.TENANTRY_WEBHOOK_NETWORKS = "127.0.0.0/8"
        self.now = NOW
        self.tenant = factories.tenant(name="acme")
        factories.generous(self.tenant)
        self.owner = factories.member(self.tenant, Role.OWNER)
        self.member = factories.member(self.tenant)
        self.notifier = Notifier(clock=lambda: self.now)

    def webhook(self, url, name="hook"):
        return notifications.create_webhook(
            tenant=self.tenant, name=name, url=url, kinds=[], actor=factories.actor(self.owner), now=self.now
        )

    def message(self):
        requests.submit(
            kind="quota", payload={"limits": {"vcpu": 1}}, reason="more", tenant=self.tenant,
            actor=factories.actor(self.member), now=self.now,
        )  # fmt: skip
        fanout.run(self.now)
        Delivery.objects.filter(medium="mail", state="pending").delete()
        return Delivery.objects.filter(medium="webhook", webhook__name="hook").latest("created_at")

    def deliver(self, **options):
        notifier = Notifier(clock=lambda: self.now, **options) if options else self.notifier
        return notifier.deliver()

    def to_the_next(self, delivery):
        delivery.refresh_from_db()
        self.now = delivery.next_at


@pytest.fixture
def world(settings):
    return World(settings)


def impatient(job, now):
    return notifying.send_webhook(job, now, deadline_s=0.4)


def tries(delivery):
    return list(DeliveryAttempt.objects.filter(delivery=delivery).order_by("number").values_list("outcome", "status"))


def test_a_message_arrives_once_signed_and_the_log_says_so(world, receiver):
    _, secret = world.webhook(receiver.url)
    delivery = world.message()

    made = [world.deliver(), world.deliver()]

    delivery.refresh_from_db()
    [(headers, body)] = receiver.got
    said = json.loads(body)
    assert made == [1, 0]
    assert headers["webhook-id"] == signing.message_id(delivery.pk)
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    expected = signing.signature(headers["webhook-id"], headers["webhook-timestamp"], body, secret)
    assert headers["webhook-signature"] == expected
    assert (said["type"], said["data"]["tenant"]) == ("request.waiting", "acme")
    assert world.member.display_name not in body.decode()
    assert (delivery.state, delivery.status) == ("delivered", 200)
    attempt = DeliveryAttempt.objects.get()
    assert (attempt.outcome, attempt.status, attempt.started_at) == ("delivered", 200, NOW)
    assert attempt.latency_ms is not None


def test_a_receiver_that_is_down_for_an_hour_gets_everything_once_under_the_same_ids(world, receiver):
    world.webhook(receiver.url)
    first, second = world.message(), world.message()
    receiver.answer = receiver.status(503)
    end = NOW + timedelta(days=1)

    while Delivery.objects.filter(state="pending").exists() and world.now < end:
        if world.now >= NOW + HOUR:
            receiver.answer = receiver.ok
        world.deliver()
        waiting = Delivery.objects.filter(state="pending").order_by("next_at").first()
        world.now = waiting.next_at if waiting is not None else world.now

    for delivery in (first, second):
        outcomes = tries(delivery)
        started = list(DeliveryAttempt.objects.filter(delivery=delivery).order_by("number").values_list("started_at"))
        assert outcomes == [("failed", 503)] * (len(outcomes) - 1) + [("delivered", 200)]
        assert 6 <= len(outcomes) <= 8
        assert len(set(started)) == len(started)
        assert receiver.ids.count(signing.message_id(delivery.pk)) == len(outcomes)
    bodies = {headers["webhook-id"]: body for headers, body in receiver.got}
    assert all(bodies[headers["webhook-id"]] == body for headers, body in receiver.got)
    assert Webhook.objects.get().failing_since is None


def test_a_slow_receiver_delays_only_its_own(world, receiver):
    other = Receiver()
    try:
        receiver.answer = receiver.hang
        world.webhook(receiver.url)
        world.webhook(other.url, "quick")
        slow = world.message()
        world.message()

        world.deliver(webhook=impatient)

        assert len(other.got) == 2
        slow.refresh_from_db()
        assert (slow.state, slow.reason) == ("pending", "No complete answer within 0.4 s.")
        assert Delivery.objects.filter(webhook__name="quick", state="delivered").count() == 2
    finally:
        other.close()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("drip", "No complete answer within 0.4 s."),
        ("lie", "The connection broke off before the answer was complete."),
    ],
)
def test_an_answer_that_never_ends_or_breaks_off_is_no_answer(world, receiver, behaviour, reason):
    world.webhook(receiver.url)
    delivery = world.message()
    receiver.answer = getattr(receiver, behaviour)

    world.deliver(webhook=impatient)
    delivery.refresh_from_db()
    after_lie = (delivery.state, delivery.reason)
    receiver.answer = receiver.ok
    world.to_the_next(delivery)
    world.deliver()

    assert after_lie == ("pending", reason)
    assert tries(delivery) == [("failed", None), ("delivered", 200)]
    assert len(set(receiver.ids)) == 1


def test_a_flood_is_cut_off_and_counts_as_taken(world, receiver):
    world.webhook(receiver.url)
    delivery = world.message()
    receiver.answer = receiver.flood

    world.deliver()

    assert tries(delivery) == [("delivered", 200)]


def test_redirects_are_not_followed(world, receiver):
    inner = Receiver()
    try:
        world.webhook(receiver.url)
        delivery = world.message()
        receiver.answer = receiver.status(307, Location=inner.url)

        world.deliver()

        delivery.refresh_from_db()
        assert inner.got == []
        assert delivery.reason == "It redirects (307); redirects are not followed."
    finally:
        inner.close()


def test_retry_after_is_heeded_up_to_an_hour(world, receiver):
    world.webhook(receiver.url)
    delivery = world.message()
    receiver.answer = receiver.status(429, Retry_After="900")

    world.deliver()
    delivery.refresh_from_db()
    asked = delivery.next_at
    receiver.answer = receiver.status(503, Retry_After="999999")
    world.to_the_next(delivery)
    world.deliver()
    delivery.refresh_from_db()

    assert asked == NOW + timedelta(seconds=900)
    assert delivery.next_at == asked + HOUR


# --- names and addresses --------------------------------------------------------------------------------


def certificate(name: str, folder) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's context of a certificate for one name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context(cadata=made.public_bytes(serialization.Encoding.PEM).decode())
    return server, client


@contextmanager
def tls_receiver(name, folder):
    server, client = certificate(name, folder)
    made = Receiver(server)
    try:
        yield made, client
    finally:
        made.close()


class Rebinding:
    """A resolver that says something else each time."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, *_):
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


def test_the_connection_goes_to_the_checked_address_whatever_the_name_says_next(tmp_path):
    with tls_receiver("hooks.example.org", tmp_path) as (receiver, client):
        target = addresses.parse(f"https://hooks.example.org:{receiver.port}/in")
        resolver = Rebinding(["127.0.0.1"], ["10.0.0.1"])
        post = partial(egress.post, target, b"{}", {}, allowed=LOOPBACK, resolver=resolver, context=client)

        first, second = post(), post()

        assert (first.outcome, first.status, second.outcome) == ("delivered", 200, "blocked")
        assert resolver.asked == 2
        assert [headers["host"] for headers, _ in receiver.got] == [f"hooks.example.org:{receiver.port}"]


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["1.1.1.1", "127.0.0.1"], ["::1"], ["::ffff:10.0.0.1"],
        ["fe80::1%eth0"], ["fd00:ec2::254"], ["64:ff9b::7f00:1"],
    ],
)  # fmt: skip
def test_a_name_with_any_address_that_must_not_be_reached_is_blocked_before_a_connection(receiver, answers):
    target = addresses.parse(f"https://hooks.example.org:{receiver.port}/in")

    answer = egress.post(target, b"{}", {}, resolver=lambda *_: answers)

    assert answer.outcome == "blocked"
    assert receiver.got == []


def test_a_certificate_of_another_name_is_not_trusted(tmp_path):
    with tls_receiver("other.example.org", tmp_path) as (receiver, client):
        target = addresses.parse(f"https://hooks.example.org:{receiver.port}/in")

        answer = egress.post(target, b"{}", {}, allowed=LOOPBACK, resolver=lambda *_: ["127.0.0.1"], context=client)

        assert (answer.outcome, answer.reason) == ("failed", "The TLS connection is not trusted.")
        assert receiver.got == []


def test_a_proxy_of_the_environment_is_not_used(world, receiver, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    world.webhook(receiver.url)
    delivery = world.message()

    world.deliver()

    assert tries(delivery) == [("delivered", 200)]


def test_an_address_that_the_operator_no_longer_allows_is_blocked(world, receiver, settings):
    world.webhook(receiver.url)
    delivery = world.message()
    settings.TENANTRY_WEBHOOK_NETWORKS = ""

    world.deliver()

    assert tries(delivery) == [("blocked", None)]
    assert receiver.got == []


# --- windows, leases, ends ------------------------------------------------------------------------------


def test_a_worker_killed_in_an_attempt_loses_nothing_and_nobody_sends_in_its_window(world, receiver):
    world.webhook(receiver.url)
    delivery = world.message()
    [lost] = world.notifier.claim(8)  # and then it is killed

    world.now = NOW + notifying.WINDOW - timedelta(seconds=1)
    within = world.deliver()
    world.now = NOW + notifying.WINDOW
    after = world.deliver()
    late = world.notifier.record(lost, Answer("failed", "too late"))

    delivery.refresh_from_db()
    assert (within, after, late) == (0, 1, False)
    assert tries(delivery) == [("unknown", None), ("delivered", 200)]
    assert (delivery.state, receiver.ids) == ("delivered", [signing.message_id(delivery.pk)])


def test_two_workers_never_have_the_same_delivery_nor_two_of_one_webhook(world, receiver):
    world.webhook(receiver.url)
    world.message()
    world.message()

    claimed = [len(world.notifier.claim(8)), len(Notifier(clock=lambda: NOW).claim(8))]

    assert claimed == [1, 0]


def test_a_worker_that_was_held_up_sends_nothing(world, receiver):
    world.webhook(receiver.url)
    delivery = world.message()
    slow = Notifier(clock=lambda: NOW, window=timedelta(0))

    slow.deliver()

    assert receiver.got == []
    assert tries(delivery) == [("failed", None)]


def test_after_a_day_it_is_dead_the_owners_are_told_and_it_can_be_sent_again(world, receiver):
    world.webhook(receiver.url)
    delivery = world.message()
    receiver.answer = receiver.status(500)

    while delivery.state == "pending":
        world.deliver()
        world.to_the_next(delivery)
    fanout.run(world.now)
    dead = (delivery.state, delivery.reason, delivery.done_at - NOW < timedelta(days=1))
    receiver.answer = receiver.ok
    notifications.send_again(delivery=delivery, actor=factories.actor(world.owner), now=world.now)
    world.deliver()

    delivery.refresh_from_db()
    assert dead[0] == "dead"
    assert dead[1].startswith("Given up after")
    assert dead[1].endswith("It answered 500.")
    assert dead[2]
    assert Notification.objects.filter(kind="webhook.failing", person=world.owner).count() == 1
    assert delivery.state == "delivered"
    assert len(set(receiver.ids)) == 1


def test_a_webhook_that_only_failed_for_days_is_switched_off_and_its_owners_are_told(world, receiver):
    row, _ = world.webhook(receiver.url)
    receiver.answer = receiver.status(500)
    world.message()
    world.deliver()

    world.now = NOW + timedelta(days=5)
    waiting = world.message()
    behind = world.message()
    world.deliver()
    world.now += HOUR
    world.deliver()
    fanout.run(world.now)

    row.refresh_from_db()
    assert row.disabled_why == "it failed for 5 days; the last answer: It answered 500."
    assert Notification.objects.filter(kind="webhook.disabled", person=world.owner).count() == 1
    for delivery in (waiting, behind):
        delivery.refresh_from_db()
        assert delivery.state == "dead"
    assert len(receiver.got) == 2


def test_a_receiver_that_is_gone_is_believed(world, receiver):
    row, _ = world.webhook(receiver.url)
    world.message()
    receiver.answer = receiver.status(410)

    world.deliver()

    row.refresh_from_db()
    assert row.disabled_at == NOW


def test_a_test_message_is_signed_like_all_others(world, receiver):
    row, secret = world.webhook(receiver.url)
    sent = notifications.try_webhook(webhook=row, actor=factories.actor(world.owner), now=NOW)

    world.deliver()

    [(headers, body)] = receiver.got
    assert json.loads(body)["type"] == "webhook.test"
    assert headers["webhook-id"] == signing.message_id(sent.pk)
    stamp = headers["webhook-timestamp"]
    assert headers["webhook-signature"] == signing.signature(headers["webhook-id"], stamp, body, secret)


# --- mail -----------------------------------------------------------------------------------------------


def asked(world, at):
    requests.submit(
        kind="quota", payload={"limits": {"vcpu": 1}}, reason="more", tenant=world.tenant,
        actor=factories.actor(world.member), now=at,
    )  # fmt: skip


def test_mail_goes_at_once_and_keeps_its_id_through_failures(world, monkeypatch):
    asked(world, NOW)
    fanout.run(NOW)
    real = mail.EmailMessage.send
    seen = []

    def refuses(self, *_, **__):
        seen.append(self.extra_headers["Message-ID"])
        raise OSError

    monkeypatch.setattr(notifying.EmailMessage, "send", refuses)
    world.deliver()
    monkeypatch.setattr(notifying.EmailMessage, "send", real)
    world.to_the_next(Delivery.objects.get())
    world.deliver()

    [message] = mail.outbox
    assert message.to == [world.owner.email]
    assert message.subject.startswith("A request waits for your decision: rq-")
    assert "http://127.0.0.1:8420/ops/inbox/rq-" in message.body
    assert seen == [message.extra_headers["Message-ID"]]
    assert Delivery.objects.get().state == "delivered"


def test_the_digest_is_one_mail_a_day_of_what_is_unread(world):
    owner = factories.actor(world.owner)
    notifications.set_preference(kind="request.waiting", bell=True, mail="digest", actor=owner, now=NOW)
    for seconds in range(3):
        asked(world, NOW + timedelta(seconds=seconds))
    world.now = NOW + timedelta(minutes=1)
    world.notifier.run()
    read = Notification.objects.earliest("at")
    notifications.mark_read(ids=[read.pk], actor=owner, now=world.now)
    at_noon = len(mail.outbox)

    for hours in (17.9, 18.1, 19, 43):
        world.now = NOW + timedelta(hours=hours)
        Notifier(clock=lambda: world.now).run()
    digests = [message for message in mail.outbox if "things" in message.subject]

    assert at_noon == 0
    assert [message.subject for message in digests] == ["2 things you may want to know"]
    assert world.owner.email in digests[0].to


def test_without_a_mail_server_mail_is_kept_once_and_readable(world, settings):
    settings.EMAIL_BACKEND = "tenants.notifications.mailbox.OutboxBackend"
    asked(world, NOW)
    fanout.run(NOW)

    world.deliver()
    Delivery.objects.update(state="pending", done_at=None)
    world.deliver()

    kept = OutboxMail.objects.get()
    assert kept.recipient == world.owner.email
    assert "waits for your decision" in kept.text
