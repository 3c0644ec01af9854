"""Findings as SARIF 2.1.0, which code hosts show beside the lines (https://docs.oasis-open.org/sarif/sarif/v2.1.0/)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from segserve.findings.base import Finding, Rule

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_sarif(findings: Sequence[Finding], rules: Mapping[str, Rule], *, tool: str, version: str) -> str:
    """One run of `tool`. Paths are relative to the repository's root; `rules` describes those that have findings."""
    names = sorted({finding.rule for finding in findings})
    run = {
        "tool": {
            "driver": {"name": tool, "version": version, "rules": [_rule(name, rules.get(name)) for name in names]}
        },
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, names.index(finding.rule)) for finding in findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _rule(name: str, rule: Rule | None) -> dict[str, Any]:
    if rule is None:
        return {"id": name}
    return {
        "id": name,
        "shortDescription": {"text": rule.summary},
        "help": {"text": rule.fix or rule.summary},
        "defaultConfiguration": {"level": str(rule.severity)},
    }


def _result(finding: Finding, index: int) -> dict[str, Any]:
    text = f"{finding.message} {finding.fix}".strip()
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": str(finding.severity),
        "message": {"text": text},
    }
    place = finding.place
    if place.path:
        physical: dict[str, Any] = {"artifactLocation": {"uri": quote(place.path), "uriBaseId": "%SRCROOT%"}}
        if place.line:
            physical["region"] = {"startLine": place.line, **({"startColumn": place.column} if place.column else {})}
        result["locations"] = [{"physicalLocation": physical}]
    return result
