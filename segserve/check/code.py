"""The Python files that the entry points reach: parsed, never executed."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from segserve.check import commands
from segserve.check.repository import Repository
from segserve.findings import Place

MAX_MODULES = 1_000


@dataclass(frozen=True, slots=True)
class Module:
    """One parsed file: `path` from the repository's root, its text, its syntax tree (None: it does not parse)."""

    path: str
    text: str
    tree: ast.Module | None
    error: SyntaxError | None = None

    def place(self, node: ast.AST) -> Place:
        """Line and column of a node."""
        return Place(self.path, getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1)


@dataclass(frozen=True, slots=True)
class Reached:
    """What the entry points run.

    `modules`: their scripts and what these import from the repository. `shell`: scripts that are no Python. `complete`:
    every entry point runs something that was found.
    """

    modules: tuple[Module, ...]
    shell: tuple[str, ...]
    complete: bool


def reach(repository: Repository) -> Reached:
    """Follow the commands and the imports."""
    project = repository.project
    entries = project.entry_points.values() if project else ()
    start = [commands.sources(repository, entry.command) for entry in entries]
    shell = [path for paths in start for path in paths if not path.endswith(".py")]
    python = [path for paths in start for path in paths if path.endswith(".py")]
    for path in shell:
        python += [found for found in commands.sources(repository, repository.text(path)) if found.endswith(".py")]
    known: dict[str, Module] = {}
    waiting = list(dict.fromkeys(python))
    while waiting and len(known) < MAX_MODULES:
        path = waiting.pop()
        if path not in known:
            known[path] = _parsed(path, repository.text(path))
            waiting += _imported(known[path], repository)
    return Reached(tuple(known.values()), tuple(dict.fromkeys(shell)), bool(start) and all(start))


def _parsed(path: str, text: str) -> Module:
    try:
        with warnings.catch_warnings():  # "\d" in somebody's string is no matter of ours
            warnings.simplefilter("ignore")
            return Module(path, text, ast.parse(text))
    except SyntaxError as error:
        return Module(path, text, None, error)
    except (ValueError, RecursionError, MemoryError):
        return Module(path, text, None)


def _imported(module: Module, repository: Repository) -> Iterator[str]:
    here = _folder(module.path)
    anywhere = tuple(dict.fromkeys((here, repository.prefix, "")))
    for node in _statements(module.tree) if module.tree else ():
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(alias.name, anywhere, repository)
        elif isinstance(node, ast.ImportFrom):
            base = here
            for _ in range(node.level - 1):
                base = _folder(base.rstrip("/"))
            name = node.module or ""
            for inner in (name, *(f"{name}.{alias.name}" for alias in node.names)):
                yield from _files(inner.strip("."), (base,) if node.level else anywhere, repository)


def _folder(path: str) -> str:
    """The folder of a path: empty, or with a slash at its end."""
    return path[: path.rfind("/") + 1]


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Every statement, however deep; a walk through all expressions would take ten times as long."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, part, None)
            if isinstance(inner, list):
                waiting += inner
        if isinstance(node, ast.stmt):
            yield node


def _files(name: str, folders: tuple[str, ...], repository: Repository) -> Iterator[str]:
    parts = name.split(".") if name else []
    for folder in folders:
        path = folder
        for part in parts:  # a package's __init__ runs too
            path += part
            if f"{path}.py" in repository.files:
                yield f"{path}.py"
            path += "/"
            if f"{path}__init__.py" in repository.files:
                yield f"{path}__init__.py"
