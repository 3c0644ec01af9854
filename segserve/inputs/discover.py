"""What the user typed → the files that it means, in order. Looks at names only, never into files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segserve.errors import did_you_mean
from segserve.findings import Finding
from segserve.inputs.base import Unusable

_ZARR_MARKERS = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_LITTER = frozenset({"Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX"})
_HALF = re.compile(r"[\ud800-\udfff]")  # bytes of a name that are no text, as Python shows them
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Found:
    """`files` are (absolute path, as the user named it) in the order of staging."""

    files: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Search:
    files: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def add(self, given: str) -> None:
        absolute = os.path.abspath(given)  # Path.absolute keeps `..`; symlinks stay as they are
        if not absolute.isascii() and _HALF.search(absolute):
            name = os.fsencode(given).decode("utf-8", "backslashreplace")
            raise Unusable("image-name", f"cannot be listed in a result: '{name}' is not UTF-8", "Rename it.")
        if absolute in self.files:
            self.twice.append(given)
        else:
            self.files[absolute] = given


def discover(paths: Iterable[str | os.PathLike[str]], within: Sequence[str] | None = None) -> Found:
    """Expand files, folders and glob patterns; where links lead out of `within` (resolved folders), nothing is read.

    Arguments keep their order; inside a folder or a pattern the order is natural (`t2` before `t10`). A folder means
    the files directly in it, hidden ones and the litter of file managers left out. What is named twice is read once.
    """
    search = _Search()
    for path in paths:
        given = os.fspath(path)
        try:
            for name in _expand(given, search.notes):
                _refuse_outside(name, within)
                search.add(name)
        except Unusable as problem:
            search.findings.append(problem.finding(given or "''"))
    if search.twice:
        search.notes.append(f"named more than once, read once: {_some(search.twice)}")
    return Found(tuple(search.files.items()), tuple(search.findings), tuple(search.notes))


def _refuse_outside(name: str, within: Sequence[str] | None) -> None:
    if within is not None and not inside(name, within):  # the finding has what was given: this name is none's business
        raise Unusable("image-outside", "leads to files that may not be read here")


def inside(path: str, roots: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether a path, named in full, lies below one of the (resolved) roots when all links are followed."""
    try:
        real = Path(path).resolve()
        return Path(path).is_absolute() and any(real.is_relative_to(root) for root in roots)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is none
        return False


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Is this folder a Zarr group or array?"""
    return any(os.path.exists(os.path.join(path, marker)) for marker in _ZARR_MARKERS)


def _expand(given: str, notes: list[str]) -> Iterator[str]:
    if not given:
        raise Unusable("image-not-found", "is no name of a file", "Leave it out.")
    if not os.path.lexists(given):
        yield from _pattern(given, notes)
    elif os.path.isdir(given) and not is_zarr(given):
        yield from _folder(given, notes)
    else:
        yield given


def _pattern(given: str, notes: list[str]) -> Iterator[str]:
    if not glob.has_magic(given):
        parent = Path(given).parent
        neighbours = _names(parent)
        guess = did_you_mean(Path(given).name, neighbours)
        raise Unusable("image-not-found", "does not exist", guess if guess.startswith("Did") else "")
    found = glob.glob(os.path.expanduser(given), recursive=True)
    matches = sorted(found, key=_order)
    if not matches:
        raise Unusable("image-not-found", "matches no file")
    for match in matches:
        if os.path.isdir(match) and not is_zarr(match):
            yield from _folder(match, notes)
        else:
            yield match


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:  # not there, or not for us to see: nothing to suggest
        return []


def _folder(given: str, notes: list[str]) -> Iterator[str]:
    try:
        with os.scandir(given) as entries:
            listed = sorted(entries, key=lambda entry: _order(entry.name))
    except OSError as error:
        raise Unusable("image-unreadable", f"cannot be listed: {error.strerror}") from error
    visible = [entry for entry in listed if not entry.name.startswith(".") and entry.name not in _LITTER]
    folders = {entry.name for entry in visible if entry.is_dir() and not is_zarr(entry.path)}
    names = [entry.path for entry in visible if entry.name not in folders]
    if not names:
        inside = os.path.join(given, "*", "")
        hint = f"Its subfolders are not searched: give '{inside}'." if folders else ""
        raise Unusable("image-empty-folder", "is a folder without images", hint)
    if folders:
        notes.append(f"subfolders of {given} are not read: {_some(sorted(folders))}")
    yield from names


def natural(path: str) -> list[list[str | int]]:
    """A key that sorts numbers as numbers (`t2` before `t10`), folder by folder."""
    return [_natural(name) for name in path.split("/")]


def _natural(name: str) -> list[str | int]:
    parts: list[str | int] = list(_NUMBER.split(name))  # every second one is a number
    parts[1::2] = map(int, parts[1::2])
    return parts


def _order(name: str) -> tuple[object, str]:
    """Natural order of what stands before the suffix; names that differ in leading zeros alone keep one fixed order."""
    return natural(name.rpartition(".")[0] or name), name


def _some(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
