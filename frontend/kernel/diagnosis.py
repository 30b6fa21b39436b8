"""Reports of the doctor in words: each check with its state, what was seen, why it matters and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from frontend.design import numbers
from tenants import doctor
from tenants.doctor import State
from tenants.models import SystemReport

LOOKS: Final[Mapping[State, tuple[str | Promise, str, str]]] = {
    State.BAD: (gettext_lazy("Needs mending"), "bad", "octagon-x"),
    State.WARN: (gettext_lazy("Look at it"), "warn", "triangle-alert"),
    State.UNKNOWN: (gettext_lazy("Not known"), "quiet", "circle-question-mark"),
    State.OK: (gettext_lazy("Well"), "ok", "circle-check"),
}
"""State → word, tone, icon; the worst first."""
ANSWERS: Final[Mapping[tuple[str, str], str | Promise]] = {
    ("broker", "there"): gettext_lazy("%(where)s took a connection after %(ms)s ms."),
    ("broker", "away"): gettext_lazy("%(where)s takes no connection (%(error)s)."),
    ("secrets", "open"): gettext_lazy("The key ring opens all %(count)s stored credentials."),
    ("secrets", "closed"): gettext_lazy("%(closed)s of %(count)s stored credentials do not open with this key ring."),
    ("mail", "server"): gettext_lazy("Mail leaves by a server."),
    ("mail", "kept"): gettext_lazy("No mail leaves: it is kept here."),
    ("backups", "unseen"): gettext_lazy("--: the database archives no log, and nothing else tells of copies."),
    ("backups", "archived"): gettext_lazy("%(count)s pieces of log are archived, the last at %(last)s."),
    ("backups", "failing"): gettext_lazy("The last piece of log could not be archived; the last good one: %(last)s."),
}
"""(Check, word of its data) → what was seen, where the check answers in words."""
UNSEEN: Final[Mapping[str, str | Promise]] = {
    "too-slow": gettext_lazy("It took longer than a minute and was broken off."),
    "failed": gettext_lazy("It could not look; the log of the process that looked says why."),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check as pages show it."""

    code: str
    title: str
    state: State
    seen: str
    meaning: str
    remedy: str
    """`""` where all is well."""

    @property
    def word(self) -> str:
        """Return the state in words."""
        return str(LOOKS[self.state][0])

    @property
    def tone(self) -> str:
        """Return its tone."""
        return LOOKS[self.state][1]

    @property
    def icon(self) -> str:
        """Return its icon."""
        return LOOKS[self.state][2]


def findings(report: SystemReport) -> list[Finding]:
    """Return the results of a report in words, the worst first."""
    order = list(LOOKS)
    found = [_finding(result) for result in report.results if result["code"] in doctor.CHECKS]
    return sorted(found, key=lambda one: order.index(one.state))


def _finding(result: Mapping[str, Any]) -> Finding:
    check, state = doctor.CHECKS[result["code"]], State(result["state"])
    return Finding(
        code=result["code"],
        title=str(check.title),
        state=state,
        seen=_seen(result["code"], result["data"]),
        meaning=str(check.meaning),
        remedy="" if state is State.OK else str(check.remedy),
    )


def _seen(code: str, data: Mapping[str, Any]) -> str:
    if "unseen" in data:
        return str(UNSEEN.get(data["unseen"], data["unseen"]))
    template = str(ANSWERS.get((code, str(data.get("word"))), "")) or str(doctor.CHECKS[code].detail)
    values = {key: _word(key, value) for key, value in data.items()}
    values["size"] = numbers.size(data.get("size_bytes"))
    try:
        return (template % values).strip()
    except KeyError:  # written by another release
        return ", ".join(f"{key} {value}" for key, value in values.items() if value != "--")


def _word(key: str, value: Any) -> str:
    if value is None:
        return "--"
    if isinstance(value, int) and not isinstance(value, bool):
        return numbers.number(value)
    return f"({value})" if key == "named" and value else str(value)


def summary(report: SystemReport) -> tuple[str, str, str]:
    """Return word, tone and icon of a whole report."""
    state = doctor.worst(report.results)
    if state is State.OK:
        return _("All is well"), "ok", "circle-check"
    if state is State.UNKNOWN:
        return _("Well, as far as can be seen"), "ok", "circle-check"
    word, tone, icon = LOOKS[state]
    return str(word), tone, icon


def figure(report: SystemReport | None, code: str, key: str) -> Any:
    """Return one figure of a report, None without one."""
    if report is None:
        return None
    found: Mapping[str, Any] = next((result["data"] for result in report.results if result["code"] == code), {})
    return found.get(key)
