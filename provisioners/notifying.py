"""The worker of notifications: events become rows, rows become messages, messages are sent until they arrive.

One attempt: claim the delivery and commit an attempt row (lease, epoch, what is to be sent), send outside any
transaction, then record the outcome where the epoch is still ours. A worker killed between the two leaves an
attempt of unknown outcome; the delivery is tried again when the attempt's window is over, under the same id, so
that a receiver can drop a repetition. Nobody else sends within the window. One receiver has one message at a
time: a slow one keeps only its own waiting.
"""

from __future__ import annotations

import json
import logging
import random
import smtplib
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import connection
from django.db.models import Q
from django.utils import timezone

from provisioners import egress
from provisioners.egress import Answer
from tenants import desired
from tenants.actor import SYSTEM
from tenants.models import Delivery, DeliveryAttempt, Notification, NotificationMark, OutboxMail, Webhook
from tenants.notifications import addresses, fanout, messages, signing, watch
from tenants.operations import notifications as operations
from tenants.transactions import acting
from tenants.vault import VaultError

log = logging.getLogger(__name__)

WINDOW: Final = timedelta(seconds=60)
"""Of one attempt: longer than resolving, connecting and the deadline of the exchange together."""
SURELY_S: Final = 30.0
"""With less of its window left an attempt is not begun any more (its process was paused)."""
BACKOFF_S: Final = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 21600)
"""Pause after the first, second … failure; the last one goes on until the delivery is given up."""
JITTER: Final = 0.2
LONGEST_WISH_S: Final = 3600.0
"""A receiver may ask to be left alone this long (`Retry-After`)."""
OFF_AFTER: Final = timedelta(days=5)
"""A webhook that only failed for so long is switched off."""
THREADS: Final = 8
DIGEST_HOUR: Final = 6
"""UTC."""
LOG_LASTS: Final = timedelta(days=30)
BELL_LASTS: Final = timedelta(days=90)
MARK_LASTS: Final = timedelta(days=100)
AT_ONCE: Final = 500
UNKNOWN: Final = "The worker that made this attempt ended before it knew the outcome."

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt that was written down and is to be made."""

    delivery: UUID
    epoch: int
    attempt: int
    """Since it was made or sent again."""
    medium: str
    body: str
    began: float
    """On the monotonic clock, when its window opened."""
    webhook: UUID | None = None
    url: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    recipient: str = ""


Send = Callable[[Job, datetime], Answer]


@dataclass(slots=True)
class Notifier:
    """Delivers what is due. Clock and ways to send are injected."""

    clock: Clock = timezone.now
    webhook: Send = field(default_factory=lambda: send_webhook)
    mail: Send = field(default_factory=lambda: send_mail)
    window: timedelta = WINDOW
    threads: int = THREADS

    def run(self, *, budget_s: float | None = None) -> int:
        """Tell what happened, then send what is due for at most `budget_s`; return how many attempts were made."""
        ends = None if budget_s is None else time.monotonic() + budget_s
        self.each_minute()
        fanout.run(self.clock())
        return self.deliver(ends=ends)

    def each_minute(self) -> None:
        """Do what one worker does once a minute: watch, digests, tidying."""
        now = self.clock()
        with acting(SYSTEM):
            first = watch.mark(f"minute:{now:%Y-%m-%dT%H:%M}", now)
        if first:
            watch.run(now)
            digests(now)
            tidy(now)

    def deliver(self, *, ends: float | None = None) -> int:
        """Send what is due, each receiver's messages one after the other; return how many attempts were made."""
        made = 0
        running: dict[Future[Answer], Job] = {}
        with ThreadPoolExecutor(self.threads, thread_name_prefix="notify") as pool:
            while True:
                late = ends is not None and time.monotonic() >= ends
                jobs = [] if late else self.claim(self.threads - len(running))
                for job in jobs:
                    running[pool.submit(self._attempt, job)] = job
                made += len(jobs)
                if not running:
                    return made
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self.record(running.pop(future), future.result())

    def _attempt(self, job: Job) -> Answer:
        """Make one attempt, in a thread of its own. Raises nothing."""
        if time.monotonic() - job.began > self.window.total_seconds() - min(SURELY_S, self.window.total_seconds() / 2):
            return Answer("failed", "The worker was held up; nothing was sent in this attempt.")
        try:
            return (self.webhook if job.medium == "webhook" else self.mail)(job, self.clock())
        except Exception:
            log.exception("an attempt failed in an unforeseen way", extra={"delivery": job.delivery})
            return Answer("failed", "Something went wrong on our side.")
        finally:
            connection.close()

    # -- claiming ----------------------------------------------------------------------------------------

    def claim(self, most: int) -> list[Job]:
        """Open the windows of at most `most` deliveries that are due, one per receiver, and write their attempts."""
        jobs: list[Job] = []
        while most > 0 and not jobs and self._claim(most, jobs):
            pass  # all that was due has come to its end without an attempt; there may be more
        return jobs

    def _claim(self, most: int, jobs: list[Job]) -> int:
        """Add attempts to `jobs`; return how many deliveries were looked at."""
        now = self.clock()
        with acting(SYSTEM):
            free = Q(lease_expires_at__isnull=True) | Q(lease_expires_at__lte=now)
            rows = Delivery.objects.filter(free, pk__in=_due(now, most), state="pending", next_at__lte=now)
            found = list(
                rows.select_for_update(no_key=True, skip_locked=True, of=("self",)).select_related("webhook", "person")
            )
            opened = [self._open(row, now=now) for row in found]
        jobs += [job for job in opened if job is not None]
        return len(found)

    def _open(self, row: Delivery, *, now: datetime) -> Job | None:
        DeliveryAttempt.objects.filter(delivery=row, outcome="").update(outcome="unknown", reason=UNKNOWN)
        why, secrets = _refusal(row, now=now)
        if why:
            _end(row, "dead", why, now=now)
            return None
        row.attempts += 1
        row.lease_epoch += 1
        row.lease_expires_at = now + self.window
        row.save(update_fields=["attempts", "lease_epoch", "lease_expires_at"])
        DeliveryAttempt.objects.create(delivery=row, number=row.lease_epoch, started_at=now)
        return Job(
            delivery=row.pk,
            epoch=row.lease_epoch,
            attempt=row.attempts,
            medium=row.medium,
            body=row.body,
            began=time.monotonic(),
            webhook=row.webhook.pk if row.webhook is not None else None,
            url=row.webhook.url if row.webhook is not None else "",
            secrets=tuple(secrets),
            recipient=row.person.email if row.person is not None else "",
        )

    # -- recording ---------------------------------------------------------------------------------------

    def record(self, job: Job, answer: Answer) -> bool:
        """Write down what became of an attempt; False where its window was over and another has begun."""
        now = self.clock()
        with acting(SYSTEM):
            webhook = (
                Webhook.objects.select_for_update(no_key=True).filter(pk=job.webhook).first() if job.webhook else None
            )
            row = Delivery.objects.select_for_update(no_key=True).filter(
                pk=job.delivery, lease_epoch=job.epoch, state="pending"
            ).first()  # fmt: skip
            if row is None:
                log.info("an attempt outlived its window", extra={"delivery": job.delivery})
                return False
            DeliveryAttempt.objects.filter(delivery=row, number=job.epoch).update(
                outcome=answer.outcome, status=answer.status, latency_ms=answer.latency_ms, reason=answer.reason[:300]
            )
            row.status, row.lease_expires_at = answer.status, None
            if answer.outcome == "delivered":
                _end(row, "delivered", "", now=now)
                if webhook is not None:
                    Webhook.objects.filter(pk=webhook.pk).update(delivered_at=now, failing_since=None)
                return True
            _again(row, answer, now=now)
            if webhook is not None:
                _failed(webhook, row, answer, now=now)
        return True


