"""One check from reference to verdict: the commit, its static rules, and on request the probes."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from segserve import dialects
from segserve.check import Report, examine, known_rules, rot, split
from segserve.check.probes.course import Probed, run_probes
from segserve.check.repository import Repository
from segserve.check.rules import dependencies, mlproject
from segserve.check.rules.files import ESCAPING
from segserve.errors import InvalidProject
from segserve.findings import Finding, Place
from segserve.pipeline import Context, Request

# With one of these nothing can be run at all: there is no project, or no environment to be read.
_PREVENTING = frozenset(
    {rule.name for rule in mlproject.FATAL} | {dependencies.ENVIRONMENT_FILE.name, dependencies.REQUIREMENTS.name}
)


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in one commit of an executor. `ignored` are findings of rules that somebody ignores."""

    name: str
    repository: str
    commit: str
    subdir: str
    findings: tuple[Finding, ...]
    ignored: tuple[Finding, ...] = ()
    probes: tuple[Probed, ...] = ()

    def as_json(self) -> str:
        """The document of `segserve check --json`."""
        return json.dumps({"format": "segserve-check", "version": 1, **asdict(self)}, indent=2, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Probing:
    """What is run: the probes `quick` or `full`, of one entry point or (None) of all, begun within `budget_s`."""

    probes: str = "quick"
    entry: str | None = None
    budget_s: float | None = None


def check(
    ctx: Context,
    request: Request,
    scratch: Path,
    *,
    ignore: Collection[str] = (),
    probing: Probing | None = None,
    anew: bool = False,
) -> Checked:
    """Check what `request.ref` names, in a checkout below `scratch`; with `probing`, run it too.

    `anew` solves the environment without its lock and says what has changed.

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
    probed: list[Probed] = []
    found = [*report.findings, *report.ignored]
    able = not any(finding.rule in _PREVENTING for finding in found)
    if able and (anew or probing is not None):
        project = dialects.load(checkout / pin.subdir)
        path = "pyproject.toml" if project.module else Repository(project.folder).project_file
        found += rot.find(project, request.build, Place(path, 1, 1)) if anew else []
        report = split(found, {*ignore, *project.manifest.check.ignore})
    if able and probing is not None:
        more, probed = run_probes(
            ctx,
            request,
            project,
            scratch,
            path=path,
            probes=probing.probes,
            only=probing.entry,
            budget_s=probing.budget_s,
        )
        report = split([*found, *more], {*ignore, *project.manifest.check.ignore})
    name = replace(request.ref, subdir=pin.subdir).name
    return Checked(name, pin.repo, pin.sha, pin.subdir, report.findings, report.ignored, tuple(probed))
