"""Finds every page that somebody can reach by following links, as a reader or a search engine would.

Knows nothing of what pages show: it is given `fetch` (path → answer), and `richest` keeps one page of each route.
Used by `make screens`, by the bench of pages and by the tests that look at every page.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final
from urllib.parse import parse_qsl, urldefrag, urljoin, urlsplit

from django.urls import Resolver404, resolve

FOREIGN: Final = ("/static/", "/api/", "/admin/", "/metrics")
"""Not pages of the portal."""
INVENTED: Final = ("/style",)
"""Pages of examples: their links lead nowhere."""
STARTS: Final = ("/", "/me", "/help", "/style", "/style/entrance", "/search?q=chat")
"""Where somebody with a session begins; everything else has to be linked from somewhere."""
ENTRANCES: Final = ("/", "/login", "/personas", "/help", "/style", "/accounts/login/", "/accounts/password/reset/")
"""Where a visitor begins."""
VARIANTS: Final = 5
"""Sets of query names that are opened of one route."""
FOLLOWED: Final = {"a": ("href", "hx-get"), "area": ("href",), "iframe": ("src",)}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to one GET."""

    status: int
    kind: str
    """Its content type, without parameters."""
    body: str
    location: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One address that was opened."""

    path: str
    """With its query."""
    route: str
    answer: Answer
    via: str
    """The page whose link led here, `""` for a start."""

    @property
    def is_page(self) -> bool:
        """Whether this is a whole page, not a fragment, a file or a redirect."""
        return self.answer.status == 200 and self.answer.kind == "text/html" and "<html" in self.answer.body[:2000]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        names = FOLLOWED.get(tag, ("hx-get",))
        self.found += [values[name] for name in names if name in values]
        if tag == "form" and values.get("method", "get").lower() == "get" and "action" in values:
            self.found.append(values["action"])


def links(body: str, base: str) -> list[str]:
    """Return the addresses on this host that a page leads to by GET: links, fragments it loads, forms that look."""
    parser = _Links()
    parser.feed(body)
    found = []
    for href in parser.found:
        url = urlsplit(urljoin(f"http://host{base}", urldefrag(href).url))
        if url.scheme == "http" and url.netloc == "host" and not url.path.startswith(FOREIGN):
            found.append(url.path + (f"?{url.query}" if url.query else ""))
    return list(dict.fromkeys(found))


def route_of(path: str) -> str | None:
    """Return the pattern of this product that answers an address, None where none does. Needs Django to be set up."""
    try:
        return str(resolve(path).route)
    except Resolver404:
        return None


@dataclass
class Crawl:
    """One reader's walk. `most` addresses are opened of each route, one of each set of query names: so it ends."""

    fetch: Callable[[str], Answer]
    most: int = 3
    seen: list[Seen] = field(default_factory=list)

    def walk(self, starts: Iterable[str]) -> list[Seen]:
        """Open the starts and all that they lead to; return what was opened, in that order."""
        queue = deque((path, "") for path in starts)
        known = {path for path, _via in queue}
        opened: Counter[tuple[str, tuple[str, ...]]] = Counter()
        while queue:
            path, via = queue.popleft()
            url = urlsplit(path)
            route = route_of(url.path)
            if route is None:
                self.seen.append(Seen(path, "", Answer(404, "", ""), via))
                continue
            names = tuple(sorted({name for name, _value in parse_qsl(url.query)}))
            opened[route, names] += 1
            opened[route, ("?",)] += opened[route, names] == 1 and bool(names)
            if opened[route, names] > (1 if names else self.most) or (names and opened[route, ("?",)] > VARIANTS):
                continue
            answer = self.fetch(path)
            self.seen.append(Seen(path, route, answer, via))
            led = [answer.location] if answer.location else []
            if answer.kind == "text/html" and not path.startswith(INVENTED):
                led += links(answer.body, url.path)
            for found in led:
                if found not in known and not found.startswith(FOREIGN):
                    known.add(found)
                    queue.append((found, path))
        return self.seen


def richest(seen: Iterable[Seen]) -> Mapping[str, Seen]:
    """Return route → the page of it that holds most; addresses without a query first."""
    found: dict[str, Seen] = {}
    for one in seen:
        if one.is_page and (one.route not in found or _wealth(one) > _wealth(found[one.route])):
            found[one.route] = one
    return found


def _wealth(one: Seen) -> tuple[bool, int]:
    return "?" not in one.path, len(one.answer.body)
