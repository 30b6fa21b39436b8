"""README's pictures: they are there, small, and say in words what they show."""

from __future__ import annotations

import re

from tests.template import ROOT

SHOWN = re.compile(r"!\[([^\]]*)\]\((docs/pictures/[^)]+)\)")
MOST_BYTES = 200_000


def test_readme_shows_four_small_pictures_with_words_for_who_cannot_see_them():
    found = {path: words for words, path in SHOWN.findall((ROOT / "README.md").read_text())}

    assert sorted(found) == [f"docs/pictures/{name}.png" for name in ("building", "decide", "estate", "new")]
    assert all(len(words) > 40 for words in found.values())
    for path in found:
        data = (ROOT / path).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) < MOST_BYTES


def test_no_other_picture_lies_there_unused():
    used = {path for _words, path in SHOWN.findall((ROOT / "README.md").read_text())}

    assert {str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "pictures").iterdir()} == used
