"""The gateway put together: listening, serving, calling home, and ending well.

Life: folder locked → last configuration served (if there is one) → port open → enrol → follow. SIGTERM or
SIGINT: no new connections or requests, running ones get up to 30 s, usage is sealed and offered once more, exit 0.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import json
import logging
import signal
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Final
from uuid import UUID

import aiohttp
from aiohttp import web

from provisioners.driver import Secret
from provisioners.gateway import refusals
from provisioners.gateway.backends import Backends
from provisioners.gateway.budgets import Budgets
from provisioners.gateway.home import Home, Link, Removed, TokenRefused
from provisioners.gateway.home_certificate import HomeCertificate
from provisioners.gateway.journal import Journal
from provisioners.gateway.looks import Looks, looking_session
from provisioners.gateway.metrics import Metrics
from provisioners.gateway.paths import Route
from provisioners.gateway.protocol import (
    ConfigDocument,
    ProtocolError,
    Report,
    UsageRecord,
)
from provisioners.gateway.proxy import MAX_IN_FLIGHT, Proxy
from provisioners.gateway.routing import Routing, budgets_of
from provisioners.gateway.spool import Spool
from provisioners.gateway.state import StateFolder
from provisioners.gateway.tls import Certificate
from provisioners.gateway.upstream import Upstream
from provisioners.gateway.waking import WaitingRoom

log = logging.getLogger("tenantry.gateway")

DRAIN_S: Final = 30.0
FLUSH_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How one gateway process is run."""

    gateway_uid: UUID
    control_url: str
    state: Path
    token: Secret | None = None
    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = None
    """Where set, `/metrics` answers there only, and no longer on the port that callers reach."""
    usage_interval_s: float = 2.0
    ca_file: Path | None = None
    """Authorities that the control plane's and backends' certificates may come from; None: the system's."""
    ends_when_hopeless: bool = False
    """End, rather than wait for people, once only a start with a fresh token can help: for pods, which are watched."""
    certificate: tuple[Path, Path] | None = None
    """Files (certificate chain, key) to listen with TLS; None: see `tls`."""
    tls: bool = False
    """Listen with TLS also while there is no certificate, with one that nobody trusts. False, and no files: something
    in front of it ends TLS."""
    machine_uuid: UUID | None = None
    """What the firmware of the machine around it says, shown when it enrols."""


