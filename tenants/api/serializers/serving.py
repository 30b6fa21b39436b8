"""Shapes of what one looks at an endpoint with: the end of its log, benchmarks."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Literal, Self

from pydantic import Field

from tenants import addresses, endpoint_trust
from tenants.api.serializers.base import In, Out
from tenants.benchmarks import BOUNDS, Load, Result, Spread
from tenants.models import AddressCheck, Benchmark, Endpoint, EndpointLog
from tenants.operations.endpoint_logs import MOST_LINES
from tenants.states import BenchmarkState


class LogIn(In):
    """How much of a log."""

    tail: int = Field(200, ge=1, le=MOST_LINES, description="So many of the newest lines.")


class LogLineOut(Out):
    """One line."""

    at: str = Field(description="RFC 3339; empty where the provider does not say.")
    source: str = Field(description="What wrote it, in the provider's words.")
    text: str


class LogOut(Out):
    """The end of an endpoint's log: asked for, and read by a worker some hundred milliseconds later."""

    id: str
    endpoint: str
    state: Literal["asked", "read", "refused"]
    error: str
    asked_at: datetime
    read_at: datetime | None
    lines: list[LogLineOut] = Field(description="The oldest first.")

    @classmethod
    def of(cls, row: EndpointLog) -> Self:
        """Return an asking; its endpoint must be loaded."""
        return cls(
            id=str(row.pk),
            endpoint=row.endpoint.name,
            state="asked" if row.answered_at is None else "refused" if row.error else "read",
            error=row.error,
            asked_at=row.asked_at,
            read_at=row.answered_at,
            lines=[LogLineOut(**line) for line in row.lines],
        )


def _amount(name: str, default: int, words: str) -> int:
    least, most = BOUNDS[name]
    found: int = Field(default, ge=least, le=most, description=words)
    return found


class BenchmarkIn(In):
    """A load: requests of one shape, each sent as soon as one has ended."""

    requests: int = _amount("requests", 100, "How many are sent in all.")
    input_tokens: int = _amount("input_tokens", 512, "Of each prompt, about: random words are made to fit.")
    output_tokens: int = _amount("output_tokens", 128, "Of each answer.")
    concurrency: int = _amount("concurrency", 8, "How many are being answered at once.")

    def asked(self) -> Load:
        """Return what is asked for."""
        return Load(self.requests, self.input_tokens, self.output_tokens, self.concurrency)


class LoadOut(Out):
    """A load as it was asked for."""

    requests: int
    input_tokens: int
    output_tokens: int
    concurrency: int


class SpreadOut(Out):
    """Times in milliseconds; null where nothing was measured."""

    mean: float | None
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, found: Spread) -> Self:
        """Return times."""
        return cls(mean=found.mean, p50=found.p50, p99=found.p99)


class BenchmarkResultOut(Out):
    """What a load came to, as its caller saw it."""

    answered: int
    failed: int
    errors: dict[str, int] = Field(description="HTTP status, timeout or broken → how many.")
    duration_s: float
    prompt_tokens: int
    completion_tokens: int
    requests_s: float | None
    written_tokens_s: float | None = Field(description="Tokens written a second, all requests together.")
    tokens_s: float | None = Field(description="Tokens read and written a second.")
    ttft_ms: SpreadOut = Field(description="Request to first token.")
    between_ms: SpreadOut = Field(description="Between two events of a stream.")
    request_ms: SpreadOut
    stopped: str = Field(description="Why it ended early: cancelled, time, budget, failures; empty where it did not.")
    simulated: str = Field(description="all: no model ran; gpu: a real model server on a simulated GPU; empty: real.")

    @classmethod
    def of(cls, found: Result) -> Self:
        """Return a result."""
        return cls(
            answered=found.answered,
            failed=found.failed,
            errors=dict(found.errors),
            duration_s=found.duration_s,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
            requests_s=_rounded(found.requests_s),
            written_tokens_s=_rounded(found.written_s),
            tokens_s=_rounded(found.tokens_s),
            ttft_ms=SpreadOut.of(found.ttft_ms),
            between_ms=SpreadOut.of(found.between_ms),
            request_ms=SpreadOut.of(found.request_ms),
            stopped=found.stopped.value,
            simulated=found.simulated,
        )


