"""Findings as text, JSON and JUnit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from xml.etree import ElementTree as ET

from segserve.findings.base import Finding, Severity, at_least


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding."""
    return "\n".join(str(finding) for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """A JSON array of objects with the fields of `Finding`."""
    return json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False)


def as_junit(findings: Sequence[Finding], suite: str, *, threshold: Severity = Severity.ERROR) -> str:
    """A JUnit report: one failed case per finding at or above `threshold`, one passed case with a text for others."""
    failed = at_least(findings, threshold)
    root = ET.Element("testsuite", name=suite, tests=str(max(len(findings), 1)), failures=str(len(failed)))
    for finding in findings:
        case = ET.SubElement(root, "testcase", classname=suite, name=f"{finding.rule} {finding.place}".strip())
        child = "failure" if finding in failed else "system-out"
        ET.SubElement(case, child).text = str(finding)
    if not findings:
        ET.SubElement(root, "testcase", classname=suite, name="no findings")
    return ET.tostring(root, encoding="unicode", xml_declaration=True)
