"""A folder → Manifest and findings. Hostile text ends in a finding, never in a crash."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ValidationError

from segserve.errors import did_you_mean
from segserve.findings import Finding, Place, Severity
from segserve.manifest.places import locate
from segserve.manifest.schema import NONE, Algorithm, ChainAlgorithm, ChainDeclaration, Entry, Manifest, Weights

NAME = "segserve.toml"
MAX_BYTES = 64 * 1024
_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")
_TABLES: Mapping[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Manifest.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
} | {"algorithm": Algorithm}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What could be used of the file, and everything that is wrong with it. `found`: there is a file."""

    manifest: Manifest = NONE
    findings: tuple[Finding, ...] = ()
    found: bool = False


def load(folder: Path, root: Path) -> Loaded:
    """The manifest of the project in `folder`; links that leave the repository `root` are not followed."""
    file = folder / NAME
    if not file.is_file():
        return Loaded()
    if not file.resolve().is_relative_to(root.resolve()):
        message = f"{NAME} is a link that leaves the repository; it is not read."
        return Loaded(findings=(Finding("manifest-outside", Severity.ERROR, message, Place(NAME)),), found=True)
    with file.open("rb") as stream:
        return parse(stream.read(MAX_BYTES + 1))


def parse(content: bytes) -> Loaded:
    """The manifest in a text."""
    if len(content) > MAX_BYTES:
        return _unreadable("manifest-too-large", f"The file has more than {MAX_BYTES:,} bytes.", Place(NAME))
    try:
        text = content.decode("utf-8-sig")
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        return _unreadable("manifest-encoding", f"The file is not UTF-8 (byte {error.start}).", Place(NAME))
    except tomllib.TOMLDecodeError as error:
        return _unreadable("manifest-toml", *_said(error))
    except (RecursionError, ValueError) as error:  # tables nested too deeply, a number of thousands of digits
        return _unreadable("manifest-toml", f"A value cannot be read: {type(error).__name__}.", Place(NAME))
    reader = _Reader(locate(text))
    return Loaded(reader.read(raw), tuple(reader.findings), found=True)


def _said(error: tomllib.TOMLDecodeError) -> tuple[str, Place]:
    text = str(error)
    found = _POSITION.search(text)
    message = f"This is no valid TOML: {_POSITION.sub('', text)}."
    return message, Place(NAME, int(found.group(1)), int(found.group(2))) if found else Place(NAME)


def _unreadable(rule: str, message: str, place: Place) -> Loaded:
    return Loaded(findings=(Finding(rule, Severity.ERROR, message, place),), found=True)


class _Reader:
    def __init__(self, places: Mapping[tuple[str | int, ...], tuple[int, int]]) -> None:
        self._places = places
        self.findings: list[Finding] = []

    def read(self, raw: dict[str, Any]) -> Manifest:
        """What is left when everything wrong is taken out of `raw` (which is changed)."""
        for path, key, model in _unknown(raw):
            where = f" of [{'.'.join(str(part) for part in path)}]" if path else ""
            fix = did_you_mean(key, _names(model))
            self._find(
                "manifest-unknown-key", Severity.WARNING, f"segserve ignores the key '{key}'{where}.", (*path, key), fix
            )
        while True:
            try:
                return Manifest.model_validate(raw)
            except ValidationError as error:
                wrong = {self._report(problem) for problem in error.errors(include_url=False, include_input=False)}
            for path in sorted(wrong, key=_order, reverse=True):
                _remove(raw, path)

    def _report(self, problem: Any) -> tuple[str | int, ...]:
        """Write down one problem; return the path of what has to go."""
        path = _whole(problem["loc"])
        name = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        said = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        message = f"{name} is missing." if problem["type"] == "missing" else f"{name}: {said}."
        self._find("manifest-value", Severity.ERROR, message, problem["loc"], "")
        return path

    def _find(self, rule: str, severity: Severity, message: str, path: tuple[str | int, ...], fix: str) -> None:
        finding = Finding(rule, severity, message, self._place(path), fix)
        if finding not in self.findings:
            self.findings.append(finding)

    def _place(self, path: tuple[str | int, ...]) -> Place:
        for length in range(len(path), 0, -1):
            if path[:length] in self._places:
                return Place(NAME, *self._places[path[:length]])
        return Place(NAME)


def _unknown(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str, type[BaseModel]]]:
    """(path of the table, key, model of the table) of every key that no model knows."""
    tables: list[tuple[tuple[str | int, ...], Any, type[BaseModel]]] = [((), raw, Manifest)]
    tables += [((name,), raw.get(name), model) for name, model in _TABLES.items()]
    weights, entries = raw.get("weights"), raw.get("entry_points")
    tables += [(("weights", i), one, Weights) for i, one in enumerate(weights if isinstance(weights, list) else ())]
    tables += [(("entry_points", n), e, Entry) for n, e in (entries if isinstance(entries, dict) else {}).items()]
    for number, chain in enumerate(_list(raw.get("pipelines"))):
        tables.append((("pipelines", number), chain, ChainDeclaration))
        algorithms = _list(chain.get("algorithms")) if isinstance(chain, dict) else []
        tables += [(("pipelines", number, "algorithms", i), one, ChainAlgorithm) for i, one in enumerate(algorithms)]
    for path, table, model in tables:
        known = _names(model)
        yield from ((path, key, model) for key in (table if isinstance(table, dict) else ()) if key not in known)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names |= {str(choice) for choice in field.validation_alias.choices}
    return names


def _whole(problem_path: tuple[Any, ...]) -> tuple[str | int, ...]:
    """What has to go for one wrong value: of weights and pipelines the whole table, which says nothing without it."""
    path = tuple(part for part in problem_path if part != "[key]")  # pydantic's word for a wrong key of a mapping
    return path[:2] if path[:1] in (("weights",), ("pipelines",)) else path


def _order(path: tuple[str | int, ...]) -> list[str]:
    """Later items of a list sort higher, so that removing from the top down moves nothing that is still to go."""
    return [f"{part:09d}" if isinstance(part, int) else part for part in path]


def _remove(raw: dict[str, Any], path: tuple[str | int, ...]) -> None:
    """Take out what stands at `path`, or the nearest thing above it that is there (`channels = 0` is no list)."""
    inside: Any = raw
    for depth, part in enumerate(path, start=1):
        if not _has(inside, part):
            return
        if depth == len(path) or not isinstance(inside[part], (dict, list)):
            del inside[part]
            return
        inside = inside[part]


def _has(inside: Any, part: str | int) -> bool:
    return part in inside if isinstance(inside, dict) else isinstance(part, int) and part < len(inside)
