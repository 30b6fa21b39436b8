"""Every flag of vLLM in one of three classes: who may set it, if anybody. Product data, read once.

`data/vllm-flags-0.32.0.json` names its source. What tenants may give is the typed list (`tenants.serving_arguments`);
tests hold the two together, and hold that nothing rendered is of the class `never`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from types import MappingProxyType


class FlagClass(StrEnum):
    """Who may set a flag."""

    TENANT = "tenant"
    """A tenant, within the typed list."""
    OPERATOR = "operator"
    """The operator or Tenantry itself."""
    NEVER = "never"
    """Nobody, in a command line of ours."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One long name; a `--no-` form belongs to it."""

    name: str
    kind: FlagClass
    why: str


@cache
def flags() -> Mapping[str, Flag]:
    """Return every flag by its long name."""
    text = files("provisioners.serving").joinpath("data", "vllm-flags-0.32.0.json").read_text(encoding="utf-8")
    entries = json.loads(text)["flags"].items()
    return MappingProxyType({name: Flag(name, FlagClass(entry["class"]), entry["why"]) for name, entry in entries})


def class_of(word: str) -> FlagClass:
    """Return the class of a word of a command line, as `--no-enforce-eager` or `--port=1`; `NEVER` if unknown."""
    name = word.partition("=")[0]
    known = flags()
    found = known.get(name) or known.get(f"--{name.removeprefix('--no-')}" if name.startswith("--no-") else "")
    return FlagClass.NEVER if found is None else found.kind
