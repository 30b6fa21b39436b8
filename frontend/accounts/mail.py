"""Mail of the log-in pages: sent beside the request, so that its time does not tell whether an account is there.

A mail server that is away is logged by kind of error, never by address; the page says the same either way.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from django.conf import settings
from django.core.mail import EmailMessage, get_connection

logger = logging.getLogger("frontend.accounts")

_senders: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="account-mail")
_last: list[Future[None]] = []


def send(message: EmailMessage) -> None:
    """Send a message soon. Losing it is harmless: whoever waits for it asks again."""
    _last[:] = [future for future in _last if not future.done()]
    _last.append(_senders.submit(_send, message))


def settle() -> None:
    """Wait until everything handed over is sent or given up; for tests and an orderly stop."""
    for future in _last:
        future.result(timeout=30)


def is_set_up() -> bool:
    """Whether mail reaches people outside this machine; where it does not, links are shown to whoever makes them."""
    return bool(settings.TENANTRY_MAIL_REACHES_PEOPLE)


def _send(message: EmailMessage) -> None:
    try:
        message.connection = get_connection(timeout=20) if "smtp" in settings.EMAIL_BACKEND else None
        message.send()
    except (OSError, ValueError) as error:
        logger.warning("a mail of the log-in pages was not sent: %s", type(error).__name__)
