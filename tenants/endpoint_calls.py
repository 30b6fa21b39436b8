"""What was asked of an endpoint over a time: by key, model and revision, from the hourly sums of its gateways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tenants.models import Endpoint, EndpointKey, EndpointUsage, Revision
from tenants.usage_times import BETWEEN_BOUNDS_US, TTFT_BOUNDS_MS, added, quantile


@dataclass(slots=True)
class Calls:
    """Sums over the hours that begin in a time; of one key and one revision, or of several added up."""

    key: str = ""
    """Public id; `""` for a key that is not known any more."""
    key_name: str = ""
    revision: int = 0
    """0 where no revision answered."""
    model: str = ""
    """Served model of the revision."""
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration_ms: int = 0
    ttft_counts: Sequence[int] = field(default_factory=list)
    between_counts: Sequence[int] = field(default_factory=list)

    def add(self, row: EndpointUsage) -> None:
        """Add one hour."""
        self.requests += row.requests
        self.errors += row.errors
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.duration_ms += row.duration_ms
        self.ttft_counts = added(self.ttft_counts, row.ttft_counts)
        self.between_counts = added(self.between_counts, row.between_counts)

    @property
    def mean_s(self) -> float | None:
        """Return how long a request took on average; None without one."""
        return self.duration_ms / self.requests / 1000 if self.requests else None

    def ttft_s(self, part: float) -> float | None:
        """Return the time to the first event that `part` of the streams kept; None without a stream."""
        found = quantile(self.ttft_counts, TTFT_BOUNDS_MS, part)
        return None if found is None else found / 1000

    def between_s(self, part: float) -> float | None:
        """Return the mean time between two tokens that `part` of the streams kept; None without a stream."""
        found = quantile(self.between_counts, BETWEEN_BOUNDS_US, part)
        return None if found is None else found / 1_000_000


def calls(endpoint: Endpoint, start: datetime, end: datetime) -> list[Calls]:
    """Return what was asked in the hours that begin in [start, end), most tokens first. In a read block."""
    found: dict[tuple[str, int], Calls] = {}
    rows = EndpointUsage.objects.filter(
        tenant_id=endpoint.tenant_id, endpoint_id=endpoint.pk, hour__gte=start, hour__lt=end
    )
    for row in rows.iterator(chunk_size=2000):
        found.setdefault((row.key_id, row.revision), Calls(key=row.key_id, revision=row.revision)).add(row)
    names = dict(EndpointKey.objects.filter(endpoint=endpoint).values_list("public_id", "name"))
    models = dict(Revision.objects.filter(endpoint=endpoint).values_list("number", "model__name"))
    for each in found.values():
        each.key_name, each.model = names.get(each.key, ""), models.get(each.revision, "")
    return sorted(
        found.values(), key=lambda each: (-each.prompt_tokens - each.completion_tokens, each.key, each.revision)
    )