# --- sending --------------------------------------------------------------------------------------------


def send_webhook(
    job: Job, now: datetime, *, resolver: egress.Resolver = egress.system_resolver, **options: Any
) -> Answer:
    """Post one message, signed at `now`. The address is checked anew in each attempt."""
    allowed = operations.allowed_networks()
    try:
        target = addresses.parse(job.url, allowed)
    except addresses.BadUrl as error:
        return Answer("blocked", str(error))
    body = job.body.encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Tenantry-Webhooks/1",
        "Accept-Encoding": "identity",
        **signing.headers(signing.message_id(job.delivery), body, job.secrets, at=now),
    }
    return egress.post(target, body, headers, allowed=allowed, resolver=resolver, **options)


def send_mail(job: Job, now: datetime) -> Answer:
    """Hand one mail to the mail backend, under a Message-ID that stays the same."""
    del now
    began = time.monotonic()
    said = json.loads(job.body)
    host = settings.TENANTRY_PUBLIC_URL.partition("://")[2].partition("/")[0].partition(":")[0]
    message = EmailMessage(
        said["subject"], said["text"], None, [job.recipient], headers={"Message-ID": f"<{job.delivery.hex}@{host}>"}
    )
    try:
        message.send()
    except smtplib.SMTPRecipientsRefused as error:
        code = next((int(answer[0]) for answer in error.recipients.values()), 0)
        return Answer("failed", f"The mail server refuses the recipient ({code}).", code or None)
    except (smtplib.SMTPException, OSError) as error:
        return Answer("failed", f"The mail server did not take it ({type(error).__name__}).")
    return Answer("delivered", latency_ms=int((time.monotonic() - began) * 1000))


