"""What is asked for in the demo's thirty days, and when. Invented; pure data.

Days are counted from the beginning of the history; the small demo plays the same days in less time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tenants.specs import AllocationSpec, GpuAsk, Term, UnitAsk, Where
from tenants.states import BoundaryKind, ProductKind, ServiceClass

DAYS: Final = 30
DAY_S: Final = 86400
E, M, N = ProductKind.ENDPOINT, ProductKind.MACHINE, ProductKind.NAMESPACE
H, A, L = "H100-80GB", "A100-80GB", "L40S-48GB"


@dataclass(frozen=True, slots=True)
class Item:
    """One endpoint, machine or namespace that somebody asks for."""

    day: float
    tenant: str
    who: str
    kind: ProductKind
    name: str
    provider: str
    product: str
    profile: str = ""
    model: str = ""
    """Of an endpoint."""
    busy: float = 1.0
    """How much it is used; 0 for one that nobody calls."""
    term_days: int = 90
    until_day: float | None = None
    """When its owner gives it back."""
    service_class: ServiceClass = ServiceClass.STANDARD
    count: int = 1
    small: bool = False
    """Also in the small demo."""

    def spec(self) -> AllocationSpec:
        """Return the capacity that it asks for."""
        vcpu, memory = _SIZE.get(self.profile, (12 * self.count, 96 * self.count))
        kind = BoundaryKind.VM if self.provider == "munich-vsphere" else BoundaryKind.NAMESPACE
        return AllocationSpec(
            units=(UnitAsk(GpuAsk(self.product, self.profile, self.count), vcpu, memory),),
            where=Where(provider=self.provider, kind=kind),
            term=Term(duration_s=self.term_days * DAY_S, service_class=self.service_class),
        )


_SIZE: Final[Mapping[str, tuple[int, int]]] = {
    "1g.10gb": (4, 16), "1g.20gb": (4, 32), "2g.20gb": (6, 32), "3g.40gb": (8, 48), "4g.40gb": (8, 64),
}  # fmt: skip
_B, _M, _O = "berlin-k8s", "munich-vsphere", "oslo-k8s"
_PROD, _TRIAL = ServiceClass.PRODUCTION, ServiceClass.TRIAL
ITEMS: Final = (
    # The first week: everybody moves in.
    Item(0.20, "aurora", "mia", E, "assistant", _B, H, "3g.40gb", "llama-3-1-8b", 3.0, 90, None, _PROD, small=True),
    Item(0.21, "borealis", "petra", E, "search", _O, H, "2g.20gb", "qwen3-8b", 1.6, small=True),
    Item(0.22, "imaging", "ben", E, "reports", _M, A, "3g.40gb", "qwen3-14b", 1.2, small=True),
    Item(0.23, "genomics", "chen", M, "notebook", _M, A, "3g.40gb", small=True),
    Item(1.10, "grid", "lars", E, "dispatch", _O, A, "3g.40gb", "mistral-7b", 2.0, 90, None, _PROD, small=True),
    Item(1.11, "campus", "sam", N, "course-ml", _B, H, "1g.10gb", small=True),
    Item(1.12, "genomics", "chen", E, "papers", _B, H, "", "gpt-oss-120b", 2.4),
    Item(1.13, "aurora", "mia", E, "summaries", _B, H, "1g.20gb", "llama-3-2-3b", 0.8),
    Item(2.20, "borealis", "petra", E, "translate", _B, A, "3g.40gb", "qwen3-14b", 1.1),
    Item(2.21, "imaging", "ben", M, "annotation", _M, L, ""),
    Item(2.22, "nordwind", "freja", E, "tenders", _M, H, "2g.20gb", "llama-3-1-8b", 0.9, 31),
    Item(2.23, "campus", "sam", E, "tutor", _O, L, "", "llama-3-1-8b", 1.7, 36),
    Item(4.10, "helios", "noor", E, "triage", _B, H, "3g.40gb", "gpt-oss-20b", 2.8, 120, None, _PROD),
    Item(4.11, "grid", "lars", M, "simulator", _M, H, "4g.40gb"),
    Item(4.12, "aurora", "mia", M, "mia-box", _M, A, "1g.10gb", term_days=30, until_day=22.2),
    Item(5.30, "campus", "sam", M, "robotics", _M, A, "2g.20gb", term_days=27),
    Item(5.31, "borealis", "petra", E, "drafts", _O, H, "1g.20gb", "qwen3-8b", 0.5, 40),
    Item(5.32, "genomics", "chen", M, "assembly", _M, H, "", term_days=60),
    # The second: more of it, and first trials that end.
    Item(7.10, "imaging", "ben", E, "trial-vision", _B, L, "", "mistral-7b", 0.6, 3, None, _TRIAL),
    Item(7.11, "acme", "omar", E, "helpdesk", _B, H, "2g.20gb", "mistral-7b", 1.4),
    Item(8.20, "grid", "lars", E, "forecast-text", _O, H, "1g.10gb", "llama-3-2-3b", 0.7),
    Item(8.21, "nordwind", "freja", M, "scada-lab", _M, A, "1g.20gb", term_days=45),
    Item(9.40, "campus", "ito", E, "library", _O, A, "2g.20gb", "qwen3-8b", 1.0),
    Item(9.41, "borealis", "petra", M, "evals", _M, H, "3g.40gb", term_days=18),
    Item(10.10, "aurora", "mia", E, "extract", _O, H, "2g.20gb", "qwen3-8b", 1.3, 60),
    Item(11.20, "helios", "noor", M, "audit-box", _M, A, "1g.10gb"),
    Item(11.21, "imaging", "ben", E, "letters", _O, A, "3g.40gb", "mistral-7b", 0.9, 30, 24.1),
    Item(12.30, "genomics", "chen", E, "variants", _B, A, "4g.40gb", "qwen3-14b", 1.5),
    Item(13.10, "campus", "sam", E, "grader", _B, H, "1g.20gb", "llama-3-2-3b", 0.4, 21),
    # The third: growth, and things nobody uses.
    Item(15.20, "acme", "omar", E, "contracts", _B, H, "3g.40gb", "gpt-oss-20b", 1.2),
    Item(15.21, "grid", "lars", E, "alarms", _M, A, "2g.20gb", "llama-3-1-8b", 1.1),
    Item(16.30, "borealis", "petra", E, "idle-demo", _B, H, "2g.20gb", "llama-3-1-8b", 0.0, small=True),
    Item(17.10, "nordwind", "freja", E, "newsroom", _O, L, "", "mistral-7b", 0.8, 30),
    Item(17.11, "helios", "noor", E, "coding", _O, H, "", "gpt-oss-120b", 2.2, small=True),
    Item(18.20, "imaging", "ben", M, "segmenter", _M, H, "", term_days=28),
    Item(19.10, "aurora", "mia", E, "rerank", _B, A, "2g.20gb", "qwen3-8b", 0.9),
    Item(20.30, "genomics", "chen", N, "pipelines", _O, H, "3g.40gb"),
    Item(21.10, "campus", "ito", M, "thesis", _M, A, "2g.20gb", term_days=20),
    # The last: fresh ones.
    Item(23.20, "grid", "lars", E, "maps", _B, L, "", "mistral-7b", 0.6),
    Item(24.30, "acme", "omar", M, "gateway-test", _M, L, "", term_days=14),
    Item(25.10, "helios", "noor", E, "voice", _B, H, "4g.40gb", "qwen3-14b", 1.8),
    Item(26.20, "borealis", "petra", E, "labels", _O, A, "3g.40gb", "mistral-7b", 0.9, 30),
    Item(27.10, "nordwind", "freja", E, "offers", _B, H, "1g.20gb", "llama-3-2-3b", 0.5),
    Item(28.20, "imaging", "ben", E, "second-read", _O, H, "3g.40gb", "gpt-oss-20b", 1.4, small=True),
    Item(29.10, "campus", "sam", E, "chess", _B, H, "1g.10gb", "llama-3-2-3b", 0.7, 7, None, _TRIAL),
    Item(29.40, "aurora", "mia", E, "helper", _O, H, "1g.20gb", "llama-3-2-3b", 0.6, 30),
)


def items(*, small: bool) -> tuple[Item, ...]:
    """Return what is asked for, in time."""
    return tuple(item for item in ITEMS if item.small or not small)
