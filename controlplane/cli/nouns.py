"""The nouns of `tenantry get` and friends: names, addresses, and the columns of their tables.

Adding a noun is adding one entry here. A tenant noun lists below its tenant, or across all that the caller
may see where the API offers that; a child noun lives below another object (`keys` of an endpoint).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from controlplane.cli.cells import said
from controlplane.cli.failures import UsageFault

Json = dict[str, Any]
Reach = Literal["platform", "tenant", "both"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its head, where its value lies (dotted), and how it is said (`cells.FORMS`)."""

    head: str
    path: str
    form: str = ""

    @classmethod
    def parse(cls, word: str) -> Column:
        """Read `HEAD=path:form`; `_` in the head is a space."""
        head, _, rest = word.partition("=")
        path, _, form = rest.partition(":")
        return cls(head.replace("_", " "), path, form)


@dataclass(frozen=True, slots=True)
class Noun:
    """One kind of thing."""

    name: str
    """Plural, as in addresses."""
    singular: str
    reach: Reach
    """Whether it is listed at the top (`platform`), below a tenant, or both."""
    columns: tuple[Column, ...]
    short: tuple[str, ...] = ()
    child_of: str = ""
    """Plural of the noun below which it lives."""
    top: bool = False
    """One object is read at the top, without its tenant (requests)."""
    paged: bool = True
    """Whether its list comes in pages."""

    @property
    def of_tenant(self) -> bool:
        """Whether objects belong to a tenant."""
        return self.reach != "platform"

    @property
    def across(self) -> bool:
        """Whether they are listed across tenants too."""
        return self.reach == "both"

    @property
    def has_phase(self) -> bool:
        """Whether passes build it."""
        return any(column.path == "phase" for column in self.columns) and self.name != "plans"

    def collection(self, *, tenant: str = "", parent: str = "") -> str:
        """Return the address of its list. Raises `UsageFault` when tenant or parent is needed and missing."""
        if self.child_of:
            if not (tenant and parent):
                raise UsageFault(f"{self.name} belong to one of the {self.child_of}: name it, and its tenant")
            return f"/tenants/{tenant}/{self.child_of}/{parent}/{self.name}"
        if self.of_tenant and tenant:
            return f"/tenants/{tenant}/{self.name}"
        if self.reach == "tenant":
            raise UsageFault(f"{self.name} belong to a tenant: add --tenant")
        return f"/{self.name}"

    def one(self, name: str, *, tenant: str = "") -> str:
        """Return the address of one object. Raises `UsageFault` when a tenant is needed and missing."""
        if self.of_tenant and not self.top:
            if not tenant:
                raise UsageFault(f"{self.singular} {name}: of which tenant? Add --tenant")
            return f"/tenants/{tenant}/{self.name}/{name}"
        return f"/{self.name}/{name}"


def _noun(
    name: str,
    singular: str,
    reach: Reach,
    columns: str,
    short: str = "",
    *,
    child_of: str = "",
    top: bool = False,
    paged: bool = True,
) -> Noun:
    found = tuple(Column.parse(word) for word in columns.split())
    return Noun(name, singular, reach, found, tuple(short.split()), child_of, top, paged)


_LIFE: Final = "UNTIL=expires_at:until AGE=created_at:ago ID=short_id WHY=conditions:why"

