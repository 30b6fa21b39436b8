"""Icons of the package `lucide` (ISC) as inline SVG. One repeats a word beside it: hidden unless it is named."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from io import BytesIO
from xml.etree import ElementTree as ET
from zipfile import ZipFile

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe

SIZES = {"small": " is-small", "": "", "large": " is-large", "huge": " is-huge"}


@cache
def _archive() -> ZipFile:
    """Return the package's drawings, read once: its list of contents alone takes longer than drawing an icon."""
    return ZipFile(BytesIO(files("lucide").joinpath("lucide.zip").read_bytes()))


@cache
def drawing(name: str) -> str:
    """Return the inner SVG of one icon. Raises `KeyError` for a name that the package does not have."""
    root = ET.fromstring(_archive().read(f"{name}.svg"))  # noqa: S314 - a file of an installed package
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return "".join(ET.tostring(child, encoding="unicode").strip() for child in root)


@cache
def icon(name: str, size: str = "", label: str = "") -> SafeString:
    """Return an icon as SVG; `size` is "small" (14 px), "" (16), "large" (20) or "huge" (28).

    With `label` it is an image of that name, else it is hidden from screen readers.
    Raises `KeyError` for an unknown name or size: a misspelt icon fails the page's test.
    """
    name_it = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return mark_safe(  # noqa: S308 - the drawing comes from the package, the label is escaped
        f'<svg class="icon{SIZES[size]}" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-linecap="round" '
        f'stroke-linejoin="round" focusable="false" {name_it}>{drawing(name)}</svg>'
    )
