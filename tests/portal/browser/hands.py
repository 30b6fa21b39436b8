"""Somebody without a mouse: reaches everything with Tab, acts with Enter, Space and arrows, and counts what he does."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

FOCUSED = "element => element === document.activeElement"
MOST_TABS = 200


@dataclass
class Hands:
    """Keys alone on one page. `fields`, `submits` and `presses` say what a walk cost."""

    page: object
    tabs: int = 0
    presses: int = 0
    """Links followed and buttons pressed."""
    fields: list[str] = field(default_factory=list)
    """Names of fields that were touched."""
    submits: list[str] = field(default_factory=list)
    """Paths of forms that were sent."""

    def __post_init__(self) -> None:
        self.page.on("request", self._request)

    def _request(self, request: object) -> None:
        if request.method == "POST" and request.is_navigation_request():
            self.submits.append(urlsplit(request.url).path)

    def to(self, target: object) -> None:
        """Press Tab until the focus is on `target`. Fails when it cannot be reached so."""
        target.first.wait_for(state="attached")
        element = target.first
        for _ in range(MOST_TABS):
            if element.evaluate(FOCUSED):
                return
            self.page.keyboard.press("Tab")
            self.tabs += 1
        raise AssertionError(f"Tab never reaches {target}")

    def press(self, role: str, name: str, *, within: object = None, lands: str = "") -> None:
        """Go to a link or button by its words and press it; `lands` is where that must lead."""
        self.to((within or self.page).get_by_role(role, name=name, exact=True))
        self.presses += 1
        self.key("Enter", lands=lands)

    def key(self, key: str, *, lands: str = "") -> None:
        """Press a key where the focus is; with `lands`, wait for the page that it leads to."""
        if not lands:
            self.page.keyboard.press(key)
            return
        with self.page.expect_navigation(url=lands):
            self.page.keyboard.press(key)

    def fill(self, label: str, text: str, *, within: object = None) -> None:
        """Go to a field by its label and type over what it holds."""
        target = (within or self.page).get_by_label(label, exact=True)
        self.to(target)
        self.fields.append(target.first.get_attribute("name") or label)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def choose(self, label: str, option: str, *, within: object = None) -> None:
        """Go to a list by its label and type the beginning of an option."""
        target = (within or self.page).get_by_label(label, exact=True)
        self.to(target)
        self.fields.append(target.first.get_attribute("name") or label)
        self.page.keyboard.type(option)

    def at(self) -> str:
        """Return what the focus is on: its words, else its name."""
        return self.page.evaluate(
            "(e => e.innerText || e.getAttribute('aria-label') || e.name || e.tagName)(document.activeElement)"
        )