# --- rows -----------------------------------------------------------------------------------------------


def _due(now: datetime, most: int) -> list[UUID]:
    """Return deliveries that are due, the longest waiting first; one per webhook, none where one is under way."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT id FROM (
              SELECT DISTINCT ON (coalesce(d.webhook_id, d.id)) d.id, d.next_at FROM tenants_delivery d
              WHERE d.state = 'pending' AND d.next_at <= %(now)s
                AND (d.lease_expires_at IS NULL OR d.lease_expires_at <= %(now)s)
                AND NOT EXISTS (SELECT 1 FROM tenants_delivery o WHERE o.webhook_id = d.webhook_id
                  AND o.state = 'pending' AND o.lease_expires_at > %(now)s)
              ORDER BY coalesce(d.webhook_id, d.id), d.next_at, d.created_at, d.id
            ) AS first ORDER BY next_at, id LIMIT %(most)s
            """,
            {"now": now, "most": most},
        )
        return [row[0] for row in cursor.fetchall()]


def _refusal(row: Delivery, *, now: datetime) -> tuple[str, list[str]]:
    """Return why a delivery is not tried any more (`""`: it is), and the secrets it is signed with."""
    if row.attempts and now > row.give_up_at:
        return f"Given up after {row.attempts} attempts. {row.reason}".strip(), []
    if row.webhook is None:
        gone = row.person is None or not row.person.is_active
        return ("The person is not active any more." if gone else ""), []
    if row.webhook.removed_at is not None:
        return "The webhook was removed.", []
    if row.webhook.disabled_at is not None:
        return f"The webhook was switched off: {row.webhook.disabled_why}", []
    try:
        return "", operations.secrets_of(row.webhook, now=now)
    except VaultError:
        log.exception("the secret of a webhook does not open", extra={"webhook": row.webhook.pk})
        return "The webhook's secret cannot be read; roll it.", []


def _end(row: Delivery, state: str, reason: str, *, now: datetime) -> None:
    row.state, row.reason, row.done_at, row.lease_expires_at = state, reason[:300], now, None
    row.save(update_fields=["state", "reason", "done_at", "lease_expires_at", "status"])


