"""What the help holds: how to, words, figures, fields, reasons and error codes. Offline, searched in memory.

Reasons are those of `tenants.states.Reason`, errors those of `tenants.error_codes`, fields those of
`tenants.field_help` (tests compare). Each reason and error says what it means, what to do and who can.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from frontend.kernel import topic_people
from frontend.kernel.topic_figures import FIGURES
from tenants.error_codes import HELP
from tenants.field_help import FIELDS

Text = str | Promise
REASONS: Final[Mapping[str, tuple[Text, Text]]] = {
    "Done": (_("It is as it should be."), _("Nothing to do.")),
    "AwaitingDecision": (_("A request waits for a person."), _("Wait, or withdraw the request and ask for less.")),
    "Denied": (_("The request was denied; the message has the reason."), _("Delete it, or file another request.")),
    "OverQuota": (
        _("A limit of the tenant, or of one above it, is too small."),
        _("Look at Quota; ask for more, or give something back."),
    ),
    "NoCapacity": (
        _("There is no free part of that size on any GPU where it may run."),
        _("Wait, or ask for a size that fits now."),
    ),
    "HeldByOthers": (_("The part that it needs is in use."), _("Wait, or ask for another size.")),
    "PolicyForbids": (
        _("A rule of the tenant excludes it; the message names rule and tenant."),
        _("Ask for what the rule allows."),
    ),
    "WaitingForPlacement": (_("Other parts of it have no place yet."), _("Nothing to do.")),
    "WaitingForBoundary": (_("What isolates the tenant there is being built first."), _("Nothing to do.")),
    "StepRunning": (_("A step runs at the provider."), _("Nothing to do.")),
    "StepOverdue": (
        _("A step takes far longer than it should. It is waited for, and nothing else waits with it."),
        _("An operator looks at the provider's task, and cancels it there if it hangs."),
    ),
    "Asleep": (
        _("No replica runs, by its owner's wish or because nobody asked for long. The next request wakes it."),
        _("Nothing to do; wake it beforehand where its first answer must be quick."),
    ),
    "Waking": (_("Somebody woke it, and requests wait for it."), _("Nothing to do.")),
    "Overloaded": (
        _("It works, and has more to do than it can: requests wait in its model server. The message has the numbers."),
        _("Give it more replicas, a shorter context, or fewer users."),
    ),
    "Starting": (_("It starts, or loads its model."), _("Nothing to do.")),
    "Replacing": (_("A part of it moves to another place."), _("Nothing to do.")),
    "ProviderUnavailable": (
        _("The provider does not answer; it is tried again with growing pauses."),
        _("Nothing to do; operators look at the provider."),
    ),
    "ProviderError": (
        _("The provider reported an error; it is tried again."),
        _("If it stays so, give the message to an operator: it has the provider's words."),
    ),
    "Rejected": (
        _("The provider refuses what was asked for. It is stopped until that changes."),
        _("Change what is asked for."),
    ),
    "NotSupported": (
        _("This provider cannot do it. It is stopped until that changes."),
        _("Choose another provider, or leave it out."),
    ),
    "NameTaken": (
        _("Something that is not ours has the name that it needs."),
        _("Tell an operator: a finding says which."),
    ),
    "Blocked": (_("Something else must happen first; the message says what."), _("Read the message.")),
    "InternalError": (
        _("A fault of ours; it is tried again with growing pauses."),
        _("If it stays so, tell an operator: the log has it."),
    ),
    "Unhealthy": (_("It answers wrongly or not at all."), _("Nothing to do: it is being repaired.")),
    "HostLost": (_("Its host is gone."), _("Nothing to do; operators may write it off.")),
    "Lost": (
        _("Its provider does not show it any more, and nothing of ours removed it; its disk went with it."),
        _("Rebuild it, which begins with an empty disk, or delete it."),
    ),
    "WrittenOff": (_("Given up by two people, on a provider that will not come back."), _("Ask for a new one.")),
    "ByOperator": (_("Suspended by an operator."), _("Ask who the message names.")),
    "ByOwner": (_("Done by an owner of the tenant or of its parent."), _("Ask who the message names.")),
    "TermEnded": (_("Its time is over."), _("Renew it on its page.")),
    "Grace": (_("Its time is over and it is kept for a while."), _("Renew it before the time of grace ends.")),
    "ReviewOverdue": (
        _("Production outlived its term; nothing ends by itself."),
        _("Renew it, or delete it."),
    ),
}
"""Reason → what it means, what to do."""
WORDS: Final[tuple[tuple[str, Text, Text], ...]] = (
    (
        "tenant",
        _("Tenant"),
        _("A team or customer, with people, limits and costs of its own. Tenants can have children."),
    ),
    ("endpoint", _("Endpoint"), _("A model behind an address of its own, opened by keys.")),
    ("machine", _("Machine"), _("A virtual machine with part of a GPU or whole ones.")),
    ("namespace", _("Namespace"), _("A closed space in a cluster with GPUs, for workloads of your own.")),
    ("slot", _("Slot"), _("The smallest part of a GPU that is given out. A GPU has up to eight.")),
    ("quota", _("Quota"), _("How much a tenant may have at once. A child gets no more than its parent.")),
    ("request", _("Request"), _("An ask that people decide: more quota, a new tenant, to join.")),
    ("term", _("Term"), _("How long a thing is given for. It can be renewed; you are told before it ends.")),
    ("service-class", _("Class"), _("Trial, standard or production: how long, how safe from its end, at which price.")),
    ("key", _("Key"), _("What a program shows to an endpoint. Shown once, revoked within five seconds.")),
    ("token", _("Token"), _("What the command line and programs show to the API. It may do what you may do.")),
    ("simulated", _("Simulated"), _("Played by the sandbox; no real hardware is touched.")),
)
GUIDES: Final[tuple[tuple[str, Text, tuple[Text, ...]], ...]] = (
    (
        "first-endpoint",
        _("Deploy a first endpoint"),
        (
            _("Open Endpoints and choose New endpoint."),
            _("Keep the model and the size that are filled in, or choose others; the page says whether it fits."),
            _("Deploy. The page shows each step and how long it usually takes."),
            _("Copy the key: it is shown once. The Connect card has the first call for curl and Python."),
            _("Try it in the playground. Renew it before its term ends, or delete it when you are done."),
        ),
    ),
    (
        "more-quota",
        _("Ask for more quota"),
        (
            _("Open Quota: each bar shows what you have, what waits and what the limit is."),
            _("Ask for more, with a reason that helps those who decide."),
            _("The request shows who decides next. You are told by the bell and by mail."),
        ),
    ),
    (
        "use-the-command-line",
        _("Use the command line"),
        (
            _("Make a token under Me and keep it where you keep passwords."),
            _("Log in with it: tenantry login."),
            _("See what you have: tenantry get endpoints. See why it is as it is: tenantry explain endpoint/NAME."),
        ),
    ),
    (
        "a-key-leaked",
        _("A key leaked"),
        (
            _("Open the endpoint's Keys and roll the key without overlap, or revoke it: it stops within five seconds."),
            _("A token is revoked under Me."),
        ),
    ),
    (
        "renew",
        _("Renew before something ends"),
        (
            _("Home lists what ends within 14 days; you are told by the bell and by mail as well."),
            _("Choose what to keep and renew it together, or renew one thing on its page."),
            _("What is past its term is kept for a while: renew it before that time ends, too."),
        ),
    ),
    (
        "read-the-bill",
        _("Read the bill"),
        (
            _("Open Cost: what the month has cost, and what it will have cost at its end."),
            _("Open a line to see what it is made of, down to the second."),
            _("Set a budget: owners are told when 80 and 100 per cent of it are spent. Nothing is stopped by it."),
        ),
    ),
    (
        "decide-a-request",
        _("Decide a request"),
        (
            _("Open Inbox: the oldest request stands first, with what comes of approving it."),
            _("Open it: where it would run, what the limits would be, what it costs, who waits for the same."),
            _("Approve it, grant less or for a time, ask something back, or deny it with a reason."),
            _("If it came out worse in the meantime, nothing is changed: you see what got worse and decide again."),
            _("Nobody decides what he asked for himself."),
        ),
    ),
    (
        "somebody-leaves",
        _("Somebody leaves"),
        (
            _("Open People and access and choose the person."),
            _("The page shows what hangs on the person: what runs, service accounts, keys that the person may know."),
            _("Name who takes over, then take the person out. What runs goes on; roll the keys that matter."),
        ),
    ),
    (
        "work-on-a-host",
        _("Work on a host"),
        (
            _("Open the host under Estate and choose to empty it. The plan shows what moves and who is told."),
            _("Give a reason and a time; tenants are told before it begins."),
            _("When the host is empty, do the work; then open it again. It is tested before it takes anything."),
        ),
    ),
    (
        "connect-a-provider",
        _("Connect a provider"),
        (
            _("Open Providers and choose Connect provider. You can leave at each step and go on later."),
            _("Give the address and an account; the test names each right that is missing."),
            _("Look at what was found, also at what others use there, and choose what to hand over."),
            _("Each host is tested before anything is placed on it."),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Topic:
    """One page of the help."""

    code: str
    title: str
    group: str
    """`guide`, `word`, `figure`, `field`, `reason` or `error`."""
    text: str
    next_step: str = ""
    steps: tuple[str, ...] = ()
    who: str = ""
    """Who can do something about it."""
    measured: str = ""
    """Of a figure: how."""
    example: str = ""
    """Of a field."""


COMMON: Final = frozenset({"a", "the", "of", "not", "no", "to", "is", "it", "field", "too", "by", "on", "or"})
"""Parts of codes that make no two topics related."""
GROUPS: Final[Mapping[str, Text]] = {
    "guide": _("How to"),
    "word": _("Words"),
    "figure": _("Figures"),
    "field": _("What fields are for"),
    "reason": _("Why something is as it is"),
    "error": _("What an error means"),
}


def everything() -> list[Topic]:
    """Return every topic in the reader's language."""
    found = [Topic(code, str(title), "guide", "", steps=tuple(map(str, steps))) for code, title, steps in GUIDES]
    found += [Topic(code, str(title), "word", str(text)) for code, title, text in WORDS]
    found += [Topic(one.code, str(one.title), "figure", str(one.means), measured=str(one.measured)) for one in FIGURES]
    found += [
        Topic(field_code(name), name, "field", gettext(one.sentence), example=one.example_text)
        for name, one in FIELDS.items()
        if "." not in name
    ]
    found += [
        Topic(code, code, "reason", str(means), str(todo), who=topic_people.of_reason(code))
        for code, (means, todo) in REASONS.items()
    ]
    return found + [
        Topic(code, error_title(code), "error", gettext(text), who=topic_people.of_error(code))
        for code, text in sorted(HELP.items())
    ]