class Gateway:
    """One gateway in one process."""

    def __init__(self, settings: Settings) -> None:
        """Open the folder. Raises `StateError`."""
        self.settings: Final = settings
        self.started_at: Final = datetime.now(UTC)
        self.port = settings.port
        """The port really listened on, once `run` has opened it."""
        self._state = StateFolder(settings.state, settings.gateway_uid, settings.token)
        self._spool = Spool(settings.state / "usage")
        self._journal = Journal(settings.state / "journal", slots=MAX_IN_FLIGHT)
        self._budgets = Budgets(settings.state / "budgets")
        self._settle_what_was_left()
        self._metrics = Metrics()
        self._backends = Backends()
        self._proxy: Proxy
        self._home: Home
        self._looks: Looks
        self._waiting_room = WaitingRoom(somebody_waits=self._somebody_waits)
        self._stopping = asyncio.Event()
        files = settings.certificate
        self._files = Certificate(*files, may_come_later=settings.tls) if files is not None else None
        ends_tls = settings.tls or self._files is not None
        self._certificate = HomeCertificate(self._state, self._files) if ends_tls else None
        self.hopeless = ""
        """Why it ended by itself: only a fresh token helps. "" else."""

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        tls = ssl.create_default_context(cafile=str(self.settings.ca_file) if self.settings.ca_file else None)
        async with (
            looking_session(tls) as looking,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls), cookie_jar=aiohttp.DummyCookieJar()
            ) as home_session,
        ):
            self._looks = Looks(looking, self._backends)
            upstream = Upstream(tls)
            self._proxy = Proxy(
                upstream=upstream,
                backends=self._backends,
                metrics=self._metrics,
                journal=self._journal,
                budgets=self._budgets,
                keep=self._keep,
                own=self._own_page,
                waiting_room=self._waiting_room,
            )
            self._metrics.watch(in_flight=lambda: self._proxy.in_flight, spooled=self._unsent)
            self._home = Home(
                url=self.settings.control_url,
                version=version(),
                session=home_session,
                usage_interval_s=self.settings.usage_interval_s,
                state=self._state,
                spool=self._spool,
                have=self._resume(),
                apply=self._apply,
                report=self._report,
                budgets=self._budgets,
                waiting=self._waiting_room.waiting,
                gives_up=self.settings.ends_when_hopeless,
                machine_uuid=self.settings.machine_uuid,
                certificate=self._certificate,
            )
            runners = await self._listen()
            gc.collect()
            gc.freeze()  # what was loaded at the start lives to the end: no collection has to look through it again
            at_home = asyncio.create_task(self._stay_at_home(), name="home")
            beside = [at_home]
            if self._files is not None:
                beside.append(asyncio.create_task(self._files.keep(), name="certificate"))
            try:
                await self._stopping.wait()
                await self._end(runners)
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                await self._proxy.leftovers.close()
                upstream.close()
                self._proxy.keep_records()
                await self._home.flush(timeout_s=FLUSH_S)
                self._spool.close()
                self._journal.close()
                self._budgets.close()
                self._state.close()

    def stop(self) -> None:
        """Begin to end: as SIGTERM."""
        self._stopping.set()

    # --- configuration ------------------------------------------------------------------------------

    def _resume(self) -> ConfigDocument | None:
        """Serve the last accepted configuration at once, whether the control plane is there or not."""
        if self._state.identity.removed:
            self._close_for_good()
            return None
        try:
            document = self._state.last_config()
        except ProtocolError as error:
            log.error("configuration on disk does not hold up: %s; waiting for a new one", error)  # noqa: TRY400
            return None
        if document is not None:
            self._apply(document)
        return document

    def _apply(self, document: ConfigDocument) -> None:
        self._proxy.routing = Routing(document)
        self._budgets.configure(budgets_of(document))
        self._backends.keep_only(document.endpoints)
        self._waiting_room.changed()
        self._metrics.config_version.set(document.version)
        if self._certificate is not None:
            self._certificate.want(document.certificate)
        log.info("serving configuration %d with %d endpoints", document.version, len(document.endpoints))

    def _somebody_waits(self, endpoint: UUID) -> None:
        self._home.somebody_waits(endpoint)

    def _close_for_good(self) -> None:
        self._proxy.routing = None
        self._proxy.closed_by = refusals.unavailable(
            "removed", "This gateway was removed.", retry_after_s=60, close=True
        )

    async def _stay_at_home(self) -> None:
        if self._state.identity.removed:
            self._give_up("the control plane has removed it")
            return
        try:
            await self._home.run()
        except Removed:
            log.warning("the control plane removed this gateway; it serves nothing any more")
            self._state.forget()
            self._close_for_good()
            self._give_up("the control plane has removed it")
        except TokenRefused:
            self._give_up("the control plane refused its token")
        except Exception:
            # A bug in calling home must not stop what is being served; it must be seen, and people restart us.
            log.exception("calling home ended by a bug")

    def _give_up(self, why: str) -> None:
        if self.settings.ends_when_hopeless:
            self.hopeless = why
            self.stop()

    # --- listening ----------------------------------------------------------------------------------

    async def _listen(self) -> list[web.ServerRunner]:
        server = web.Server(
            self._proxy, handler_cancellation=True, auto_decompress=False, access_log=None, logger=_silent()
        )
        runner = web.ServerRunner(server)
        await runner.setup()
        tls = self._certificate.context if self._certificate is not None else None
        site = web.TCPSite(runner, self.settings.host, self.settings.port, backlog=1024, ssl_context=tls)
        await site.start()
        self.port = int(runner.addresses[0][1])
        runners = [runner]
        if self.settings.metrics_port is not None:
            pages = web.ServerRunner(web.Server(self._metrics_page, access_log=None, logger=_silent()))
            await pages.setup()
            await web.TCPSite(pages, self.settings.host, self.settings.metrics_port).start()
            runners.append(pages)
        log.info("gateway %s listens on %s:%d", self.settings.gateway_uid, self.settings.host, self.port)
        return runners

    async def _end(self, runners: list[web.ServerRunner]) -> None:
        """Let running requests come to their end, then close."""
        if self._proxy.closed_by is None:
            self._proxy.closed_by = refusals.unavailable(
                "draining", "This gateway is being stopped.", retry_after_s=1, close=True
            )
        log.info("draining %d requests", self._proxy.in_flight)
        for runner in runners:
            for site in list(runner.sites):
                await site.stop()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._proxy.idle.wait()
        except TimeoutError:
            log.warning("%d requests were cut off after %.0f s", self._proxy.in_flight, DRAIN_S)
        await self._proxy.leftovers.close()
        for runner in runners:
            await runner.cleanup()

    # --- own pages ----------------------------------------------------------------------------------

    def _own_page(self, route: Route) -> web.Response | None:
        if route in {Route.HEALTH, Route.READY}:
            health = self.health()
            down = route is Route.READY and health["state"] not in {"serving", "waiting"}
            return web.Response(
                status=HTTPStatus.SERVICE_UNAVAILABLE if down else HTTPStatus.OK,
                body=json.dumps(health).encode(),
                content_type="application/json",
            )
        return self._metrics_text() if self.settings.metrics_port is None else None

    async def _metrics_page(self, request: web.BaseRequest) -> web.Response:
        if (request.method, request.raw_path) != ("GET", "/metrics"):
            return web.Response(status=HTTPStatus.NOT_FOUND)
        return self._metrics_text()

    def _metrics_text(self) -> web.Response:
        self._proxy.keep_records()
        self._metrics.control_plane_up.set(self._home.link is Link.UP)
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    def health(self) -> dict[str, object]:
        """Return what `/healthz` and `/readyz` (503 until enrolled) say: where in its life it is. No secret."""
        identity, routing = self._state.identity, self._proxy.routing
        if identity.removed:
            state = "removed"
        elif self._stopping.is_set():
            state = "draining"
        elif not identity.enrolled:
            state = "enrolling"
        else:
            state = "serving" if routing else "waiting"
        return {
            "state": state,
            "gateway": identity.gateway_uid,
            "enrolled": identity.enrolled,
            "config_version": routing.version if routing else 0,
            "config_refused": self._home.config_refused,
            "control_plane": self._home.link.value,
            "certificate": self._certificate.trouble if self._certificate is not None else "",
            "in_flight": self._proxy.in_flight,
            "spooled_records": self._unsent(),
            "version": version(),
        }

    # --- usage and reports --------------------------------------------------------------------------

    def _unsent(self) -> int:
        """Return how many records the control plane has not yet."""
        return self._spool.records + self._proxy.unkept

    def _settle_what_was_left(self) -> None:
        """Settle what was being answered when an earlier process was killed; what cannot be kept waits for the next."""
        count = 0
        try:
            for slot, left in self._journal.left():
                # Its record may have been written in the moment before the kill, and its slot not been given back.
                if left.record.uid is None or not self._spool.has(left.record.uid):
                    self._spool.append(left.record)
                self._budgets.settle_left(left.charges, left.tokens)
                slot.close()
                count += 1
        except OSError as error:
            log.error("what the last process left cannot be settled yet: %s", error.strerror)  # noqa: TRY400
        if count:
            log.warning("settled %d requests that were cut off when the gateway last ended", count)

    def _keep(self, records: Sequence[UsageRecord]) -> None:
        try:
            self._spool.append(*records)
        except OSError as error:
            # The answers are given already; a full disk must not turn them into failures. The metric rings.
            self._metrics.usage_lost.inc(len(records))
            log.error("usage of %d requests could not be kept: %s", len(records), error.strerror)  # noqa: TRY400

    async def _report(self) -> Report:
        self._proxy.keep_records()
        routing = self._proxy.routing
        endpoints = routing.endpoints if routing else ()
        looks = {(b.unit_uid, b.url): (endpoint, b) for endpoint in endpoints for b in endpoint.backends}
        await asyncio.gather(*(self._looks.look(endpoint, backend) for endpoint, backend in looks.values()))
        return Report(
            gateway_uid=self.settings.gateway_uid,
            gateway_version=version(),
            started_at=self.started_at,
            config_version=routing.version if routing else 0,
            config_refused=self._home.config_refused,
            in_flight=self._proxy.in_flight,
            refused=self._proxy.refused,
            spooled_records=self._unsent(),
            endpoints=tuple(
                self._backends.report(endpoint, waiting=self._waiting_room.waiting(endpoint.uid))
                for endpoint in endpoints
            ),
            listens_with=self._certificate.fingerprint if self._certificate is not None else "",
            certificate=None if self._certificate is None else self._certificate.report(),
        )


def version() -> str:
    """Return the version of this program."""
    try:
        return importlib.metadata.version("tenantry")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _silent() -> logging.Logger:
    """Return a logger that says nothing: aiohttp's own quotes pieces of bad requests, keys included."""
    logger = logging.getLogger("tenantry.gateway.http")
    logger.disabled = True
    return logger
