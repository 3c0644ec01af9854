"""Findings for GitHub Actions: annotations beside the lines, and a table for the step's summary.

GitHub shows at most ten annotations of each kind per step and drops the others without a word
(https://docs.github.com/actions/reference/workflow-commands-for-github-actions), so that the rest has to stand in the
summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from segserve.findings.base import Finding, Severity

PER_KIND = 10
_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def as_annotations(findings: Sequence[Finding]) -> str:
    """Workflow commands, one line each, for the ten first findings of each severity."""
    seen: Counter[Severity] = Counter()
    lines = []
    for finding in findings:
        seen[finding.severity] += 1
        if seen[finding.severity] <= PER_KIND:
            lines.append(_annotation(finding))
    return "\n".join(lines)


def as_summary(findings: Sequence[Finding], title: str) -> str:
    """Markdown with every finding, for `$GITHUB_STEP_SUMMARY`."""
    if not findings:
        return f"### {_cell(title)}\n\nNo findings.\n"
    rows = "\n".join(
        f"| {one.severity} | {_cell(one.rule)} | {_cell(str(one.place))} | {_cell(one.message)} | {_cell(one.fix)} |"
        for one in findings
    )
    head = "| severity | rule | place | what | what to do |\n|---|---|---|---|---|"
    return f"### {_cell(title)}\n\n{head}\n{rows}\n"


def _annotation(finding: Finding) -> str:
    place = finding.place
    parts = {"file": place.path, "line": place.line, "col": place.column, "title": finding.rule}
    properties = ",".join(f"{name}={_property(str(value))}" for name, value in parts.items() if value not in ("", None))
    return f"::{_COMMANDS[finding.severity]} {properties}::{_data(f'{finding.message} {finding.fix}'.strip())}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    # What an executor brings along is text in the table: no markup, no further cells.
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"&#{ord(sign)};")
    return " ".join(text.split())
