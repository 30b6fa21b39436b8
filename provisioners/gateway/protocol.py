"""Everything the gateway and the control plane tell each other over `/agent/v1/`, and nothing else.

Imported by both sides: pure, no Django, no HTTP library. Documents are frozen pydantic models; what a
gateway reads ignores fields it does not know (an older gateway under a newer control plane), what a gateway
writes is refused with unknown fields. The configuration travels in a signed envelope (`gateway.signing`); its
versions only rise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

SCHEMA: Final = 1
"""Version of the configuration document's shape; a gateway refuses one it does not know."""
ENROL_PATH: Final = "/agent/v1/enrol"
CONFIG_PATH: Final = "/agent/v1/config"
USAGE_PATH: Final = "/agent/v1/usage"
REPORT_PATH: Final = "/agent/v1/report"
WAKE_PATH: Final = "/agent/v1/wake"
CERTIFICATE_PATH: Final = "/agent/v1/certificate"
SERVING_PATH: Final = "/agent/v1/serving"
"""Asked by the program that keeps an endpoint's machine, with its gateway's credential."""
LEASES_PATH: Final = "/agent/v1/leases"
LONGEST_WAIT_S: Final = 20
"""Longest `wait` a gateway asks for at `CONFIG_PATH`; the control plane answers 204 when it has passed."""
MAX_BATCH_RECORDS: Final = 500
MAX_LEASES: Final = 200
NANO: Final = 10**9
"""Money is counted in billionths of the currency, so that it is whole."""
LATENCY_MS: Final = (25, 50, 100, 200, 400, 800, 1_500, 3_000, 6_000, 12_000, 30_000, 60_000)
"""Upper bounds of the counts of `RevisionReport.latency`; one more count holds what took longer."""
MOST_COUNT: Final = 1_000_000
"""Largest number that is believed of a model server's own counts."""
MOST_AMOUNT: Final = 2**62
"""Largest sum that is believed; it fits the database's integers."""
_Shape = TypeVar("_Shape", bound=BaseModel)


# --- errors -----------------------------------------------------------------------------------------


class ProtocolError(ValueError):
    """A document that cannot be used; the text names no secret and is safe to log."""


class BadDocument(ProtocolError):
    """The document is signed (or unsigned by design) but does not have the agreed shape."""


# --- fields -----------------------------------------------------------------------------------------


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query or parts.fragment:
        message = "must be http(s)://host[:port]/path without user, query or fragment"
        raise ValueError(message)
    return value.rstrip("/")


BaseUrl = Annotated[str, AfterValidator(_base_url)]
Sha256Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[int, Field(ge=0, le=MOST_AMOUNT)]


