"""What the rules look at: a checked-out repository, read once. Nothing in it is trusted, nothing of it is executed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from segserve import dialects
from segserve.errors import InvalidProject
from segserve.findings import Finding, Place
from segserve.project import Project
from segserve.project.read import load, repository_root

MAX_TEXT_BYTES = 1_000_000  # of one file; what is larger is data
MAX_FILES = 50_000
_TEXT = frozenset(
    (
        *(
            "",
            ".bash",
            ".cff",
            ".cfg",
            ".conf",
            ".csv",
            ".env",
            ".ini",
            ".ipynb",
            ".java",
            ".jl",
            ".json",
            ".lock",
            ".m",
        ),
        *(".md", ".py", ".r", ".rst", ".sh", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml", ".npmrc", ".pypirc"),
        *(".pem", ".key", ".netrc"),
    )
)


class Repository:
    """A folder with an MLProject (`folder`) inside a repository (`root`). Paths in findings are relative to `root`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.root = repository_root(self.folder)
        self._texts: dict[str, str] = {}

    @cached_property
    def files(self) -> dict[str, int]:
        """Path relative to the root (POSIX) → size in bytes, sorted; links count as files of size 0."""
        return dict(sorted(_walk(self.root)))

    @cached_property
    def prefix(self) -> str:
        """The project's folder relative to the root: empty, or with a slash at its end."""
        relative = self.folder.relative_to(self.root).as_posix() if self.folder.is_relative_to(self.root) else "."
        return "" if relative == "." else f"{relative}/"

    @cached_property
    def _loaded(self) -> tuple[Project | None, tuple[Finding, ...]]:
        try:
            project = load(self.folder)
        except InvalidProject as refusal:
            return None, refusal.findings
        return project, project.findings

    @property
    def project(self) -> Project | None:
        """What MLProject says; None when it cannot be read."""
        return self._loaded[0]

    @cached_property
    def is_module(self) -> bool:
        """Whether it is an algorithm module of another dialect, which has no MLProject of its own."""
        return dialects.recognise(self.folder)

    @property
    def project_findings(self) -> tuple[Finding, ...]:
        """What the loader has to say about it, errors and warnings; nothing about a module."""
        return () if self.is_module else tuple(self.moved(finding) for finding in self._loaded[1])

    @property
    def project_file(self) -> str:
        """The MLProject as findings call it."""
        return self.prefix + (self.project.file.name if self.project else "MLProject")

    def moved(self, finding: Finding) -> Finding:
        """A finding whose place is relative to the project's folder, seen from the root."""
        place = replace(finding.place, path=self.shown(finding.place.path or "MLProject"))
        return replace(finding, place=place)

    def shown(self, path: str) -> str:
        """A path relative to the project's folder, seen from the root."""
        return os.path.normpath(self.prefix + path) if self.prefix else path

    def text(self, path: str) -> str:
        """The text of a file; empty for what is no text, too large, a link or not there."""
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def _read(self, path: str) -> str:
        file = self.root / path
        if not 0 < self.files.get(path, 0) <= MAX_TEXT_BYTES or file.is_symlink():
            return ""
        content = file.read_bytes()
        return "" if b"\0" in content[:4096] else content.decode("utf-8", "replace")

    def texts(self) -> Iterator[tuple[str, str]]:
        """(path, text) of every file whose name is that of a text."""
        for path in self.files:
            if PurePosixPath(path).suffix.lower() in _TEXT and (text := self.text(path)):
                yield path, text

    def find(self, path: str, wanted: str, *, behind: str = "") -> Place:
        """Line and column (1-based) of the first `wanted` in a file, after the first `behind`; else only the file."""
        text = self.text(path)
        start = max(text.find(behind), 0) if behind else 0
        word = re.compile(rf"(?<![\w.-]){re.escape(wanted)}") if wanted[:1].isalnum() else re.compile(re.escape(wanted))
        found = word.search(text, start)
        return Place(path) if found is None else point(path, text, found.start())


def point(path: str, text: str, position: int) -> Place:
    """The place of a character of a text."""
    line_start = text.rfind("\n", 0, position) + 1
    return Place(path, text.count("\n", 0, position) + 1, position - line_start + 1)


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    count = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in names:
            count += 1
            if count > MAX_FILES:
                return
            path = Path(folder, name)
            status = path.lstat()
            yield path.relative_to(root).as_posix(), 0 if path.is_symlink() else status.st_size
