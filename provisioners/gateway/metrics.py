"""The gateway's own numbers in Prometheus form. Labels are ids and small fixed sets, never what a caller sent."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry per gateway, so that several can live in one process (tests)."""

    def __init__(self) -> None:
        """Register all metrics."""
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "tenantry_gateway_requests", "Requests answered by a backend.", ["endpoint", "status"], registry=registry
        )
        self.refused = Counter(
            "tenantry_gateway_refused", "Requests answered by the gateway itself.", ["code"], registry=registry
        )
        self.duration = Histogram(
            "tenantry_gateway_request_seconds", "Request read to answer written.", buckets=_SECONDS, registry=registry
        )
        self.first_event = Histogram(
            "tenantry_gateway_first_event_seconds", "Request read to first event.", buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter(
            "tenantry_gateway_tokens", "Tokens reported by backends.", ["endpoint", "kind"], registry=registry
        )
        self.backend_failures = Counter(
            "tenantry_gateway_backend_failures", "Backends unreachable or broken off.", ["endpoint"], registry=registry
        )
        self.usage_lost = Counter(
            "tenantry_gateway_usage_lost", "Usage records that could not be written to disk.", registry=registry
        )
        self.config_version = Gauge("tenantry_gateway_config_version", "Configuration served.", registry=registry)
        self.control_plane_up = Gauge(
            "tenantry_gateway_control_plane_up", "1 while the control plane answers.", registry=registry
        )
        # Looked up once, not for each request: endpoints and statuses are few.
        self._requests_of = lru_cache(maxsize=4096)(self.requests.labels)
        self._tokens_of = lru_cache(maxsize=4096)(self.tokens.labels)
        self._in_flight = Gauge("tenantry_gateway_in_flight", "Requests being answered.", registry=registry)
        self._spooled = Gauge("tenantry_gateway_spooled_records", "Usage records not yet sent.", registry=registry)

    def watch(self, *, in_flight: Callable[[], float], spooled: Callable[[], float]) -> None:
        """Read these two when asked for, instead of counting twice."""
        self._in_flight.set_function(in_flight)
        self._spooled.set_function(spooled)

    def answered(
        self, endpoint: str, status: int, *, took_s: float, first_s: float | None, prompt: int, completion: int
    ) -> None:
        """Count a request that a backend was asked for; `first_s` is None where nothing was streamed."""
        self._requests_of(endpoint, str(status)).inc()
        self.duration.observe(took_s)
        if first_s is not None:
            self.first_event.observe(first_s)
        if prompt or completion:
            self._tokens_of(endpoint, "prompt").inc(prompt)
            self._tokens_of(endpoint, "completion").inc(completion)

    def text(self) -> bytes:
        """Return the exposition text (version 0.0.4)."""
        return generate_latest(self._registry)
