"""segserve.toml: what its reader says, and the rules that it ignores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from segserve import manifest
from segserve.check.repository import Repository
from segserve.findings import Finding, Rule, Severity

_E, _W = Severity.ERROR, Severity.WARNING

RULES = (
    Rule("manifest-outside", _E, "segserve.toml is a link that leaves the repository.", "Put the file itself there."),
    Rule(
        "manifest-too-large", _E, "segserve.toml is larger than anybody writes.", "Keep to what docs/manifest.md lists."
    ),
    Rule("manifest-encoding", _E, "segserve.toml is not UTF-8.", "Save it as UTF-8."),
    Rule("manifest-toml", _E, "segserve.toml is no valid TOML.", "Correct the line."),
    Rule("manifest-unknown-key", _W, "segserve.toml has a key that is ignored.", "Correct its spelling, or remove it."),
    Rule("manifest-value", _E, "A value in segserve.toml is not what it should be.", "Correct it as the message says."),
)
_BY_NAME = {rule.name: rule for rule in RULES}


def find(repository: Repository) -> Iterator[Finding]:
    """What the reader says. Rules that do not exist but are ignored, `check` finds."""
    for finding in manifest.load(repository.folder, repository.root).findings:
        rule = _BY_NAME[finding.rule]
        moved = repository.moved(finding)
        yield replace(moved, severity=rule.severity, fix=finding.fix or rule.fix)
