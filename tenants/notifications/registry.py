"""The one registry of notification kinds: what is told, to whom, how, from which events, and where it leads.

Adding a kind is one entry here (and, for news that no operation writes, one watcher in `tenants.notifications.watch`).
Sentences are templates over the data that `tenants.notifications.stories` collects; they name objects, never people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _


class Audience(StrEnum):
    """Who is told, by relation to what happened."""

    REQUESTER = "requester"
    DECIDERS = "deciders"
    """Who may decide the request's present stage, and their delegates; never the requester."""
    THREAD = "thread"
    """Requester and deciders."""
    OBJECT_OWNER = "object-owner"
    """The owner of the endpoint, machine or namespace; the tenant's owners where it has none."""
    TENANT_OWNERS = "tenant-owners"
    """Owners of the tenant; where it has none, those of the nearest tenant above."""
    TENANT_MEMBERS = "tenant-members"
    """Members and owners of the tenant; its viewers are not told."""
    SUBTREE_MEMBERS = "subtree-members"
    """Members and owners of the tenant and of those below it."""
    SUBJECT = "subject"
    """The person whom it is about."""
    OPERATORS = "operators"


class Mail(StrEnum):
    """When a person gets mail about a kind."""

    OFF = "off"
    NOW = "now"
    DIGEST = "digest"


class Group(StrEnum):
    """Where a kind stands among the preferences."""

    REQUESTS = "requests"
    OBJECTS = "objects"
    TENANT = "tenant"
    ACCOUNT = "account"
    PLATFORM = "platform"


