"""The gateway's way home: enrol, configuration, usage, report. Outbound only, and never in a request's path.

Each loop stands alone and none ever ends by an error: a control plane that is away, slow or talking nonsense costs
log lines, nothing else, and a bug in one loop costs that loop two seconds. A change reaches us by the long poll; while
the control plane is away, we ask at least every two seconds, so that a revocation holds within five seconds of its
return.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import UUID

import aiohttp
from pydantic import BaseModel

from provisioners.gateway.budgets import Budgets
from provisioners.gateway.home_certificate import HomeCertificate, NotUsable
from provisioners.gateway.protocol import (
    CERTIFICATE_PATH,
    CONFIG_PATH,
    ENROL_PATH,
    LEASES_PATH,
    LONGEST_WAIT_S,
    REPORT_PATH,
    USAGE_PATH,
    WAKE_PATH,
    CertificateAnswer,
    CertificateRequest,
    ConfigDocument,
    EnrolAnswer,
    EnrolRequest,
    Envelope,
    LeaseAnswer,
    LeaseAsk,
    LeaseRequest,
    ProtocolError,
    Report,
    WakeRequest,
    parse,
)
from provisioners.gateway.spool import Spool
from provisioners.gateway.state import StateFolder

log = logging.getLogger("tenantry.gateway.home")

FIRST_RETRY_S: Final = 0.2
LONGEST_RETRY_S: Final = 2.0
ENROL_RETRY_S: Final = 30.0
USAGE_LONGEST_RETRY_S: Final = 15.0
LEASE_INTERVAL_S: Final = 5.0
CERTIFICATE_RETRY_S: Final = 60.0
WAKE_AGAIN_S: Final = 5.0
"""Between tellings of the same: a control plane that lost the first one, or let it sleep again, hears the next."""
_CALL: Final = aiohttp.ClientTimeout(total=10, sock_connect=3)
_LONG_POLL: Final = aiohttp.ClientTimeout(total=LONGEST_WAIT_S + 5, sock_connect=3)
_MAX_ANSWER_BYTES: Final = 64 << 20


class Link(StrEnum):
    """How the control plane was last seen."""

    UNKNOWN = "unknown"
    UP = "up"
    AWAY = "away"
    REVOKED = "credential-revoked"
    TOKEN_REFUSED = "token-refused"  # noqa: S105 - a state's name


class Removed(Exception):
    """The control plane said 410: this gateway is gone."""


class TokenRefused(Exception):
    """The control plane refuses the enrolment token: a fresh one is needed."""


class Home:
    """Talks to the control plane for one gateway."""

    def __init__(
        self,
        *,
        url: str,
        version: str,
        usage_interval_s: float,
        session: aiohttp.ClientSession,
        state: StateFolder,
        spool: Spool,
        have: ConfigDocument | None,
        apply: Callable[[ConfigDocument], None],
        report: Callable[[], Awaitable[Report]],
        budgets: Budgets,
        waiting: Callable[[UUID], int] = lambda _endpoint: 0,
        gives_up: bool = False,
        machine_uuid: UUID | None = None,
        certificate: HomeCertificate | None = None,
    ) -> None:
        """`apply` takes each configuration that was accepted; `report` looks and says how things are.

        `waiting` says how many requests wait for an endpoint at zero.
        `gives_up`: a refused token ends `run` instead of being tried again and again.
        """
        self._gives_up: Final = gives_up
        self._machine_uuid: Final = machine_uuid
        self._certificate: Final = certificate
        self.link = Link.UNKNOWN
        self.config_refused = ""
        """Why the last configuration offered was not taken."""
        self._url: Final = url.rstrip("/")
        self._version = version
        self._usage_interval_s = usage_interval_s
        self._session = session
        self._state = state
        self._spool = spool
        self._have = have
        self._apply = apply
        self._report = report
        self._budgets = budgets
        self._lease_serial = 0
        self._waiting = waiting
        self._sleeping: set[UUID] = set()
        self._sleeper = asyncio.Event()
        self._gateway_uid: Final = UUID(state.identity.gateway_uid)

    async def run(self) -> None:
        """Work until cancelled. Raises `Removed`, and `TokenRefused` where it gives up."""
        await self._enrol()
        try:
            async with asyncio.TaskGroup() as tasks:
                for loop in (
                    self._follow_config, self._send_usage, self._send_reports, self._keep_leases, self._wake,
                ):  # fmt: skip
                    tasks.create_task(_for_ever(loop))
                if self._certificate is not None:
                    tasks.create_task(_for_ever(partial(self._keep_certificate, self._certificate)))
        except BaseExceptionGroup as group:
            removed, others = group.split(Removed)
            if removed is not None and others is None:
                raise Removed from None
            raise

    async def flush(self, *, timeout_s: float) -> None:
        """Send what is spooled, and give back parts of budgets, as far as it goes within `timeout_s`.

        The rest stays on disk, for the next start.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._send_spooled()
                if asks := self._budgets.farewell():
                    await self._lease(asks)
        except (TimeoutError, aiohttp.ClientError, ProtocolError, Removed) as error:
            log.info("%d usage records stay on disk (%s)", self._spool.records, type(error).__name__)

    # --- enrolment ----------------------------------------------------------------------------------

    async def _enrol(self) -> None:
        retry = _Retry(ENROL_RETRY_S)
        while not self._state.identity.enrolled:
            try:
                await self._enrol_once()
            except (aiohttp.ClientError, TimeoutError, ProtocolError) as error:
                self._seen(Link.AWAY, f"enrolment: {_words(error)}")
            if not self._state.identity.enrolled:
                await retry.pause()
        log.info("enrolled in boundary %s", self._state.identity.boundary_uid)

    async def _enrol_once(self) -> None:
        identity = self._state.identity
        request = EnrolRequest(
            token=identity.token,
            gateway_uid=self._gateway_uid,
            credential_digest=self._state.credential_digest,
            version=self._version,
            machine_uuid=self._machine_uuid,
        )
        status, body = await self._post(ENROL_PATH, request, with_credential=False)
        match status:
            case HTTPStatus.OK | HTTPStatus.CREATED:
                self._state.enrolled(parse(EnrolAnswer, body))
                self._seen(Link.UP)
            case HTTPStatus.GONE:
                raise Removed
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                self._seen(Link.TOKEN_REFUSED, "the control plane refuses the enrolment token; a fresh one is needed")
                if self._gives_up:
                    raise TokenRefused
            case _:
                self._seen(Link.AWAY, f"enrolment answered with {status}")

    # --- configuration ------------------------------------------------------------------------------

    async def _follow_config(self) -> None:
        retry = _Retry(LONGEST_RETRY_S)
        while True:
            asked = time.monotonic()
            # The first answer after silence is wanted at once: it is what tells that the control plane is there.
            wait_s = LONGEST_WAIT_S if self.link is Link.UP else 0
            try:
                news = await self._ask_config(wait_s)
            except (aiohttp.ClientError, TimeoutError) as error:
                self._seen(Link.AWAY, f"configuration: {_words(error)}")
                await retry.pause()
                continue
            except ProtocolError as error:
                self._refuse_config(error)
                await retry.pause()
                continue
            if news is None:
                await retry.pause()
            elif wait_s and not news and time.monotonic() - asked < 1:
                await asyncio.sleep(1)  # a control plane that does not hold the call must not be asked in a tight loop
                retry.reset()
            else:
                retry.reset()

    async def _ask_config(self, wait_s: int) -> bool | None:
        """Ask once, waiting `wait_s` for news. True: applied; False: nothing new; None: not answered properly."""
        have = self._have.version if self._have else 0
        async with self._session.get(
            f"{self._url}{CONFIG_PATH}",
            params={"have": str(have), "wait": str(wait_s)},
            headers=self._credential(),
            timeout=_LONG_POLL,
            allow_redirects=False,
        ) as answer:
            match answer.status:
                case HTTPStatus.OK:
                    body = await _read(answer)
                case HTTPStatus.NO_CONTENT | HTTPStatus.NOT_MODIFIED:
                    self._seen(Link.UP)
                    return False
                case HTTPStatus.GONE:
                    raise Removed
                case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                    self._seen(Link.REVOKED, "credential revoked; the last configuration stays in use")
                    return None
                case _:
                    self._seen(Link.AWAY, f"configuration answered with {answer.status}")
                    return None
        self._seen(Link.UP)
        document = self._state.accept(parse(Envelope, body), have=self._have)
        changed = document is not self._have
        if changed:
            self._apply(document)
        self._have, self.config_refused = document, ""  # only now: what could not be served is asked for again
        return changed

    def _refuse_config(self, error: ProtocolError) -> None:
        if self.config_refused != str(error):
            log.error("configuration refused: %s", error)
        self.config_refused = str(error)[:300]

    # --- usage and reports --------------------------------------------------------------------------

    async def _send_usage(self) -> None:
        retry = _Retry(USAGE_LONGEST_RETRY_S)
        while True:
            await asyncio.sleep(self._usage_interval_s)
            try:
                sent = await self._send_spooled()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("usage stays on disk: %s", _words(error))
                sent = False
            if sent:
                retry.reset()
            else:
                await retry.pause()

    async def _send_spooled(self) -> bool:
        """Seal and send all that is spooled; False where the control plane does not take it now."""
        self._spool.seal()
        await asyncio.to_thread(self._spool.sync)  # a slow disk must hold up no answer
        for batch_id, body in self._spool.batches(self._gateway_uid):
            status, _ = await self._post(USAGE_PATH, body)
            if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
                self._spool.done(batch_id)
            elif status in (
                HTTPStatus.BAD_REQUEST,
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                HTTPStatus.UNPROCESSABLE_ENTITY,
            ):
                log.error("usage batch %s refused with %s; set aside", batch_id, status)
                self._spool.set_aside(batch_id)
            elif status == HTTPStatus.GONE:
                raise Removed
            else:
                return False
        return True

    async def _keep_leases(self) -> None:
        """Ask for parts of budgets as they are used, and at once when a request waits for one."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEASE_INTERVAL_S * random.uniform(0.8, 1.0)):  # noqa: S311 - spreads load
                    await self._budgets.wanted.wait()
            asks = self._budgets.asks()
            try:
                if asks and not await self._lease(asks):
                    self._budgets.failed()
            except (aiohttp.ClientError, TimeoutError, ProtocolError) as error:
                log.debug("parts of budgets are not renewed: %s", _words(error))
                self._budgets.failed()
                await asyncio.sleep(FIRST_RETRY_S)

    async def _lease(self, asks: list[LeaseAsk]) -> bool:
        """Ask; False where it is not answered properly."""
        for _ in range(2):
            self._lease_serial = max(self._lease_serial + 1, time.time_ns())
            request = LeaseRequest(
                gateway_uid=self._gateway_uid,
                serial=self._lease_serial,
                memory=self._budgets.memory,
                asks=tuple(asks),
            )
            status, body = await self._post(LEASES_PATH, request)
            match status:
                case HTTPStatus.OK:
                    leases = parse(LeaseAnswer, body).leases
                    if len(leases) < len(asks):
                        log.warning("parts of budgets: some are of no period of now there; are both clocks right?")
                    self._budgets.answered(asks, leases)
                    return True
                case HTTPStatus.GONE:
                    raise Removed
                case HTTPStatus.CONFLICT:  # our clock was set back since the last word of ours
                    self._lease_serial = max(self._lease_serial, _serial_in(body))
                case _:
                    break
        log.warning("parts of budgets: answered with %d", status)
        return False

    async def _send_reports(self) -> None:
        while True:
            try:
                status, _ = await self._post(REPORT_PATH, await self._report())
                if status == HTTPStatus.GONE:
                    raise Removed
            except (aiohttp.ClientError, TimeoutError) as error:
                log.debug("report not delivered: %s", _words(error))
            interval_s = self._have.report_interval_s if self._have else LONGEST_RETRY_S
            await asyncio.sleep(interval_s * random.uniform(0.9, 1.0))  # noqa: S311 - spreads load

    # --- the certificate ----------------------------------------------------------------------------

    async def _keep_certificate(self, certificate: HomeCertificate) -> None:
        """Ask for the certificate that is wanted, and for another one long before it ends."""
        retry = _Retry(CERTIFICATE_RETRY_S)
        while True:
            due_in_s = certificate.due_in_s(datetime.now(UTC))
            if due_in_s is None or due_in_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due_in_s):
                        await certificate.changed.wait()
                certificate.changed.clear()
                continue
            before = certificate.trouble
            try:
                certificate.trouble = await self._ask_certificate(certificate)
            except (aiohttp.ClientError, TimeoutError) as error:
                certificate.trouble = "the control plane does not answer"
                log.debug("certificate: %s", _words(error))
            except (NotUsable, ProtocolError, OSError) as error:
                certificate.trouble = f"what the control plane gave cannot be used: {error}"
            if certificate.trouble and certificate.trouble != before:
                log.warning("no certificate: %s", certificate.trouble)
            if certificate.due_in_s(datetime.now(UTC)) == 0:
                await retry.pause()
            else:
                retry.reset()

    async def _ask_certificate(self, certificate: HomeCertificate) -> str:
        """Ask once; return why none was given, "" where one was."""
        asked = CertificateRequest(gateway_uid=self._gateway_uid, request_pem=certificate.request_pem())
        status, body = await self._post(CERTIFICATE_PATH, asked)
        match status:
            case HTTPStatus.OK:
                certificate.answered(parse(CertificateAnswer, body))
                return ""
            case HTTPStatus.GONE:
                raise Removed
            case HTTPStatus.CONFLICT | HTTPStatus.TOO_MANY_REQUESTS:
                return _detail_in(body) or f"the control plane answered with {status}"
            case _:
                return f"the control plane answered with {status}"

    # --- endpoints at zero --------------------------------------------------------------------------

    def somebody_waits(self, endpoint: UUID) -> None:
        """Tell the control plane soon that somebody waits for an endpoint at zero; called for each who does."""
        if endpoint not in self._sleeping or self._waiting(endpoint) <= 1:
            self._sleeping.add(endpoint)
            self._sleeper.set()

    async def _wake(self) -> None:
        """Tell of each endpoint that somebody waits for, once, and again as long as he does."""
        retry = _Retry(LONGEST_RETRY_S)
        while True:
            await self._sleeper.wait()
            told = await self._tell_of(frozenset(self._sleeping))
            self._sleeping = {endpoint for endpoint in self._sleeping if self._waiting(endpoint)}
            self._sleeper.clear()
            if not self._sleeping:
                retry.reset()
            elif told:
                asyncio.get_running_loop().call_later(WAKE_AGAIN_S, self._sleeper.set)
            else:
                await retry.pause()
                self._sleeper.set()

    async def _tell_of(self, endpoints: frozenset[UUID]) -> bool:
        for endpoint in endpoints:
            waiting = self._waiting(endpoint)
            if not waiting:
                continue
            asked = WakeRequest(gateway_uid=self._gateway_uid, endpoint_uid=endpoint, waiting=waiting)
            try:
                status, _ = await self._post(WAKE_PATH, asked)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.info("nobody could be told that endpoint %s is waited for: %s", endpoint, _words(error))
                return False
            if status == HTTPStatus.GONE:
                raise Removed
            if status >= HTTPStatus.BAD_REQUEST:
                log.warning("waking endpoint %s was answered with %s", endpoint, status)
                return False
        return True

    # --- plumbing -----------------------------------------------------------------------------------

    async def _post(self, path: str, document: BaseModel | bytes, *, with_credential: bool = True) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", **(self._credential() if with_credential else {})}
        if isinstance(document, BaseModel):
            # what is not known is left out: an older control plane refuses fields that it does not know
            document = document.model_dump_json(exclude_none=not with_credential).encode()
        async with self._session.post(
            f"{self._url}{path}",
            data=document,
            headers=headers,
            timeout=_CALL,
            allow_redirects=False,
        ) as answer:
            return answer.status, await _read(answer)

    def _credential(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._state.identity.credential}"}

    def _seen(self, link: Link, words: str = "") -> None:
        if link is not self.link:
            (log.info if link is Link.UP else log.warning)("control plane %s %s", link.value, words)
        self.link = link


async def _for_ever(loop: Callable[[], Awaitable[None]]) -> None:
    """Begin a loop anew that ended by a bug: revocations must come through whatever else is wrong."""
    while True:
        try:
            await loop()
        except (Removed, TokenRefused):
            raise
        except Exception:
            log.exception("a part of calling home ended by a bug and begins anew")
            await asyncio.sleep(LONGEST_RETRY_S)


class _Retry:
    """Backoff with jitter: each pause is longer, up to a limit."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._next_s = FIRST_RETRY_S

    async def pause(self) -> None:
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
        self._next_s = min(self._next_s * 2, self._longest_s)

    def reset(self) -> None:
        self._next_s = FIRST_RETRY_S


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = await answer.content.read(_MAX_ANSWER_BYTES)
    while len(body) < _MAX_ANSWER_BYTES and (more := await answer.content.read(_MAX_ANSWER_BYTES - len(body))):
        body += more
    return body


def _serial_in(body: bytes) -> int:
    """Return the number of the last word that was heard, of a problem document; 0 where it names none."""
    try:
        found = json.loads(body)["data"]["serial"]
    except (ValueError, LookupError, TypeError):
        return 0
    return found if isinstance(found, int) else 0


def _detail_in(body: bytes) -> str:
    """Return the sentence of a problem document, "" where it has none."""
    try:
        found = json.loads(body)["detail"]
    except (ValueError, LookupError, TypeError):
        return ""
    return found[:300] if isinstance(found, str) else ""


def _words(error: Exception) -> str:
    """Return what to log of an error: its class, and its text where it is ours."""
    return str(error) if isinstance(error, ProtocolError) else type(error).__name__
