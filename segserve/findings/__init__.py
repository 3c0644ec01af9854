"""Findings of checks, and their renderers: text, JSON, JUnit, SARIF, GitHub annotations."""

from segserve.findings.base import Finding, Place, Rule, Severity, at_least, errors_in
from segserve.findings.github import as_annotations, as_summary
from segserve.findings.render import as_json, as_junit, as_text
from segserve.findings.sarif import as_sarif

__all__ = [
    "Finding",
    "Place",
    "Rule",
    "Severity",
    "as_annotations",
    "as_json",
    "as_junit",
    "as_sarif",
    "as_summary",
    "as_text",
    "at_least",
    "errors_in",
]