def _again(row: Delivery, answer: Answer, *, now: datetime) -> None:
    """Set when a failed delivery is tried next; dead when that would be too late or is hopeless."""
    pause = backoff_s(row.attempts)
    if answer.retry_after_s is not None:
        pause = max(pause, min(answer.retry_after_s, LONGEST_WISH_S))
    row.next_at = now + timedelta(seconds=pause)
    refused = row.medium == "mail" and answer.status is not None and answer.status >= 500
    if refused or row.next_at > row.give_up_at:
        _end(row, "dead", f"Given up after {row.attempts} attempts. {answer.reason}", now=now)
    else:
        row.reason = answer.reason[:300]
        row.save(update_fields=["next_at", "reason", "lease_expires_at", "status"])


def backoff_s(attempts: int) -> float:
    """Return the pause after `attempts` failed attempts, spread by `JITTER` either way."""
    pause = BACKOFF_S[min(max(attempts, 1), len(BACKOFF_S)) - 1]
    return pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, hides nothing


def _failed(webhook: Webhook, row: Delivery, answer: Answer, *, now: datetime) -> None:
    """Keep account of a webhook that fails: say so once when it loses a message, switch it off after days."""
    since = webhook.failing_since or now
    Webhook.objects.filter(pk=webhook.pk, failing_since__isnull=True).update(failing_since=now)
    if webhook.disabled_at is not None or webhook.removed_at is not None:
        return
    if answer.gone or now - since >= OFF_AFTER:
        why = "its receiver says that it is gone (410)" if answer.gone else f"it failed for {OFF_AFTER.days} days"
        operations.switch_off(webhook, f"{why}; the last answer: {answer.reason}", actor=SYSTEM, now=now)
    elif row.state == "dead" and row.event_id and watch.mark(f"webhook-failing:{webhook.pk}:{since.isoformat()}", now):
        desired.happened(webhook, "webhook.failing", actor=SYSTEM, at=now, nudge=False, why=answer.reason)


# --- once a minute --------------------------------------------------------------------------------------


def digests(now: datetime) -> int:
    """Make yesterday's unread digest rows into one mail per person, from `DIGEST_HOUR` on; return how many mails."""
    today = now.astimezone(UTC).replace(hour=DIGEST_HOUR, minute=0, second=0, microsecond=0)
    until = today if now >= today else today - timedelta(days=1)
    with acting(SYSTEM):
        waiting = Notification.objects.filter(digest=True, created_at__lt=until)
        people = list(waiting.order_by().values_list("person_id", flat=True).distinct()[:AT_ONCE])
    return sum(_digest(person, until, now=now) for person in people)


def _digest(person: UUID, until: datetime, *, now: datetime) -> bool:
    with acting(SYSTEM):
        rows = Notification.objects.filter(person_id=person, digest=True, created_at__lt=until)
        taken = list(rows.order_by("-at", "-id").select_for_update(no_key=True))
        unread = [row for row in taken if row.read_at is None]
        Notification.objects.filter(pk__in=[row.pk for row in taken]).update(digest=False)
        if not unread:
            return False
        subject, text = messages.digest_of(unread)
        mail = fanout.mail(person, f"digest:{person}:{until:%Y-%m-%d}", subject, text, kind="digest", now=now)
        Delivery.objects.bulk_create([mail], ignore_conflicts=True)
        return True


def tidy(now: datetime) -> int:
    """Remove what is old: logs, read and unread bells, marks, kept mails, webhooks removed long ago."""
    old: tuple[Any, ...] = (
        Delivery.objects.filter(created_at__lt=now - LOG_LASTS).exclude(state="pending"),
        Notification.objects.filter(created_at__lt=now - BELL_LASTS),
        NotificationMark.objects.filter(at__lt=now - timedelta(days=1), key__startswith="minute:"),
        NotificationMark.objects.filter(at__lt=now - MARK_LASTS).exclude(key__startswith="provider-down:"),
        OutboxMail.objects.filter(at__lt=now - LOG_LASTS),
        Webhook.objects.filter(removed_at__lt=now - LOG_LASTS),
    )
    removed = 0
    for rows in old:
        with acting(SYSTEM):
            keys = list(rows.order_by("pk").values_list("pk", flat=True)[:AT_ONCE])
            if keys:
                removed += rows.model._base_manager.filter(pk__in=keys).delete()[0]
    return removed
