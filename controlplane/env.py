"""Every environment variable: name, type, default, unit, why. Fails at start with the variable's name.

Nothing else in the product reads the environment of the control plane.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

NO_DATABASE = "postgresql://cp_app@127.0.0.1:5432/tenantry"


class Environment(BaseSettings):
    """The control plane's whole environment; `tests/architecture` checks that each is documented."""

    model_config = SettingsConfigDict(extra="ignore", case_sensitive=True, populate_by_name=True)

    process: Literal["web", "worker", "owner"] = Field("web", alias="TENANTRY_PROCESS")
    """Which database role this process uses: web → cp_app, worker → cp_worker, owner → cp_owner (migrations)."""
    database_url: SecretStr = Field(SecretStr(NO_DATABASE), alias="DATABASE_URL")
    """PostgreSQL 16 or newer, as cp_app. An external server replaces the embedded one."""
    database_worker_url: SecretStr | None = Field(None, alias="DATABASE_WORKER_URL")
    """The same database as cp_worker; default: DATABASE_URL (then the login must be a member of both roles)."""
    database_owner_url: SecretStr | None = Field(None, alias="DATABASE_OWNER_URL")
    """The same database as cp_owner, for migrations; default: DATABASE_URL."""
    broker_url: SecretStr = Field(SecretStr("memory://"), alias="CELERY_BROKER_URL")
    """Celery's broker (`filesystem://`, `redis://`, `amqp://`). It carries hints only."""
    broker_folder: Path = Field(Path("/tmp/tenantry-broker"), alias="TENANTRY_BROKER_DIR")  # noqa: S108 - a default only
    """Folder of the `filesystem://` broker."""
    state_dir: Path = Field(Path(".state"), alias="TENANTRY_STATE_DIR")
    """Where the embedded set-up keeps its state."""
    secret_key: SecretStr = Field(SecretStr(""), alias="TENANTRY_SECRET_KEY")
    """Signs sessions; at least 32 characters."""
    master_keys: SecretStr = Field(SecretStr(""), alias="TENANTRY_MASTER_KEYS")
    """Key ring of envelope encryption, `id:base64 of 32 bytes[,…]`; the first is used for new secrets."""
    public_url: str = Field("http://127.0.0.1:8420", alias="TENANTRY_PUBLIC_URL")
    """Base URL under which browsers, CLI and gateways reach the control plane."""
    allowed_hosts: str = Field("127.0.0.1,localhost,[::1]", alias="TENANTRY_ALLOWED_HOSTS")
    """Host names the web process answers to, comma-separated."""
    sandbox_url: str = Field("", alias="TENANTRY_SANDBOX_URL")
    """Base URL of the sandbox server for `bootstrap --demo`; empty = none."""
    sandbox_token: SecretStr = Field(SecretStr(""), alias="TENANTRY_SANDBOX_TOKEN")
    """Bearer token of the sandbox server."""
    demo: bool = Field(False, alias="TENANTRY_DEMO")
    """A demo: personas enter without a password. Refused at start beside a provider that is not simulated."""
    sweep_s: float = Field(10.0, alias="TENANTRY_SWEEP_S", gt=0)
    """Seconds between sweeps."""
    lease_ttl_s: float = Field(15.0, alias="TENANTRY_LEASE_TTL_S", gt=0)
    """Seconds a lease lives without renewal."""
    inventory_s: float = Field(30.0, alias="TENANTRY_INVENTORY_S", gt=0)
    """Seconds between snapshots of a provider."""
    worker_slots: int = Field(4, alias="TENANTRY_WORKER_SLOTS", ge=1)
    """Processes of one Celery worker; a provider holds at most half of them."""
    environment_name: str = Field("demo", alias="TENANTRY_ENVIRONMENT", pattern=r"^[a-z0-9]{1,12}$")
    """Short word inside keys and tokens (`tnt_<env>_…`) that tells installations apart."""
    crash_at: str = Field("", alias="TENANTRY_CRASH_AT")
    """For crash tests only: a worker kills itself at `<step>:<instant>` (`provisioners/instants.py`); empty = never."""
    debug: bool = Field(False, alias="TENANTRY_DEBUG")
    """Django's debug pages; never in production."""

    @field_validator("public_url", "sandbox_url")
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    def database_dsn(self) -> str:
        """Return the DSN of this process's role."""
        chosen = {"worker": self.database_worker_url, "owner": self.database_owner_url}.get(self.process)
        return (chosen or self.database_url).get_secret_value()


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the parsed environment; raises pydantic's ValidationError naming the variable at fault."""
    return Environment()
