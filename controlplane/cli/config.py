"""Where `tenantry` keeps who it is: contexts (address, token, tenant) in one TOML file of mode 0600.

The environment goes before the file: TENANTRY_URL, TENANTRY_TOKEN, TENANTRY_TENANT, TENANTRY_CONTEXT for
automation, TENANTRY_CONFIG for another file. A token is in no `repr`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from controlplane.cli.failures import UsageFault

DEFAULT_URL: Final = "http://127.0.0.1:8420"
DEFAULT_CONTEXT: Final = "default"


@dataclass(frozen=True, slots=True)
class Context:
    """One control plane and the person or service account that speaks to it."""

    url: str = DEFAULT_URL
    token: str = field(default="", repr=False)
    who: str = ""
    """E-mail or name, for people."""
    tenant: str = ""
    """Tenant that commands mean without `--tenant`."""


@dataclass(frozen=True, slots=True)
class Config:
    """All contexts of one file."""

    path: Path
    current: str = DEFAULT_CONTEXT
    contexts: Mapping[str, Context] = field(default_factory=dict)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Config:
        """Read the file; an absent one is empty. Raises `UsageFault` for one that is damaged."""
        path = config_path(environ)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls(path)
        try:
            body = tomllib.loads(text)
            contexts = {
                name: Context(**{key: str(value) for key, value in entry.items() if key in Context.__slots__})
                for name, entry in body.get("contexts", {}).items()
            }
        except (tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
            raise UsageFault(f"{path} is damaged: {error}", hint=f"rm {path} && tenantry login") from error
        return cls(path, str(body.get("current", DEFAULT_CONTEXT)), contexts)

    def with_context(self, name: str, context: Context) -> Config:
        """Return the same with one context put and made current."""
        return replace(self, current=name, contexts={**self.contexts, name: context})

    def without_token(self, name: str) -> Config:
        """Return the same with that context logged out."""
        if name not in self.contexts:
            return self
        return replace(self, contexts={**self.contexts, name: replace(self.contexts[name], token="")})

    def save(self) -> None:
        """Write the file whole or not at all, readable by its owner only."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(self.as_toml())
        fresh.replace(self.path)

    def as_toml(self) -> str:
        """Return the file's text."""
        lines = ["# Written by `tenantry login`. The tokens open your account: keep this file to yourself.\n"]
        lines.append(f"current = {_quoted(self.current)}\n")
        for name, context in sorted(self.contexts.items()):
            lines.append(f"\n[contexts.{_quoted(name)}]\n")
            values = {"url": context.url, "token": context.token, "who": context.who, "tenant": context.tenant}
            lines += [f"{key} = {_quoted(value)}\n" for key, value in values.items() if value]
        return "".join(lines)


def config_path(environ: Mapping[str, str]) -> Path:
    """Return the file that this environment means."""
    if given := environ.get("TENANTRY_CONFIG"):
        return Path(given).expanduser()
    base = environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "tenantry" / "config.toml"


def chosen(
    config: Config, environ: Mapping[str, str], *, context: str = "", url: str = "", tenant: str = ""
) -> Context:
    """Return the context in force: options, then environment, then file.

    A token of the file goes only to the address it was made at. Raises `UsageFault` for an unknown context.
    """
    name = context or environ.get("TENANTRY_CONTEXT", "") or config.current
    if name not in config.contexts and (context or "TENANTRY_CONTEXT" in environ):
        known = ", ".join(sorted(config.contexts)) or "none"
        raise UsageFault(f"there is no context {name}; known: {known}", hint=f"tenantry login --context {name}")
    found = config.contexts.get(name, Context())
    wanted = (url or environ.get("TENANTRY_URL", "") or found.url).rstrip("/")
    token = environ.get("TENANTRY_TOKEN", "") or (found.token if wanted == found.url.rstrip("/") else "")
    return Context(wanted, token, found.who, tenant or environ.get("TENANTRY_TENANT", "") or found.tenant)


def _quoted(text: str) -> str:
    """Return a TOML basic string: JSON's escapes are TOML's, DEL aside."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