class _FromControlPlane(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _FromGateway(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


# --- enrolment --------------------------------------------------------------------------------------


class EnrolRequest(_FromGateway):
    """Body of POST `ENROL_PATH`: a one-time token, and what the gateway will be known by afterwards.

    The gateway makes its credential itself and sends only the digest, so a lost answer is harmless: the
    control plane accepts a used token again if, and only if, uid and digest are those it was used with.
    Answers: 200 `EnrolAnswer`; 401 token unknown, expired or used by another; 410 gateway removed.
    """

    token: str = Field(repr=False, min_length=1, max_length=512)
    gateway_uid: UUID
    credential_digest: Sha256Hex
    """SHA-256 of the agent credential (`keys.make_agent_credential`), the later bearer token."""
    version: str = Field(max_length=64)
    """Version of the gateway program."""
    machine_uuid: UUID | None = None
    """What the firmware of the machine that it runs in says; some providers' gateways must show it."""


class EnrolAnswer(_FromControlPlane):
    """What an enrolled gateway keeps: where it belongs and whose signature it trusts."""

    gateway_uid: UUID
    boundary_uid: UUID
    key_id: str
    public_key: str
    """Raw Ed25519 public key, base64; pinned from now on."""


# --- what a machine serves --------------------------------------------------------------------------


class ServingAnswer(_FromControlPlane):
    """Answer of GET `SERVING_PATH`: what the replica beside a gateway runs.

    204 where there is nothing to serve, 404 for a gateway that sits in no endpoint's machine. We store it nowhere.
    """

    want: str
    """Stands for all of it: `intent_hash` of what the driver's step wants."""
    revision_uid: UUID
    revision: int
    model: str
    """Name that callers use."""
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    secrets: Mapping[str, str] = Field(repr=False)
    readiness_path: str = "/health"
    port: int


# --- configuration ----------------------------------------------------------------------------------


class EndpointState(StrEnum):
    """Whether an endpoint takes new requests. Requests that run are never cut by a change of state."""

    OPEN = "open"
    SUSPENDED = "suspended"
    DRAINING = "draining"
    CLOSED = "closed"


class KeyScope(StrEnum):
    """What an endpoint key may call."""

    INFERENCE = "inference"
    """Everything the endpoint answers."""
    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    MODELS = "models"


class Backend(_FromControlPlane):
    """One replica of one revision."""

    unit_uid: UUID
    url: BaseUrl
    """Base URL ending in `/v1`, as `ObservedUnit.backend`."""
    revision: Count
    weight: Count = 100
    """Share of new requests relative to the endpoint's other backends; 0 drains this one."""
    through: bool = False
    """Whether `url` is the gateway in the replica's machine, which passes requests on to it (`gateway.beside`)."""
    certificate: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the certificate that it shows; `""`: it is checked by the authorities."""


class RateLimits(_FromControlPlane):
    """How much may be asked in a minute; None: not limited. A gateway's own part where several serve the same."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None


class BudgetUnit(StrEnum):
    """What a budget counts."""

    TOKENS = "tokens"
    MONEY = "money"
    """Billionths of the currency, by the price of a token when the request began."""


class BudgetPeriod(StrEnum):
    """After what time a budget begins anew; all begin in UTC."""

    DAY = "day"
    WEEK = "week"
    """Begins on Monday."""
    MONTH = "month"

    def start(self, at: datetime) -> datetime:
        """Return when the period began that holds `at` (aware)."""
        day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self is BudgetPeriod.DAY:
            return day
        return day - timedelta(days=day.weekday()) if self is BudgetPeriod.WEEK else day.replace(day=1)

    def end(self, at: datetime) -> datetime:
        """Return when the period ends that holds `at`."""
        start = self.start(at)
        days = {BudgetPeriod.DAY: 1, BudgetPeriod.WEEK: 7}.get(self)
        return start + timedelta(days=days) if days else (start + timedelta(days=32)).replace(day=1)


class BudgetConfig(_FromControlPlane):
    """One budget. Requests are let through within the part of it that was leased to the gateway."""

    id: str = Field(min_length=1, max_length=60)
    """`tenant:<unit>` or `key:<id>:<unit>`."""
    unit: BudgetUnit
    period: BudgetPeriod
    amount: Count | None = None
    """Of a period; None where it is not the caller's to know."""
    currency: str = ""


class TokenPrice(_FromControlPlane):
    """What a token costs from a moment on, in billionths of the currency."""

    starts_at: AwareDatetime
    nano: Count


class EndpointKey(_FromControlPlane):
    """One endpoint key, by its digest."""

    id: str = Field(min_length=1, max_length=64)
    digest: Sha256Hex
    """SHA-256 of the whole plain key."""
    scopes: tuple[KeyScope, ...] = (KeyScope.INFERENCE,)
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None
    limits_id: str = ""
    """Key whose limits it shares: the one that it was rolled from. `""`: its own."""
    rates: RateLimits = RateLimits()
    budgets: tuple[BudgetConfig, ...] = ()


class Waiting(_FromControlPlane):
    """How requests wait while no replica takes any: of an endpoint at zero, or while replicas make way for others."""

    limit: Count = 256
    """Requests that may wait at once at one gateway; the next is refused."""
    timeout_s: float = Field(default=300.0, gt=0, le=3600)
    wakes: bool = False
    """Whether the control plane is to be told that somebody waits (`WAKE_PATH`)."""


class EndpointConfig(_FromControlPlane):
    """One endpoint as the gateway serves it."""

    uid: UUID
    name: str
    tenant: UUID
    hosts: tuple[str, ...] = ()
    """DNS names (lower case, no port) at which this endpoint answers."""
    state: EndpointState = EndpointState.OPEN
    reason: str = Field(default="", max_length=500)
    """Plain words for the caller when the state is not open."""
    models: tuple[str, ...]
    """Values of `model` that choose this endpoint: its name, later its adapters."""
    backends: tuple[Backend, ...] = ()
    waiting: Waiting | None = None
    """Set while requests are to wait for a replica instead of being refused."""
    moved: bool = False
    """Whether its name leads to another gateway now: who asks here still is answered, and his connection closed."""
    hop_keys: tuple[str, ...] = Field(default=(), repr=False)
    """Bearer keys that its backends ask for, the newest revision's first: while a revision takes over, each backend
    takes one of them. Empty: they ask for none. As the control plane keeps a document, these are ids of revisions."""
    keys: tuple[EndpointKey, ...] = ()
    context_tokens: Count | None = None
    """Most tokens of prompt and answer together; None: not known."""
    token_prices: tuple[TokenPrice, ...] = ()
    """By their start; none: tokens cost nothing."""


class SigningKey(_FromControlPlane):
    """A public key whose signatures a gateway accepts."""

    key_id: str
    public_key: str


class CertificateWanted(_FromControlPlane):
    """The certificate that callers are to be shown; the gateway asks for it at `CERTIFICATE_PATH`."""

    names: tuple[str, ...] = Field(min_length=1, max_length=100)
    version: Sha256Hex
    """Stands for names and what it is made of: another one means another certificate."""


class ConfigDocument(_FromControlPlane):
    """The whole configuration of one gateway; never a difference."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    version: int = Field(ge=1)
    """Rises with every change of this gateway's configuration, also across restores of a backup."""
    boundary_uid: UUID
    gateway_uid: UUID
    issued_at: AwareDatetime
    endpoints: tuple[EndpointConfig, ...] = ()
    rates: RateLimits = RateLimits()
    """Of the tenant, over all its keys."""
    budgets: tuple[BudgetConfig, ...] = ()
    """Of the tenant and those above it."""
    report_interval_s: float = Field(default=10.0, ge=1, le=300)
    signing_keys: tuple[SigningKey, ...] = ()
    """Where not empty: the set of keys to trust from now on (rotation: first both, then the new one)."""
    certificate: CertificateWanted | None = None
    """Where set, a gateway that ends TLS shows callers this one and no other."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


class Envelope(_FromControlPlane):
    """A signed configuration, as sent with 200 by GET `CONFIG_PATH?have=<version>&wait=<seconds>`.

    Other answers: 204 nothing newer than `have`; 401 credential revoked; 410 gateway removed.
    """

    payload: str
    """Base64 of the canonical JSON of a `ConfigDocument`."""
    signature: str
    """Base64 of the Ed25519 signature over a fixed prefix and the payload's bytes."""
    key_id: str


# --- usage and reports ------------------------------------------------------------------------------


class TokenSource(StrEnum):
    """Where the token counts of a record come from."""

    REPORTED = "reported"
    """The runtime said so in its usage object, of the whole answer."""
    LAST_SEEN = "last-seen"
    """The stream ended early: what the runtime had said so far."""
    COUNTED = "counted"
    """The stream ended early, of a runtime that says nothing before its end: events passed on, one token each; prompt
    tokens unknown (0)."""
    NONE = "none"
    """No answer with tokens came."""


class RequestOutcome(StrEnum):
    """How a request that reached an endpoint ended."""

    COMPLETED = "completed"
    CLIENT_DROPPED = "client-dropped"
    BACKEND_BROKE = "backend-broke"
    NO_BACKEND = "no-backend"
    GATEWAY_DIED = "gateway-died"
    """The gateway ended in the middle; settled at its next start from its journal."""


class UsageRecord(_FromGateway):
    """One request that passed the key check. Holds no body, no key, no address."""

    request_id: str = Field(max_length=128)
    """The caller's `x-request-id` or ours: for people, not unique."""
    key_id: str
    endpoint_uid: UUID
    unit_uid: UUID | None
    revision: int | None
    route: str
    model: str
    streamed: bool
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    token_source: TokenSource = TokenSource.NONE
    started_at: AwareDatetime
    duration_ms: Count
    ttft_ms: Count | None = None
    """Request read to first event passed on; None where nothing was streamed."""
    itl_us: Count | None = None
    """Mean time between two tokens of a stream; None with less than two."""
    uid: UUID | None = None
    """Ours, one for each request: a record that is written twice around a kill is seen to be one."""
    status: int
    outcome: RequestOutcome


class UsageBatch(_FromGateway):
    """Body of POST `USAGE_PATH`. Equal ids are equal batches: count one once, in any order, however late.

    Answers: 2xx kept for good (also for a repeat); 400/413/422 never sent again, set aside on disk.
    """

    id: UUID
    gateway_uid: UUID
    records: tuple[UsageRecord, ...] = Field(max_length=MAX_BATCH_RECORDS)


class LeaseAsk(_FromGateway):
    """What a gateway has of one budget in one period, and what it would like: all of the period together."""

    budget: str = Field(max_length=60)
    period_start: AwareDatetime
    spent: Amount
    keep: Amount
    """What it goes on counting on, spent included; what it had beyond is given back with this."""
    need: Amount
    """With which all that waits could begin."""
    want: Amount
    """With which it could go on for a while without us."""


class LeaseRequest(_FromGateway):
    """Body of POST `LEASES_PATH`. Answers: 200 `LeaseAnswer`; 409 a later word was heard already; 401, 410."""

    gateway_uid: UUID
    serial: Amount
    """Rises with each request of a gateway, also across its restarts."""
    memory: UUID
    """What it keeps its parts in: with another one it has lost count, and what it had is counted as spent."""
    asks: tuple[LeaseAsk, ...] = Field(max_length=MAX_LEASES)


class Lease(_FromControlPlane):
    """A gateway's part of one budget in one period."""

    budget: str
    period_start: AwareDatetime
    granted: Count | None
    """All of the period together; None: the budget is not limited (any more)."""
    left: Count | None = None
    """Of the whole budget, not leased to anybody; None where it is not the caller's to know."""
    ahead: Count | None = None
    """Others share the budget: no more than that is to be kept beyond what is used. None: nobody else has a part."""


class LeaseAnswer(_FromControlPlane):
    """What a gateway was granted, for each that it asked for, but those of a period that is none of now."""

    leases: tuple[Lease, ...]


class BackendReport(_FromGateway):
    """One backend as the gateway sees it."""

    unit_uid: UUID
    reachable: bool | None
    """Outcome of the last look (`GET <url>/models`) or request; None before the first."""
    message: str = Field(default="", max_length=300)
    in_flight: Count = 0
    requests: Count = 0
    failures: Count = 0
    """Connections that failed or broke, and 5xx answers, since the gateway started."""
    running: Count | None = None
    """Requests that its model server says it works on; None while it does not say."""
    queued: Count | None = None
    """Requests that wait in its model server."""
    kv_cache: float | None = Field(default=None, ge=0, le=1)
    """Share of its KV cache that is in use."""
    prefix_queries: Amount | None = None
    """Tokens of prompts that its model server looked up in its prefix cache since it started."""
    prefix_hits: Amount | None = None
    """Of these, tokens that were there."""
    cache_tokens: int | None = Field(default=None, ge=1, le=2**53)
    """Tokens that its KV cache has room for, as its model server says."""


class RevisionReport(_FromGateway):
    """What came of the requests that one revision got, since the gateway started. Counts only rise."""

    revision: Count
    requests: Count = 0
    """Tries that have ended: one that failed and was made again elsewhere counts for both revisions."""
    errors: Count = 0
    """Of these: not reachable, silent, broken off, or answered with 5xx."""
    latency: tuple[Count, ...] = Field(default=(), max_length=len(LATENCY_MS) + 1)
    """Tries by the time from asking the replica to its answer, of streams to the first event (`LATENCY_MS`)."""


class EndpointReport(_FromGateway):
    """One endpoint as the gateway serves it now."""

    uid: UUID
    state: EndpointState
    in_flight: Count = 0
    backends: tuple[BackendReport, ...] = ()
    revisions: tuple[RevisionReport, ...] = ()
    waiting: Count = 0
    """Requests that wait for a replica."""
    last_request_at: AwareDatetime | None = None
    """When the last request with a good key came; None: none since the gateway started."""


class WakeRequest(_FromGateway):
    """Body of POST `WAKE_PATH`: somebody waits for an endpoint at zero. 204; told again while he waits."""

    gateway_uid: UUID
    endpoint_uid: UUID
    waiting: Count = 1


class CertificateReport(_FromGateway):
    """What a gateway says of the certificate that it shows callers."""

    version: str = Field(default="", max_length=64)
    """Of `CertificateWanted`, which it was made for; empty for one that is not from the control plane."""
    not_after: AwareDatetime | None = None
    trouble: str = Field(default="", max_length=300)
    """Why it has not the one that is wanted, in words of the control plane or ours."""


class Report(_FromGateway):
    """Body of POST `REPORT_PATH`, about every `report_interval_s`."""

    gateway_uid: UUID
    gateway_version: str
    started_at: AwareDatetime
    config_version: Count
    """Version being served; 0 without one."""
    config_refused: str = Field(default="", max_length=300)
    """Why the last configuration offered was not taken; empty when it was."""
    in_flight: Count
    refused: Count = 0
    """Requests refused at the key check since the gateway started."""
    spooled_records: Count = 0
    endpoints: tuple[EndpointReport, ...] = ()
    listens_with: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of the certificate that it listens with, by which the endpoint's other gateways know it; `""`: none."""
    certificate: CertificateReport | None = None
    """Of a gateway that ends TLS with a certificate from the control plane."""


# --- certificates -----------------------------------------------------------------------------------


class CertificateRequest(_FromGateway):
    """Body of POST `CERTIFICATE_PATH`. Names are not asked for: they follow from where the gateway belongs.

    Answers: 200 `CertificateAnswer`; 404 none is given from here; 409 none can be made, `detail` says why.
    """

    gateway_uid: UUID
    request_pem: str = Field(max_length=10_000)
    """PKCS #10 with a public key of the gateway's; its private key stays where it is."""


class CertificateAnswer(_FromControlPlane):
    """A certificate for callers. We store it nowhere, and no cache may keep it."""

    chain_pem: str
    """The certificate first, then those above it without the root."""
    key_pem: str = Field(default="", repr=False)
    """Empty: the key of the request."""
    version: Sha256Hex
    """Which `CertificateWanted` it is."""


# --- reading and writing ----------------------------------------------------------------------------


def parse(shape: type[_Shape], text: str | bytes) -> _Shape:
    """Read JSON `text` as `shape`. Raises `BadDocument`, naming fields but never values."""
    try:
        return shape.model_validate_json(text)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) + f" ({e['type']})" for e in error.errors()[:5])
        message = f"not a {shape.__name__}: {fields or 'no JSON object'}"
        raise BadDocument(message) from None


def canonical(document: BaseModel) -> bytes:
    """Return the one byte form of `document`: JSON, keys sorted, no spaces, UTF-8."""
    return json.dumps(
        document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
