"""A finding: one thing that a check says about one place. Renderers turn a list of them into text, JSON, JUnit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from xml.etree import ElementTree as ET


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


def errors_in(findings: Iterable[Finding]) -> list[Finding]:
    """Only the findings of severity `error`."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding."""
    return "\n".join(str(finding) for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """A JSON array of objects with the fields of `Finding`."""
    return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False)


def as_junit(findings: Sequence[Finding], suite: str) -> str:
    """A JUnit report with one failed case per finding (`error`) or one passed case that carries the text (others)."""
    failures = len(errors_in(findings))
    root = ET.Element("testsuite", name=suite, tests=str(max(len(findings), 1)), failures=str(failures))
    for finding in findings:
        case = ET.SubElement(root, "testcase", classname=suite, name=f"{finding.rule} {finding.place}".strip())
        child = "failure" if finding.severity is Severity.ERROR else "system-out"
        ET.SubElement(case, child).text = str(finding)
    if not findings:
        ET.SubElement(root, "testcase", classname=suite, name="no findings")
    return ET.tostring(root, encoding="unicode", xml_declaration=True)
