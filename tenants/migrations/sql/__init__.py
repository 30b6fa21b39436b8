"""SQL of the migrations, in files so that it reads as SQL."""

from pathlib import Path


def statements(name: str) -> str:
    """Return the text of one SQL file beside this module."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