class BenchmarkOut(Out):
    """A bounded load on an endpoint, put on it through its own address."""

    id: str
    short_id: str
    endpoint: str
    revision: int = Field(description="Number of the revision that served.")
    load: LoadOut
    state: BenchmarkState
    sent: int = Field(description="Requests that have ended.")
    failed: int
    reason: str = Field(description="Why it failed or ended early.")
    result: BenchmarkResultOut | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Benchmark) -> Self:
        """Return a benchmark; its endpoint must be loaded."""
        result = Result.of(row.result)
        return cls(
            id=str(row.pk),
            short_id=row.short_id,
            endpoint=row.endpoint.name,
            revision=row.revision,
            load=LoadOut(**Load.of(row.load).as_json()),
            state=BenchmarkState(row.state),
            sent=row.sent,
            failed=row.failed,
            reason=row.reason,
            result=None if result is None else BenchmarkResultOut.of(result),
            created_at=row.created_at,
            started_at=row.started_at,
            ended_at=row.ended_at,
        )


class DnsRecordOut(Out):
    """A DNS record that is to be set."""

    name: str
    kind: str = Field(description="A, AAAA or CNAME.")
    value: str


class AddressFindingOut(Out):
    """One thing that was looked at."""

    key: str = Field(description="name, range, certificate or answer.")
    ok: bool
    text: str = Field(description="What was seen; where it is not well what is missing, and who does what.")
    warns: bool = Field(default=False, description="It is well now and will not be for long.")


class AddressCertificateOut(Out):
    """The certificate at an endpoint's address."""

    source: str = Field(description="Where it comes from: none (of ours), own-ca, files or cert-manager.")
    ca_pem: str = Field(description="Certificates that callers trust beside the usual authorities; often empty.")
    ends_at: datetime | None = Field(description="When the one ends that callers are shown; null where nobody tells.")
    source_ends_at: datetime | None = Field(description="When the authority or the given certificate ends.")
    trouble: str = Field(description="Why a gateway has not the certificate that it should have.")


class AddressOut(Out):
    """An endpoint's address as a caller sees it."""

    address: str = Field(description="Empty before it answers.")
    reachable_from: str
    leads_to: str = Field(description="Where it answers, in its provider's words.")
    record: DnsRecordOut | None = Field(
        description="The record that makes the name lead there; null where none is known."
    )
    ok: bool | None = Field(description="Whether it was reached from outside; null where nobody has looked.")
    checked_at: datetime | None
    verified_at: datetime | None = Field(description="When all was well last.")
    findings: list[AddressFindingOut]
    certificate: AddressCertificateOut

    @classmethod
    def of(cls, row: Endpoint) -> Self:
        """Return an endpoint's address. In a read block."""
        leads_to = str(row.observed.get(addresses.LEADS_TO) or "")
        config = {} if row.boundary is None else row.boundary.provider.config
        record = addresses.record_to_set(row.address, leads_to, config)
        seen = endpoint_trust.look(row)
        check = AddressCheck.objects.filter(endpoint=row, address=row.address).first()
        return cls(
            address=row.address,
            reachable_from=row.reachable_from,
            leads_to=leads_to,
            record=None if record is None else DnsRecordOut(name=record.name, kind=record.kind, value=record.value),
            ok=None if check is None else check.ok,
            checked_at=None if check is None else check.checked_at,
            verified_at=None if check is None else check.verified_at,
            findings=[] if check is None else [AddressFindingOut(**each) for each in check.findings],
            certificate=AddressCertificateOut(**asdict(seen)),
        )


def _rounded(amount: float | None) -> float | None:
    return None if amount is None else round(amount, 3)
