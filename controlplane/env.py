"""Every environment variable: name, type, default, unit, why. Fails at start with the variable's name.

Nothing else in the product reads the environment of the control plane.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

NO_DATABASE = "postgresql://cp_app@127.0.0.1:5432/tenantry"


LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
"""Hosts that need no encryption on the way."""


@dataclass(frozen=True, slots=True)
class Mail:
    """How mail leaves, in Django's words."""

    backend: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    starttls: bool = False
    reaches_people: bool = False
    """Whether there is a mail server at all."""


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
    webhook_networks: str = Field("", alias="TENANTRY_WEBHOOK_NETWORKS")
    """Networks beyond the public Internet that webhooks may reach, comma-separated (`10.20.0.0/16`); empty = none.
    With `127.0.0.0/8` also http to this machine: demo and tests. Link-local addresses are never reached."""
    sweep_s: float = Field(10.0, alias="TENANTRY_SWEEP_S", gt=0)
    """Seconds between sweeps."""
    ssh_certificate_s: int = Field(900, alias="TENANTRY_SSH_CERTIFICATE_S", ge=60, le=3600)
    """Seconds an SSH certificate for a machine is valid; sessions that it opened go on after it."""
    lease_ttl_s: float = Field(15.0, alias="TENANTRY_LEASE_TTL_S", gt=0)
    """Seconds a lease lives without renewal."""
    inventory_s: float = Field(30.0, alias="TENANTRY_INVENTORY_S", gt=0)
    """Seconds between snapshots of a provider."""
    worker_slots: int = Field(4, alias="TENANTRY_WORKER_SLOTS", ge=1)
    """Processes of one Celery worker; a provider holds at most half of them."""
    workers: int = Field(1, alias="TENANTRY_WORKERS", ge=1)
    """Celery workers of the installation, on all machines: each process makes its share of a cluster's calls."""
    environment_name: str = Field("demo", alias="TENANTRY_ENVIRONMENT", pattern=r"^[a-z0-9]{1,12}$")
    """Short word inside keys and tokens (`tnt_<env>_…`) that tells installations apart."""
    crash_at: str = Field("", alias="TENANTRY_CRASH_AT")
    """For crash tests only: a worker kills itself at `<step>:<instant>` (`provisioners/instants.py`); empty = never."""
    second_factor: Literal["optional", "operators", "everybody"] = Field("optional", alias="TENANTRY_SECOND_FACTOR")
    """Who must have a second factor before the portal opens: nobody, everybody with a platform role, everybody."""
    oidc_issuer: str = Field("", alias="TENANTRY_OIDC_ISSUER")
    """Issuer of an OpenID Connect provider, https (http on this machine only); empty = none."""
    oidc_client_id: str = Field("", alias="TENANTRY_OIDC_CLIENT_ID")
    """Our client id there; redirect address: `<public URL>/accounts/oidc/<id>/login/callback/`."""
    oidc_client_secret: SecretStr = Field(SecretStr(""), alias="TENANTRY_OIDC_CLIENT_SECRET")
    """Our client secret there."""
    oidc_name: str = Field("company log-in", alias="TENANTRY_OIDC_NAME")
    """How people call that log-in: "Continue with …"."""
    smtp_url: SecretStr = Field(SecretStr(""), alias="TENANTRY_SMTP_URL")
    """`smtp://[user:password@]host[:port]` (STARTTLS unless on this machine) or `smtps://…`; empty = no mail leaves."""
    mail_from: str = Field("Tenantry <tenantry@localhost>", alias="TENANTRY_MAIL_FROM")
    """Sender of our mails."""
    debug: bool = Field(False, alias="TENANTRY_DEBUG")
    """Django's debug pages; never in production."""

    @field_validator("public_url", "sandbox_url")
    @classmethod
    def _no_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer_is_safe(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and parts.scheme != "https" and parts.hostname not in LOCAL:
            msg = "must be an https address: what it answers opens accounts"
            raise ValueError(msg)
        return value.rstrip("/")

    @field_validator("smtp_url")
    @classmethod
    def _smtp_is_one(cls, value: SecretStr) -> SecretStr:
        parts = urlsplit(value.get_secret_value())
        if parts.geturl() and (parts.scheme not in {"smtp", "smtps"} or not parts.hostname):
            msg = "must be smtp://host or smtps://host"
            raise ValueError(msg)
        return value

    def identity_providers(self) -> list[dict[str, Any]]:
        """Return the log-in library's settings of the provider; its id derives from the issuer.

        So an identity is (issuer, subject): those of another issuer never open these accounts.
        """
        if not self.oidc_issuer:
            return []
        return [
            {
                "provider_id": f"sso-{hashlib.sha256(self.oidc_issuer.encode()).hexdigest()[:8]}",
                "name": self.oidc_name,
                "client_id": self.oidc_client_id,
                "secret": self.oidc_client_secret.get_secret_value(),
                "settings": {"server_url": self.oidc_issuer, "fetch_userinfo": False},
            }
        ]

    def mail(self) -> Mail:
        """Return how mail leaves; without a server it is written to files of the state folder."""
        parts = urlsplit(self.smtp_url.get_secret_value())
        if not parts.hostname:
            kept = "tenants.notifications.mailbox.OutboxBackend"  # the demo shows it
            return Mail(backend=kept if self.demo else "django.core.mail.backends.filebased.EmailBackend")
        tls = parts.scheme == "smtps"
        return Mail(
            backend="django.core.mail.backends.smtp.EmailBackend",
            host=parts.hostname,
            port=parts.port or (465 if tls else 587),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls=tls,
            starttls=not tls and parts.hostname not in LOCAL,
            reaches_people=True,
        )

    @field_validator("webhook_networks")
    @classmethod
    def _networks_are_some(cls, value: str) -> str:
        for part in filter(None, (each.strip() for each in value.split(","))):
            ipaddress.ip_network(part)
        return value

    def database_dsn(self) -> str:
        """Return the DSN of this process's role."""
        chosen = {"worker": self.database_worker_url, "owner": self.database_owner_url}.get(self.process)
        return (chosen or self.database_url).get_secret_value()


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the parsed environment; raises pydantic's ValidationError naming the variable at fault."""
    return Environment()
