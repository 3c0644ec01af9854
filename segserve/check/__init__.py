"""`segserve check`: is this repository a good executor? Static rules here, probes that run it in `probes`.

examine(folder) → Report: every finding of the rules that the executor's manifest and the caller do not ignore
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from segserve import manifest
from segserve.check.probes.rules import RULES as PROBE_RULES
from segserve.check.repository import Repository
from segserve.check.rot import RULES as ROT_RULES
from segserve.check.rules import FAMILIES
from segserve.errors import UsageError, did_you_mean
from segserve.findings import Finding, Rule, Severity

UNKNOWN_IGNORE = Rule(
    "unknown-ignore",
    Severity.WARNING,
    "segserve.toml ignores a rule that does not exist.",
    "Correct its name; docs/rules/README.md lists all.",
)
STATIC: Mapping[str, Rule] = {
    rule.name: rule for rule in (*(rule for family in FAMILIES.values() for rule in family.RULES), UNKNOWN_IGNORE)
}
RULES: Mapping[str, Rule] = {**STATIC, **{rule.name: rule for rule in (*PROBE_RULES, *ROT_RULES)}}
_ORDER = {severity: number for number, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, the worst first; and what was left out because the executor or the caller ignores its rule."""

    findings: tuple[Finding, ...]
    ignored: tuple[Finding, ...] = ()


def examine(folder: Path, *, ignore: Collection[str] = ()) -> Report:
    """Hold the project in `folder` against every static rule. Nothing is built or executed.

    Raises:
        UsageError: `ignore` names a rule that does not exist.
    """
    known_rules(ignore)
    repository = Repository(folder)
    about = manifest.load(repository.folder, repository.root).manifest
    found = [finding for family in FAMILIES.values() for finding in family.find(repository)]
    for name in about.check.ignore:
        if name not in RULES:
            place = repository.find(f"{repository.prefix}{manifest.NAME}", name, behind="ignore")
            found.append(UNKNOWN_IGNORE.at(f"There is no rule '{name}'.", place, did_you_mean(name, RULES)))
    return split(found, {*about.check.ignore, *ignore})


def known_rules(names: Collection[str]) -> None:
    """Refuse names that no rule has.

    Raises:
        UsageError: with the nearest right name.
    """
    for name in names:
        if name not in RULES:
            raise UsageError(f"There is no rule '{name}'.", hint=did_you_mean(name, RULES))


def split(found: Collection[Finding], ignore: Collection[str]) -> Report:
    """A report of findings, each once."""
    ordered = sorted(dict.fromkeys(found), key=lambda one: (_ORDER[one.severity], one.place.path, one.place.line or 0))
    return Report(
        tuple(one for one in ordered if one.rule not in ignore), tuple(one for one in ordered if one.rule in ignore)
    )