ALL: Final[tuple[Noun, ...]] = (
    _noun("endpoints", "endpoint", "both",
          f"NAME=name TENANT=tenant PHASE=phase MODEL=model SIZE=units:size ADDRESS=address {_LIFE}", "ep"),
    _noun("machines", "machine", "both",
          f"NAME=name TENANT=tenant PHASE=phase POWER=power SIZE=units:size ADDRESS=address {_LIFE}", "vm"),
    _noun("namespaces", "namespace", "both",
          f"NAME=name TENANT=tenant PHASE=phase SIZE=units:size PROVIDER=provider {_LIFE}", "ns"),
    _noun("allocations", "allocation", "both",
          f"NAME=name TENANT=tenant PHASE=phase FOR=product_kind SIZE=units:size PROVIDER=provider {_LIFE}", "alloc"),
    _noun("boundaries", "boundary", "both",
          "ID=short_id TENANT=tenant PHASE=phase KIND=kind PROVIDER=provider TIER=tier ADDRESS=address "
          "AGE=created_at:ago WHY=conditions:why"),
    _noun("requests", "request", "both",
          "ID=short_id KIND=kind TENANT=tenant STATE=state BY=requester_name NEXT_STAGE=stages:stage VERSION=version "
          "AGE=created_at:ago REASON=reason:why", "rq", top=True),
    _noun("quotas", "quota", "tenant",
          "DIMENSION=dimension LIMIT=amount:amount INHERITS=inherit UNTIL=until:until TENANT=tenant"),
    _noun("members", "member", "tenant",
          "PERSON=display_name E-MAIL=email ROLE=role TENANT=tenant AGE=created_at:ago"),
    _noun("service-accounts", "service-account", "tenant",
          "NAME=name TENANT=tenant ROLE=role UNTIL=expires_at:until DISABLED=disabled_at:ago AGE=created_at:ago", "sa"),
    _noun("events", "event", "both",
          "WHEN=at:moment KIND=kind OF=object_kind OBJECT=object_id BY=actor", "ev"),
    _noun("usage", "usage", "both",
          "ALLOCATION=allocation_id PROVIDER=provider PRODUCT=product PROFILE=profile SLOTS=size "
          "HELD_FROM=held_from:moment HELD_TO=held_to:moment BILLED_FROM=billable_from:moment "
          "BILLED_TO=billable_to:moment"),
    _noun("costs", "cost", "tenant",
          "DAY=day OBJECT=name KIND=kind ITEM=item HELD=held:amount BILLED=billable:amount PRICE=price:amount "
          "COST=cost:amount CURRENCY=currency PROVIDER=provider", paged=False),
    _noun("notices", "notice", "both", "WHEN=at:moment TENANT=tenant KIND=kind TEXT=text:why"),
    _noun("suspensions", "suspension", "tenant",
          "TENANT=tenant DEPTH=depth SINCE=created_at:ago UNTIL=until:until ENDED=ended_at:ago REASON=reason:why"),
    _noun("calls", "calls", "tenant",
          "KEY=key NAME=key_name REVISION=revision MODEL=model REQUESTS=requests ERRORS=errors PROMPT=prompt_tokens "
          "COMPLETION=completion_tokens TTFT_P50=ttft_p50_s TTFT_P99=ttft_p99_s BETWEEN_P50=between_p50_s "
          "BETWEEN_P99=between_p99_s", child_of="endpoints", paged=False),
    _noun("minutes", "minute", "tenant",
          "AT=at:moment REQUESTS=requests ERRORS=errors PROMPT=prompt_tokens COMPLETION=completion_tokens "
          "TOKENS/S=tokens_s TTFT_P50=ttft_p50_s TTFT_P99=ttft_p99_s RUNNING=running QUEUED=queued KV_CACHE=kv_cache "
          "PREFIX_HITS=prefix_hit_rate", child_of="endpoints", paged=False),
    _noun("benchmarks", "benchmark", "tenant",
          "ID=short_id REVISION=revision STATE=state REQUESTS=load.requests IN=load.input_tokens "
          "OUT=load.output_tokens AT_ONCE=load.concurrency ANSWERED=result.answered FAILED=failed "
          "TOKENS/S=result.written_tokens_s "
          "TTFT_P50_MS=result.ttft_ms.p50 TTFT_P99_MS=result.ttft_ms.p99 BETWEEN_P50_MS=result.between_ms.p50 "
          "BETWEEN_P99_MS=result.between_ms.p99 AGE=created_at:ago WHY=reason:why", child_of="endpoints"),
    _noun("keys", "key", "tenant",
          "ID=id NAME=name MAY=scopes:names REQUESTS/MIN=requests_per_minute TOKENS/MIN=tokens_per_minute "
          "TOKENS=budget_tokens TOKENS_SPENT=spent_tokens MONEY=budget_money MONEY_SPENT=spent_money "
          "PER=budget_period ANEW=budget_ends_at:until EXPIRES=expires_at:until REVOKED=revoked_at:ago "
          "LAST_USED=last_used_at:ago AGE=created_at:ago", child_of="endpoints"),
    _noun("revisions", "revision", "tenant",
          "NR=number MODEL=model RUNTIME=runtime ARGUMENTS=arguments:pairs AGE=created_at:ago", child_of="endpoints"),
    _noun("rollouts", "rollout", "tenant",
          "FROM=before TO=revision STRATEGY=strategy STATE=state WEIGHT=weight REQUESTS=standing.requests "
          "FAILED=standing.errors HELD=held SINCE=since:ago "
          "NOTE=note:why REASON=reason:why", child_of="endpoints"),
    _noun("moves", "move", "tenant",
          "FROM=source.provider KIND=source.kind TO=target.provider TO_KIND=target.kind STATE=state SINCE=since:ago "
          "THERE=message:why REASON=reason:why", child_of="endpoints"),
    _noun("tenants", "tenant", "platform",
          "NAME=name TITLE=display_name PARENT=parent STATUS=status SUSPENDED=suspended YOU_ARE=role "
          "AGE=created_at:ago ID=short_id"),
    _noun("people", "person", "platform",
          "NAME=display_name E-MAIL=email ROLES=platform_roles:names ACTIVE=is_active AGE=created_at:ago"),
    _noun("providers", "provider", "platform",
          "NAME=name KIND=kind SITE=site ENABLED=enabled HEALTHY=healthy SIMULATED=capabilities.simulated "
          "SEEN=snapshot_at:ago ID=short_id"),
    _noun("hosts", "host", "platform",
          "NAME=name PROVIDER=provider STATE=state BINDING=binding PRODUCT=gpu_product GPUS=gpu_count EMPTY=empty_gpus "
          "VCPU_FREE=free_vcpu:amount GIB_FREE=free_memory_gib:amount HEALTHY=healthy ID=short_id MESSAGE=message:why"),
    _noun("devices", "device", "platform",
          "NR=number HOST=host GPU=index PRODUCT=product MODE=mode SLOTS=slots FREE=free:bits HEALTHY=healthy "
          "ID=short_id MESSAGE=message:why", "gpus"),
    _noun("findings", "finding", "platform",
          "ID=short_id KIND=kind HOST=host BLOCKS=blocks_placement SINCE=first_seen_at:ago RESOLVED=resolved_at:ago "
          "DETAIL=detail:why"),
    _noun("plans", "plan", "platform",
          "ID=short_id KIND=kind HOST=host STATE=state PHASE=phase STARTS=starts_at:until TOUCHES=touched:count "
          "AGE=created_at:ago WHY=conditions:why"),
    _noun("prices", "price-list", "platform",
          "NAME=name FROM=valid_from:moment PROVIDER=provider SITE=site CURRENCY=currency PRICES=prices:prices"),
    _noun("served-models", "served-model", "platform",
          "NAME=name REPOSITORY=repository COMMIT=commit LICENCE=licence ENABLED=enabled", "models model"),
    _noun("model-stages", "model-stage", "platform",
          "MODEL=model PROVIDER=provider STATE=state REMOVING=removing BYTES=bytes_done:amount OF=bytes_total:amount "
          "ASKED=asked_at:ago ID=id MESSAGE=message:why", "stages"),
    _noun("fit-corrections", "fit-correction", "platform",
          "MODEL=model PRODUCT=product PROFILE=profile GPUS=gpus CACHE_X=token_factor WEIGHTS_X=fixed_factor "
          "STARTS=starts RESET=reset_at:ago ID=id"),
    _noun("gpu-products", "gpu-product", "platform",
          "PRODUCT=id SLICES=slices GIB=memory_gib:amount PROFILES=profiles:names", "products", paged=False),
    _noun("machine-images", "machine-image", "platform", "NAME=name", "images image", paged=False),
    _noun("checkpoints", "checkpoint", "platform", "WHEN=at:moment HEADS=heads:count HASH=hash"),
    _noun("system-reports", "system-report", "platform",
          "ASKED=asked_at:ago DONE=done_at:ago STATE=state THOROUGH=thorough MS=took_ms WORKER=worker RELEASE=release"),
    _noun("tokens", "token", "platform",
          "ID=id NAME=name TENANT=tenant READ_ONLY=read_only UNTIL=expires_at:until REVOKED=revoked_at:ago "
          "LAST_USED=last_used_at:ago AGE=created_at:ago"),
    _noun("delegations", "delegation", "platform",
          "ID=id TO=delegate FROM=starts_at:moment UNTIL=ends_at:until"),
    _noun("auto-approval-rules", "rule", "platform",
          "ID=id NAME=name KIND=kind LIMITS=limits:pairs ENABLED=enabled AGE=created_at:ago"),
)  # fmt: skip

_BY_WORD: Final[Mapping[str, Noun]] = {word: noun for noun in ALL for word in (noun.name, noun.singular, *noun.short)}


def noun(word: str) -> Noun:
    """Return the noun that a word means: plural, singular or short. Raises `UsageFault`."""
    found = _BY_WORD.get(word.lower())
    if found is None:
        known = ", ".join(each.name for each in ALL)
        raise UsageFault(f"there is no noun {word}; known: {known}")
    return found


def split_object(word: str, name: str = "") -> tuple[Noun, str]:
    """Return noun and name of `endpoint/chat` or of two words. Raises `UsageFault`."""
    kind, mark, rest = word.partition("/")
    if not mark:
        rest = name
    if not rest or (mark and name):
        raise UsageFault("name one object as endpoint/chat")
    return noun(kind), rest


def cell(item: Mapping[str, Any], column: Column) -> str:
    """Return what stands in a cell."""
    value: Any = item
    for part in column.path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return said(value, column.form)
