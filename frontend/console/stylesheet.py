"""The portal's styles for the parts of it that the console shows, kept inside `.portal-part`.

The console's package has styles of its own with the same class names. The portal's files are served as they are, in a
layer of their own and scoped to the part; only what they say about the document (`:root`, `html`, `body`) is said
about the part instead.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from django.contrib.staticfiles import finders
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import cache_control

FILES: Final = ("base", "layout", "parts", "forms", "pictures", "work")
DOCUMENT: Final = re.compile(r"(?<![\w.#-]):root\b|(?<![\w.#-])(?:html|body)(?=\s*[{,])")
PART: Final = """
.portal-part { container: main / inline-size; color-scheme: light; background: transparent; min-block-size: 0; }
.dark .portal-part { color-scheme: dark; }
.portal-part .prose { color: inherit; font-size: inherit; line-height: inherit; }
"""


@cache_control(private=True, max_age=3600)
def show(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 - Django's signature
    """Serve the styles: they hold nothing about anybody."""
    return HttpResponse(scoped(), content_type="text/css; charset=utf-8")


@lru_cache(maxsize=1)
def scoped() -> str:
    """Return the portal's styles for `.portal-part` alone."""
    found = [finders.find(f"frontend/css/{name}.css") for name in FILES]
    text = "\n".join(Path(path).read_text(encoding="utf-8") for path in found if isinstance(path, str))
    return f"@layer portal {{ @scope (.portal-part) {{\n{DOCUMENT.sub(':scope', text)}\n}} }}\n{PART}"
