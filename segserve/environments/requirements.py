"""What a pip part asks for: requirements, constraints, local paths, indexes; whether the kit is among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from segserve import kit, redact
from segserve.environments.base import hash_file, hash_tree
from segserve.environments.indexes import Indexes

_METADATA = ("pyproject.toml", "setup.cfg", "setup.py", "requirements.txt")
_CALLS_ITSELF_KIT = re.compile(r"^\s*name\s*=\s*[\"']?segserve[-_.]+sdk[\"']?\s*,?\s*$", re.MULTILINE | re.IGNORECASE)
_KIT_LINE = re.compile(r"segserve[-_.]+sdk(?![\w.-]*\w)", re.IGNORECASE)
_KIT_FILE = re.compile(r"segserve[-_.]+sdk-\d", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LocalPath:
    """A project folder, wheel or archive inside the checkout. `suffix` is extras and marker: `[gpu] ; marker`."""

    path: Path
    extras: str = ""
    marker: str = ""

    def is_kit(self) -> bool:
        """Whether it is `segserve_sdk` itself: an archive by its name, a source tree by what it calls itself."""
        if self.path.is_dir():
            return any(_CALLS_ITSELF_KIT.search(text) for text in self._metadata())
        return _KIT_FILE.match(self.path.name) is not None

    def mentions_kit(self) -> bool:
        """Whether it may depend on `segserve_sdk`, as far as its metadata says."""
        return not self.is_kit() and any(kit.MENTION.search(text) for text in self._metadata())

    def _metadata(self) -> list[str]:
        files = [self.path / name for name in _METADATA] if self.path.is_dir() else []
        return [file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()]

    def identity(self) -> str:
        """A hash of what it holds."""
        content = hash_tree(self.path) if self.path.is_dir() else f"{self.path.name}:{hash_file(self.path)}"
        return f"{content}{self.extras}{self.marker}"


@dataclass(frozen=True, slots=True)
class Requirements:
    """Everything that a pip part reads. `lines` and `constraints` may hold secrets: record `shown()` only.

    `lines` are requirements without options and local paths, git revisions resolved where the remote answered;
    `arguments` are for `uv pip install`; `revisions` maps redacted `url@revision` to 40 hex.
    """

    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    local: tuple[LocalPath, ...] = ()
    indexes: Indexes = field(default_factory=Indexes)
    arguments: tuple[str, ...] = ()
    revisions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """For the key: JSON, no secrets, no paths of this machine (indexes: see `HostSettings.identity`)."""
        return {
            **({"kit": kit.digest()} if self.uses_kit and self.takes_our_kit else {}),
            "lines": [redact.text(line) for line in self.lines],
            "constraints": [redact.text(line) for line in self.constraints],
            "local": [path.identity() for path in self.local],
            "arguments": list(self.arguments),
        }

    @property
    def uses_kit(self) -> bool:
        """Whether `segserve_sdk` is asked for by name: here, or by a local package that is built."""
        return any(_KIT_LINE.match(line) for line in self.lines) or any(path.mentions_kit() for path in self.local)

    @property
    def takes_our_kit(self) -> bool:
        """Whether the kit that comes with segserve may answer for that name: nobody says where to take it from."""
        brought = any(path.is_kit() for path in self.local)
        named = (line for line in (*self.lines, *self.constraints) if _KIT_LINE.match(line))
        return not brought and all(_fits_kit(line) for line in named)

    def shown(self) -> tuple[str, ...]:
        """The requirements for people and records, redacted."""
        return tuple(redact.text(line) for line in self.lines) + tuple(f"./{path.path.name}" for path in self.local)


def _fits_kit(line: str) -> bool:
    """Whether a requirement of the kit names no place, and a range of versions in which ours lies."""
    try:
        required = Requirement(line.split(" --", maxsplit=1)[0])
    except InvalidRequirement:
        return False
    return required.url is None and required.specifier.contains(kit.version(), prereleases=True)
