"""A finding: one thing that a check says about one place; and the rule that it breaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is, from worst to mildest."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a finding applies: a file with line and column (1-based), a JSON path in it, an image."""

    path: str = ""
    line: int | None = None
    column: int | None = None
    json_path: str = ""
    image: str = ""

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.path, self.line, self.column) if part not in ("", None))
        return " ".join(part for part in (where, self.json_path, f"({self.image})" if self.image else "") if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check. `rule` is a stable kebab-case name; `fix` says what to do, in one sentence."""

    rule: str
    severity: Severity
    message: str
    place: Place = Place()
    fix: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: " if str(self.place) else ""
        fix = f" → {self.fix}" if self.fix else ""
        return f"{where}{self.severity}[{self.rule}] {self.message}{fix}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a check looks for: `summary` says what is wrong when it is broken, `fix` what to do about it."""

    name: str
    severity: Severity
    summary: str
    fix: str

    def at(self, message: str, place: Place = Place(), fix: str = "") -> Finding:
        """A finding of this rule."""
        return Finding(self.name, self.severity, message, place, fix or self.fix)


_ORDER = (Severity.NOTE, Severity.WARNING, Severity.ERROR)


def at_least(findings: Iterable[Finding], threshold: Severity) -> list[Finding]:
    """Only the findings that are as bad as `threshold`, or worse."""
    return [finding for finding in findings if _ORDER.index(finding.severity) >= _ORDER.index(threshold)]


def errors_in(findings: Iterable[Finding]) -> list[Finding]:
    """Only the findings of severity `error`."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]