def field_code(name: str) -> str:
    """Return the code of a field's topic."""
    return f"field-{name.replace('_', '-')}"


def error_title(code: str) -> str:
    """Return an error code as people read it; the code itself stands beside it."""
    return code.replace("-", " ").capitalize()


def named(code: str) -> Topic | None:
    """Return the topic with this code, None without one; guides and words stand before reasons and errors."""
    return next((topic for topic in everything() if topic.code == code), None)


def matching(text: str) -> list[Topic]:
    """Return the topics that hold every word of `text`, those with it in their title first; all without a word."""
    words = text.casefold().split()
    found = [topic for topic in everything() if all(word in _haystack(topic) for word in words)]
    return sorted(found, key=lambda topic: not (words and all(word in topic.title.casefold() for word in words)))


def related(topic: Topic, *, most: int = 5) -> list[Topic]:
    """Return topics whose codes share words with this one's, those that share most first."""
    mine = _words(topic.code)
    found = [(len(mine & _words(one.code)), one) for one in everything() if one.code != topic.code]
    return [one for shared, one in sorted(found, key=lambda pair: -pair[0]) if shared][:most]


def _words(code: str) -> frozenset[str]:
    parts = re.findall(r"[A-Z]?[a-z]+", code)
    return frozenset(part.casefold() for part in parts) - COMMON


def _haystack(topic: Topic) -> str:
    return " ".join((topic.code, topic.title, topic.text, topic.next_step, topic.measured, *topic.steps)).casefold()
