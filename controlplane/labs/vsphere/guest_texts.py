"""What systemd makes of a unit's `ExecStart=` and of an `EnvironmentFile=`, for the guests that are played here. Pure.

Reads what `provisioners.vsphere.guest_agent` writes, by the rules of systemd.service(5) and systemd.exec(5) and not by
inverting the writer. Raises `ValueError` for what systemd would refuse or we do not play.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
_PLAIN_ESCAPES: Final = "\\\"'$`"
_VARIABLE: Final = re.compile(r"\$\$|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")


def directive(unit: str, name: str) -> str:
    """Return the one value of a directive of a unit file. Raises `ValueError` for none or several."""
    found = [line.partition("=")[2] for line in unit.splitlines() if line.partition("=")[0] == name]
    if len(found) != 1:
        raise ValueError(f"{name} stands {len(found)} times in the unit")
    return found[0]


def argv_of(line: str, environment: Mapping[str, str]) -> list[str]:
    """Return the words that a command line starts, specifiers and variables put in."""
    return [_with_variables(_without_specifiers(word), environment) for word in _words(line)]


def environment_of(text: str) -> dict[str, str]:
    """Return the variables of an environment file. Values in double quotes may go over several lines."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        name, _, _ = text[at:].partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("a line of the environment file sets no variable")
        at += len(name) + 1
        if text[at : at + 1] != '"':
            raise ValueError(f"the value of {name} is not quoted")
        value, at = _quoted(text, at + 1)
        if text[at : at + 1] != "\n":
            raise ValueError(f"something follows the value of {name}")
        found[name], at = value, at + 1
    return found


def _quoted(text: str, at: int) -> tuple[str, int]:
    made: list[str] = []
    while at < len(text):
        character = text[at]
        if character == '"':
            return "".join(made), at + 1
        if character == "\\" and text[at + 1 : at + 2] in tuple(_PLAIN_ESCAPES):
            made.append(text[at + 1])
            at += 2
            continue
        made.append(character)
        at += 1
    raise ValueError("a quote is not closed")


def _words(line: str) -> Iterator[str]:
    at = 0
    while at < len(line):
        if line[at] == " ":
            at += 1
            continue
        word, quote = "", ""
        while at < len(line) and (quote or line[at] != " "):
            character = line[at]
            if character == quote:
                quote = ""
            elif not quote and character in "\"'":
                quote = character
            elif character == "\\":
                piece, at = _escape(line, at + 1)
                word += piece
                continue
            else:
                word += character
            at += 1
        if quote:
            raise ValueError("a quote is not closed")
        yield word


def _escape(line: str, at: int) -> tuple[str, int]:
    kind = line[at : at + 1]
    if kind == "x":
        return chr(int(line[at + 1 : at + 3], 16)), at + 3
    if kind in _ESCAPES:
        return _ESCAPES[kind], at + 1
    if kind and kind in "\\\"'":
        return kind, at + 1
    raise ValueError(f"\\{kind} is no escape")


def _without_specifiers(word: str) -> str:
    if re.search(r"(?<!%)(?:%%)*%(?!%)", word):
        raise ValueError("specifiers are not played")
    return word.replace("%%", "%")


def _with_variables(word: str, environment: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda found: "$" if found[0] == "$$" else environment.get(found["name"], ""), word)
