"""Where the keys of a TOML text stand. `tomllib` reads values, but keeps no positions."""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_KEY = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"(?P<open>\[\[?)[ \t]*(?P<key>{_KEY})[ \t]*\]\]?")
_ASSIGNMENT = re.compile(rf"(?P<key>{_KEY})[ \t]*=")
# What a value is made of; strings and comments hide brackets and ends of lines.
_VALUE = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|'
    r"'''.*?'{3,5}|"
    r'"(?:\\.|[^"\\\n])*"|'
    r"'[^'\n]*'|#[^\n]*|[\[\]{}\n]|[^\"'#\[\]{}\n]+",
    re.DOTALL,
)


def locate(text: str) -> dict[Path, tuple[int, int]]:
    """Path of every key and table → (line, column), both from 1. `text` is TOML that `tomllib` accepts.

    Keys within `{…}` and items of `[…]` have no entry of their own.
    """
    places: dict[Path, tuple[int, int]] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    position = 0
    while position < len(text):
        start = position
        header, assignment = _HEADER.match(text, position), _ASSIGNMENT.match(text, position)
        if header:
            table = _table(_parts(header["key"]), counts, repeated=header["open"] == "[[")
            places.setdefault(table, _point(text, start))
            position = header.end()
        elif assignment:
            parts = _parts(assignment["key"])
            for length in range(1, len(parts) + 1):
                places.setdefault(table + parts[:length], _point(text, start))
            position = _end_of_value(text, assignment.end())
        else:  # blank, comment, end of line
            comment = re.compile(r"#[^\n]*|.", re.DOTALL).match(text, position)
            position = comment.end() if comment else len(text)
    return places


def _table(parts: Path, counts: dict[Path, int], *, repeated: bool) -> Path:
    """The path of a header's table: `[[weights]]` is one more item, `[weights.more]` belongs to the latest one."""
    path: Path = ()
    for part in parts[:-1]:
        path += (part,)
        if path in counts:
            path += (counts[path] - 1,)
    path += parts[-1:]
    if repeated:
        counts[path] = counts.get(path, 0) + 1
    return (*path, counts[path] - 1) if path in counts else path


def _parts(key: str) -> Path:
    return tuple(
        next(iter(tomllib.loads(f"{part} = 0"))) if part[0] in "\"'" else part for part in re.findall(_PART, key)
    )


def _end_of_value(text: str, position: int) -> int:
    depth = 0
    for token in _VALUE.finditer(text, position):
        word = token.group()
        if word in ("[", "{"):
            depth += 1
        elif word in ("]", "}"):
            depth -= 1
        elif word == "\n" and depth <= 0:
            return token.end()
    return len(text)


def _point(text: str, position: int) -> tuple[int, int]:
    before = text.rfind("\n", 0, position) + 1
    return text.count("\n", 0, position) + 1, position - before + 1
