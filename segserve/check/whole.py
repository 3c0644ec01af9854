"""One check from reference to verdict: the commit, its static rules, and on request the probes."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segserve.check import Report, examine, known_rules
from segserve.check.rules.files import ESCAPING
from segserve.errors import InvalidProject
from segserve.findings import Finding
from segserve.pipeline import Context, Request


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in one commit of an executor. `ignored` are findings of rules that somebody ignores."""

    name: str
    repository: str
    commit: str
    subdir: str
    findings: tuple[Finding, ...]
    ignored: tuple[Finding, ...] = ()

    def as_json(self) -> str:
        """The document of `segserve check --json`."""
        return json.dumps({"format": "segserve-check", "version": 1, **asdict(self)}, indent=2, ensure_ascii=False)


def check(ctx: Context, request: Request, scratch: Path, *, ignore: Collection[str] = ()) -> Checked:
    """Check what `request.ref` names, in a checkout below `scratch`.

    Raises:
        UsageError: `ignore` names a rule that does not exist.
        ExecutorError, BackendError: there is no such commit, or it cannot be fetched.
    """
    known_rules(ignore)
    resolution = ctx.store.resolve(
        request.ref,
        offline=request.offline,
        allow_unreachable=request.allow_unreachable,
        committed=request.committed,
        on_note=ctx.reporter.note,
    )
    pin = resolution.pin
    checkout = scratch / "checkout"
    try:
        ctx.store.checkout(resolution, checkout, submodules=request.submodules, on_note=ctx.reporter.note)
        report = examine(checkout / pin.subdir, ignore=ignore)
    except InvalidProject as refusal:  # the only thing that a checkout refuses
        report = Report((ESCAPING.at(refusal.message),))
    name = replace(request.ref, subdir=pin.subdir).name
    return Checked(name, pin.repo, pin.sha, pin.subdir, report.findings, report.ignored)
