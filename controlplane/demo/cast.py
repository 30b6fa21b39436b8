"""Who is in the demo: people, a tree of nine tenants, what they may hold, what may be served. Invented; pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tenants.states import PlatformRole, Role


@dataclass(frozen=True, slots=True)
class Player:
    """One person; the part before `@demo.test` names him here."""

    key: str
    name: str
    platform: tuple[PlatformRole, ...] = ()
    roles: Mapping[str, Role] | None = None
    """Tenant → role."""


@dataclass(frozen=True, slots=True)
class House:
    """One tenant."""

    name: str
    title: str
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One served model of the catalogue; `commit` is made up, because nothing is downloaded."""

    name: str
    id: str
    licence: str


PEOPLE: Final = (
    Player("mia", "Mia Member", roles={"aurora": Role.MEMBER}),
    Player("omar", "Omar Owner", roles={"acme": Role.OWNER, "aurora": Role.OWNER}),
    Player("ana", "Ana Approver", (PlatformRole.APPROVER,)),
    Player("ole", "Ole Operator", (PlatformRole.OPERATOR,)),
    Player("aud", "Aud Auditor", (PlatformRole.AUDITOR,)),
    Player("petra", "Petra Lindqvist", roles={"borealis": Role.MEMBER}),
    Player("noor", "Noor Haddad", roles={"helios": Role.OWNER}),
    Player("ben", "Ben Okafor", roles={"imaging": Role.MEMBER}),
    Player("chen", "Chen Wei", roles={"genomics": Role.MEMBER}),
    Player("freja", "Freja Dahl", roles={"nordwind": Role.OWNER}),
    Player("lars", "Lars Vik", roles={"grid": Role.MEMBER}),
    Player("ito", "Ito Haruka", roles={"campus": Role.OWNER}),
    Player("sam", "Sam Rivera", roles={"campus": Role.MEMBER}),
)
HOUSES: Final = (
    House("acme", "Acme Research"),
    House("aurora", "Aurora", "acme"),
    House("borealis", "Borealis", "acme"),
    House("helios", "Helios Health"),
    House("imaging", "Imaging", "helios"),
    House("genomics", "Genomics", "helios"),
    House("nordwind", "Nordwind Energy"),
    House("grid", "Grid control", "nordwind"),
    House("campus", "Campus University"),
)
ROOM: Final[Mapping[str, Mapping[str, int]]] = {
    "acme": {"gpu.H100-80GB.slices": 160, "gpu.A100-80GB.slices": 96, "gpu.L40S-48GB.slices": 8},
    "helios": {"gpu.H100-80GB.slices": 96, "gpu.A100-80GB.slices": 64, "gpu.L40S-48GB.slices": 6},
    "nordwind": {"gpu.H100-80GB.slices": 48, "gpu.A100-80GB.slices": 48, "gpu.L40S-48GB.slices": 6},
    "campus": {"gpu.H100-80GB.slices": 32, "gpu.A100-80GB.slices": 24, "gpu.L40S-48GB.slices": 4},
}
"""Root tenant → limits of GPUs; its children inherit, but for aurora, whose limits are what it holds."""
PLAIN_ROOM: Final[Mapping[str, int]] = {
    "vcpu": 1024, "memory_gib": 8192, "storage_gib": 100_000, "endpoints": 100, "machines": 100, "boundaries": 40,
}  # fmt: skip
MODELS: Final = (
    Model("llama-3-1-8b", "meta-llama/Llama-3.1-8B-Instruct", "llama3.1"),
    Model("qwen3-8b", "Qwen/Qwen3-8B", "apache-2.0"),
    Model("qwen3-14b", "Qwen/Qwen3-14B", "apache-2.0"),
    Model("gpt-oss-20b", "openai/gpt-oss-20b", "apache-2.0"),
    Model("gpt-oss-120b", "openai/gpt-oss-120b", "apache-2.0"),
    Model("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0"),
    Model("llama-3-2-3b", "meta-llama/Llama-3.2-3B-Instruct", "llama3.2"),
)
PRICES: Final[Mapping[str, str]] = {
    "gpu.H100-80GB.slices": "0.42", "gpu.A100-80GB.slices": "0.24", "gpu.L40S-48GB.slices": "1.10",
    "vcpu": "0.012", "memory_gib": "0.0016", "storage_gib": "0.0001",
}  # fmt: skip
"""EUR per slice-hour and unit-hour; invented, not a market price."""
TRIALS: Final[Mapping[str, Any]] = {
    "name": "Demo trials: one slot, seven days",
    "limits": {"gpu.H100-80GB.slices": 1, "gpu.A100-80GB.slices": 1, "vcpu": 4, "memory_gib": 16, "endpoints": 1},
    "longest_s": 7 * 86400,
}
"""The rule by which a small trial needs no second person."""