GROUP_TITLES: Final[Mapping[Group, str | Promise]] = {
    Group.REQUESTS: _("Requests and decisions"),
    Group.OBJECTS: _("Endpoints, machines, namespaces"),
    Group.TENANT: _("Tenant"),
    Group.ACCOUNT: _("Your account"),
    Group.PLATFORM: _("Platform"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of notification."""

    id: str
    group: Group
    title: str | Promise
    sentence: str | Promise
    """Template over the story's data: `%(name)s`."""
    help: str | Promise
    """When it comes, for the page of preferences."""
    audience: Audience
    events: tuple[str, ...]
    """Kinds of events that it is made from."""
    mail: Mail = Mail.NOW
    """Default; a person may choose otherwise."""
    link: str = ""
    """Path of the portal's page, a template over the same data."""
    webhook: bool = True
    """Whether a tenant's webhooks get it."""
    self_too: bool = False
    """Whether whoever did it is told as well: matters of his account's safety."""

    def text(self, data: Mapping[str, Any]) -> str:
        """Return the sentence in the reader's language."""
        return str(self.sentence) % _Known(data)

    def path(self, data: Mapping[str, Any]) -> str:
        """Return the path of the page it leads to, `""` without one."""
        return self.link % _Known(data) if self.link else ""


class _Known(dict[str, Any]):
    """Data of a story; what was not known reads as `--`."""

    def __missing__(self, key: str) -> str:
        return "--"


class HasKind(Protocol):
    """A row that names its kind and holds its data."""

    kind: str
    data: dict[str, Any]


_PRODUCT_LINK: Final = "/t/%(tenant)s/%(noun)s/%(name)s"


def _products(verb: str) -> tuple[str, ...]:
    return tuple(f"{word}.{verb}" for word in ("endpoint", "machine", "namespace"))


_ALL: Final = (
    # -- requests ----------------------------------------------------------------------------------------------
    Kind(
        "request.waiting", Group.REQUESTS, _("A request waits for your decision"),
        _("%(request)s of %(tenant)s (%(ask)s) waits for your decision."),
        _("Somebody asks for something that you may decide, or changed what he asks for."),
        Audience.DECIDERS, ("request.submitted", "request.revised", "request.stage-approved"),
        link="/ops/inbox/%(request)s",
    ),
    Kind(
        "request.stale", Group.REQUESTS, _("A request waits too long"),
        _("%(request)s of %(tenant)s (%(ask)s) has waited for %(days)s days for your decision."),
        _("A request that you may decide is older than a day; once a day until it is decided."),
        Audience.DECIDERS, ("request.stale",), link="/ops/inbox/%(request)s",
    ),
    Kind(
        "request.advanced", Group.REQUESTS, _("Your request went one step further"),
        _("A stage of %(request)s (%(ask)s) was approved; the next one decides now."),
        _("A stage of your request was approved and another one follows."),
        Audience.REQUESTER, ("request.stage-approved",), mail=Mail.OFF, link="%(request_page)s",
    ),
    Kind(
        "request.decided", Group.REQUESTS, _("Your request was decided"),
        _("%(request)s (%(ask)s) is now %(state)s."),
        _("Your request was approved, approved in part, denied, or ended without a decision."),
        Audience.REQUESTER,
        ("request.approved", "request.reduced", "request.denied", "request.expired"), link="%(request_page)s",
    ),
    Kind(
        "request.commented", Group.REQUESTS, _("New comment on a request"),
        _("There is a new comment on %(request)s (%(ask)s)."),
        _("Somebody wrote in the thread of a request that you asked for or may decide."),
        Audience.THREAD, ("request.commented",), mail=Mail.DIGEST, link="%(request_page)s", webhook=False,
    ),
    # -- objects -----------------------------------------------------------------------------------------------
    Kind(
        "object.ready", Group.OBJECTS, _("Ready"), _("The %(object)s %(name)s is ready."),
        _("An endpoint, machine or namespace of yours can be used for the first time."),
        Audience.OBJECT_OWNER, _products("first-ready"), link=_PRODUCT_LINK, self_too=True,
    ),
    Kind(
        "object.failed", Group.OBJECTS, _("Failed"),
        _("The %(object)s %(name)s stopped: %(why)s It stays so until it is changed."),
        _("An object of yours cannot be made as it was asked for and waits for a change."),
        Audience.OBJECT_OWNER, _products("failed"), link=_PRODUCT_LINK, self_too=True,
    ),
    Kind(
        "object.unhealthy", Group.OBJECTS, _("Not healthy"), _("The %(object)s %(name)s is not healthy: %(why)s"),
        _("An object of yours lost a GPU or does not answer as it should."),
        Audience.OBJECT_OWNER, _products("unhealthy"), link=_PRODUCT_LINK, self_too=True,
    ),
    Kind(
        "object.lost", Group.OBJECTS, _("Gone from its provider"),
        _("The machine %(name)s is gone from its provider, its disk with it; nothing of ours removed it."),
        _("A machine of yours is not there any more although nobody asked for that; it is not made anew by itself."),
        Audience.OBJECT_OWNER, ("machine.lost",), link=_PRODUCT_LINK, self_too=True,
    ),
    Kind(
        "object.expiring", Group.OBJECTS, _("Ends soon"), "%(text)s",
        _("14, 7 and 1 days before the end of a term, at its end, and weekly where a review is overdue."),
        Audience.OBJECT_OWNER,
        ("allocation.expiry-warning", "allocation.expiry-grace", "allocation.review-overdue"),
        link=_PRODUCT_LINK, self_too=True,
    ),
    Kind(
        "object.reclaimed", Group.OBJECTS, _("Taken back"),
        _("The term of %(name)s and its grace are over; it is being given back."),
        _("The grace after the end of a term is over."),
        Audience.OBJECT_OWNER, ("allocation.reclaimed",), link="/t/%(tenant)s/%(noun)s", self_too=True,
    ),
    Kind(
        "object.idle", Group.OBJECTS, _("Idle"),
        _("The endpoint %(name)s has had no request for %(days)s days and is still paid for."),
        _("An endpoint of yours has not been called for a week; once a week."),
        Audience.OBJECT_OWNER, ("endpoint.idle",), mail=Mail.DIGEST, link=_PRODUCT_LINK, self_too=True,
    ),
    Kind(
        "key.revoked", Group.OBJECTS, _("A key was revoked"),
        _("A key of %(name)s was revoked; who still uses it is refused."),
        _("Somebody else revoked a key of your endpoint, for example because it leaked."),
        Audience.OBJECT_OWNER, ("endpoint.key-revoked",), link=_PRODUCT_LINK,
    ),
    Kind(
        "hardware.work", Group.OBJECTS, _("Work on the hardware"), "%(text)s",
        _("The hardware under your objects is emptied for work: what moves, what stops, from when."),
        Audience.TENANT_MEMBERS, ("host-plan.created",), link="/t/%(tenant)s",
    ),
    Kind(
        "hardware.called-off", Group.OBJECTS, _("Work on the hardware was called off"),
        _("The announced work on the hardware under your objects does not take place."),
        _("Announced work on the hardware was cancelled."),
        Audience.TENANT_MEMBERS, ("host-plan.cancel-requested",), link="/t/%(tenant)s",
    ),
    # -- tenant ------------------------------------------------------------------------------------------------
    Kind(
        "tenant.suspended", Group.TENANT, _("Suspended"), _("%(tenant)s is suspended (%(depth)s): %(why)s"),
        _("A tenant of yours, or one above it, is suspended."),
        Audience.SUBTREE_MEMBERS, ("tenant.suspended",), link="/t/%(tenant)s",
    ),
    Kind(
        "tenant.resumed", Group.TENANT, _("Suspension ended"), _("%(tenant)s is not suspended any more."),
        _("A suspension ended."), Audience.SUBTREE_MEMBERS, ("tenant.resumed",), link="/t/%(tenant)s",
    ),
    Kind(
        "tenant.handover", Group.TENANT, _("Somebody left"),
        _("Somebody left %(tenant)s. %(count)s objects and service accounts of his need an owner or have a new one."),
        _("Somebody who owned objects or service accounts left your tenant."),
        Audience.TENANT_OWNERS, ("tenant.handover",), link="/t/%(tenant)s/people",
    ),
    Kind(
        "quota.changed", Group.TENANT, _("A limit changed"),
        _("%(dimension)s of %(tenant)s is now %(amount)s."), _("A limit of your tenant was raised or lowered."),
        Audience.TENANT_OWNERS, ("quota.set", "quota.granted"), mail=Mail.OFF, link="/t/%(tenant)s/quota",
    ),
    Kind(
        "budget.reached", Group.TENANT, _("Budget for the month"),
        _("%(tenant)s spent %(percent)s per cent of its budget of %(month)s: %(spent)s of %(amount)s %(currency)s."),
        _("80 or 100 per cent of the budget that your tenant set for a month is spent; once each a month."),
        Audience.TENANT_OWNERS, ("budget.reached",), link="/t/%(tenant)s/cost", self_too=True,
    ),
    Kind(
        "service-account.disabled", Group.TENANT, _("A service account was switched off"),
        _("The service account %(name)s of %(tenant)s was switched off: %(why)s."),
        _("A service account ended, by somebody's wish or because its owner left."),
        Audience.TENANT_OWNERS, ("service-account.disabled",), link="/t/%(tenant)s/people",
    ),
    Kind(
        "webhook.failing", Group.TENANT, _("A webhook fails"),
        _("The webhook %(name)s of %(tenant)s gave up a message after a day of failures: %(why)s"),
        _("A webhook of your tenant could not be reached for a day."),
        Audience.TENANT_OWNERS, ("webhook.failing",), link="/t/%(tenant)s/settings/webhooks/%(name)s", webhook=False,
    ),
    Kind(
        "webhook.disabled", Group.TENANT, _("A webhook was switched off"),
        _("The webhook %(name)s of %(tenant)s was switched off: %(why)s"),
        _("A webhook of your tenant failed for days, or its receiver said that it is gone."),
        Audience.TENANT_OWNERS, ("webhook.disabled",), link="/t/%(tenant)s/settings/webhooks/%(name)s",
        webhook=False, self_too=True,
    ),
    # -- account -----------------------------------------------------------------------------------------------
    Kind(
        "member.added", Group.ACCOUNT, _("You are a member"), _("You are now %(role)s of %(tenant)s."),
        _("Somebody made you a member of a tenant, or changed your role."),
        Audience.SUBJECT, ("member.added", "member.changed"), link="/t/%(tenant)s", webhook=False,
    ),
    Kind(
        "member.removed", Group.ACCOUNT, _("You are no member any more"),
        _("You are no member of %(tenant)s any more."),
        _("Somebody took you out of a tenant."), Audience.SUBJECT, ("member.removed",), link="/", webhook=False,
    ),
    Kind(
        "account.password", Group.ACCOUNT, _("Your password was changed"),
        _("Your password was changed. If it was not you, tell an operator at once."),
        _("Your password was set, by whomever."), Audience.SUBJECT, ("person.password-set",), link="/me",
        webhook=False, self_too=True,
    ),
    Kind(
        "account.roles", Group.ACCOUNT, _("Your platform roles changed"), _("Your platform roles are now: %(roles)s."),
        _("Somebody changed your roles over the whole platform."), Audience.SUBJECT, ("person.roles-set",),
        link="/me", webhook=False,
    ),
    Kind(
        "token.revoked", Group.ACCOUNT, _("A token of yours was revoked"),
        _("Your token %(name)s was revoked: %(why)s."), _("Somebody else, or a rule, ended a token of yours."),
        Audience.SUBJECT, ("token.revoked",), link="/me", webhook=False,
    ),
    Kind(
        "delegation.received", Group.ACCOUNT, _("You stand in for somebody"),
        _("You may decide in somebody's place from %(starts)s to %(ends)s."),
        _("Somebody asked you to decide in his place."), Audience.SUBJECT, ("delegation.created",), link="/ops/inbox",
        webhook=False,
    ),
    # -- platform ----------------------------------------------------------------------------------------------
    Kind(
        "provider.down", Group.PLATFORM, _("A provider does not answer"),
        _("The provider %(name)s does not answer; what it has to do waits."), _("A provider cannot even be read."),
        Audience.OPERATORS, ("provider.unreachable",), link="/ops/providers/%(name)s", webhook=False,
    ),
    Kind(
        "provider.up", Group.PLATFORM, _("A provider answers again"), _("The provider %(name)s answers again."),
        _("A provider that did not answer does so again."), Audience.OPERATORS, ("provider.answers",), mail=Mail.OFF,
        link="/ops/providers/%(name)s", webhook=False,
    ),
    Kind(
        "gpu.faulty", Group.PLATFORM, _("A GPU is faulty"), _("GPU %(device)s of %(name)s is faulty: %(why)s"),
        _("A provider reports a GPU as bad; its free part is held back."), Audience.OPERATORS, ("host.gpu-faulty",),
        link="/ops/hosts/%(id)s", webhook=False,
    ),
    Kind(
        "host.refused", Group.PLATFORM, _("A host failed its acceptance"),
        _("The host %(name)s failed its acceptance."),
        _("A new host did not pass its checks."), Audience.OPERATORS, ("host.acceptance-failed",),
        link="/ops/hosts/%(id)s", webhook=False, self_too=True,
    ),
    Kind(
        "finding.opened", Group.PLATFORM, _("A new finding"), _("%(finding)s: %(why)s"),
        _("Something does not fit together and needs an operator."), Audience.OPERATORS, ("finding.opened",),
        mail=Mail.DIGEST, link="/ops/findings", webhook=False,
    ),
)  # fmt: skip

KINDS: Final[Mapping[str, Kind]] = {kind.id: kind for kind in _ALL}
BY_EVENT: Final[Mapping[str, tuple[Kind, ...]]] = {
    event: tuple(kind for kind in _ALL if event in kind.events) for kind in _ALL for event in kind.events
}
WEBHOOK_KINDS: Final = tuple(kind.id for kind in _ALL if kind.webhook)
TEST: Final = "webhook.test"
"""Kind of the message that `test` sends to a webhook; nobody subscribes to it."""


def of_group(group: Group) -> Iterator[Kind]:
    """Yield the kinds of a group in the registry's order."""
    return (kind for kind in _ALL if kind.group is group)


def title_of(row: HasKind) -> str:
    """Return a row's title; a kind that is no more is called by its id."""
    kind = KINDS.get(row.kind)
    return str(kind.title) if kind is not None else row.kind


def text_of(row: HasKind) -> str:
    """Return a row's sentence, `""` where its kind is no more."""
    kind = KINDS.get(row.kind)
    return kind.text(row.data) if kind is not None else ""


def link_of(row: HasKind) -> str:
    """Return the path of the page a row leads to, `""` without one."""
    kind = KINDS.get(row.kind)
    return kind.path(row.data) if kind is not None else ""
