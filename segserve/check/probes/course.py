"""Which probe runs when, and what each of them found."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segserve import comparison, manifest
from segserve.check.probes import judge, look_on, pictures, rules
from segserve.errors import (
    EnvironmentBuildFailed,
    ExecutorError,
    OutputInvalid,
    OutputMissing,
    RunCancelled,
    RunError,
    SegserveError,
)
from segserve.findings import Finding, Place
from segserve.format import Document
from segserve.manifest import Manifest
from segserve.model import outcome_from_json
from segserve.pipeline import Context, Request, Result, run
from segserve.project import EntryPoint, Project

# The first four have to succeed, the others give numbers and warnings.
QUICK = ("one", "sizes", "16-bit", "colour", "blank", "upside-down")
PROBES: Mapping[str, Sequence[str]] = {"quick": QUICK, "full": (*QUICK, "repeat", "many")}
# A module that aligns images can do nothing with one, and nothing sensible with images of different sizes.
ALIGNING: Mapping[str, Sequence[str]] = {"Image2Alignment": ("pair", "pair-16-bit")}
BUDGET_SECONDS = {"quick": 600.0, "full": 3600.0}
_FORGIVING = frozenset({"blank", "upside-down"})


@dataclass(frozen=True, slots=True)
class Probed:
    """One run: seconds of the executor, its greatest memory (bytes), objects per image; `state` as of a job."""

    entry: str
    probe: str
    state: str
    seconds: float = 0.0
    memory_bytes: int = 0
    objects: tuple[int, ...] = ()


@dataclass
class Course:
    """The probes of one executor, in order; what they find is collected."""

    ctx: Context
    request: Request
    scratch: Path
    place: Place
    about: Manifest
    deadline: float
    findings: list[Finding] = field(default_factory=list)
    probed: list[Probed] = field(default_factory=list)
    results: dict[str, Result] = field(default_factory=dict)  # of the entry point that is being probed
    built: bool = True

    def entry(self, entry: EntryPoint, names: Sequence[str]) -> None:
        """All probes of one entry point."""
        self.results.clear()
        for name in names:
            if not self.built:
                return
            if time.monotonic() > self.deadline:
                self._find(rules.SKIPPED.at(f"{entry.name}: no time was left for {name}.", self.place))
                continue
            self.ctx.reporter.phase(f"Probe {entry.name}/{name}")
            result = self._run(entry.name, name)
            if result is not None:
                self.results[name] = result
                self._judge(entry.name, name, result)
            elif name == names[0]:
                return  # what fails on the plainest image fails on all, for the same reason

    def info(self) -> None:
        """The entry point `info`, which takes no images."""
        self.ctx.reporter.phase("Probe info")
        result = self._run("info", "info")
        if result is None:
            return
        found = result.folder / "artifacts" / "output.json"
        try:
            document = json.loads(found.read_text(encoding="utf-8"))
            missing = [key for key in ("name", "git_url", "git_hash", "type") if key not in document]
        except (OSError, ValueError, TypeError):
            missing = ["output.json"]
        if missing:
            self._find(rules.INFO.at(f"info lacks {', '.join(missing)}.", self.place))

    def _run(self, entry: str, name: str) -> Result | None:
        folder = self.scratch / "runs" / f"{entry}-{name}".replace("/", "_")
        images = folder / "images"
        if name != "info":
            pictures.write("one" if name == "repeat" else name, images)
        else:
            folder.mkdir(parents=True)
        notes, canary = folder / "witness", secrets.token_hex(12)
        request = replace(
            self.request,
            ref=replace(self.request.ref, entry=entry),
            images=(str(images),) if name != "info" else (),
            output=folder / "result",
            experiment="segserve check",
            overlays=0,
            resources=replace(self.request.resources, timeout_s=max(30.0, self.deadline - time.monotonic())),
            variables=look_on.variables(notes, canary),
        )
        lines: list[str] = []
        ctx = replace(self.ctx, reporter=_Listening(self.ctx, lines.append))
        try:
            done = run(ctx, request)
        except RunCancelled:
            raise
        except SegserveError as failure:
            self._failed(entry, name, failure)
            done = None
        self._look(name, entry, "\n".join(lines), canary, notes)
        if not isinstance(done, Result):
            return None
        self._measure(entry, name, done)
        return done

    def _failed(self, entry: str, name: str, failure: SegserveError) -> None:
        self.probed.append(Probed(entry, name, "failed"))
        said = f"{entry} on {name}: {failure.message}"
        if name in _FORGIVING and isinstance(failure, RunError | OutputMissing | OutputInvalid):
            rule = rules.BLANK if name == "blank" else rules.UPSIDE_DOWN
        elif isinstance(failure, EnvironmentBuildFailed):
            self.built, rule, said = False, rules.BUILD_FAILED, failure.message
            said += f"\n{failure.quote}" if failure.quote else ""
        elif isinstance(failure, OutputMissing):
            rule = rules.OUTPUT_MISSING
        elif isinstance(failure, OutputInvalid):
            wrong = {finding.rule for finding in failure.findings}
            rule = rules.WRONG_NUMBER if "image-count-mismatch" in wrong else rules.OUTPUT_INVALID
        elif isinstance(failure, RunError | ExecutorError):
            rule = rules.PROBE_FAILED
        else:
            raise failure  # the machine, the network, our own request: no verdict about the executor
        self._find(rule.at(said, self.place))

    def _measure(self, entry: str, name: str, result: Result) -> None:
        outcome = outcome_from_json(self.ctx.home.job(result.job_id).attempt(1).outcome.read_text(encoding="utf-8"))
        seconds = round(outcome.ended - outcome.started, 2)
        self.probed.append(Probed(entry, name, "succeeded", seconds, outcome.max_rss_bytes, result.counts))
        odd = [finding for finding in result.findings if finding.rule != "suspicious-emptiness"]
        if odd:
            self._find(rules.ODD_OBJECTS.at(f"{entry} on {name}: {len(odd)} finding(s), first: {odd[0]}", self.place))

    def _look(self, name: str, entry: str, log: str, canary: str, notes: Path) -> None:
        if look_on.printed(log, canary):
            self._find(rules.SECRET.at(f"The log of {entry} shows the environment.", self.place))
        seen = look_on.read(notes, self.ctx.home, own=[self.scratch])
        if seen.written:
            shown = ", ".join(seen.written[:5]) + ("…" if len(seen.written) > 5 else "")
            self._find(rules.OUTSIDE.at(f"{entry} writes {shown}", self.place))
        network = self.about.run.network
        if seen.called and (network == "never" or (network == "first-run" and self.results)):
            called = ", ".join(seen.called[:5])
            self._find(rules.CLAIM.at(f'network = "{network}", but {entry} calls {called}.', self.place))

    def _judge(self, entry: str, name: str, result: Result) -> None:
        document, found = result.document, list[Finding]()
        if document is None:
            return
        upright = self._document("one")
        if name in ("one", "sizes", "many"):
            found += judge.order(document, pictures.SETS[name])
        if name == "blank":
            found += judge.blank(document)
        if name == "upside-down" and upright is not None:
            found += judge.upside_down(upright, document, pictures.SETS["one"][0].shape[0])
        if name == "repeat" and "one" in self.results:
            found += self._repeated(result)
        if name == "many":
            memory = {one.probe: one.memory_bytes for one in self.probed if one.entry == entry}
            found += judge.growth(memory.get("one", 0), memory[name], len(pictures.SETS[name]))
        for finding in found:
            self._find(replace(finding, message=f"{entry} on {name}: {finding.message}", place=self.place))

    def _document(self, name: str) -> Document | None:
        return self.results[name].document if name in self.results else None

    def _repeated(self, again: Result) -> list[Finding]:
        drift = comparison.drift(again.folder, self.results["one"].folder).largest
        if drift == 0 or self.about.run.deterministic is False:
            return []
        if self.about.run.deterministic:
            return [rules.CLAIM.at(f"deterministic = true, but the second run differs: drift {drift:.4g}.")]
        return [rules.REPEAT.at(f"drift {drift:.4g} between two runs.")]

    def _find(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)


class _Listening:
    """Hands everything on and keeps the lines of the executor's log."""

    def __init__(self, ctx: Context, keep: Callable[[str], None]) -> None:
        self._to, self._keep = ctx.reporter, keep

    def phase(self, text: str) -> None:
        """Steps of a single run are no news here."""

    def note(self, text: str) -> None:
        """Nor are its notes."""

    def warn(self, text: str) -> None:
        """Nor are its warnings: the static rules say the same, with a place."""

    def progress(self, done: int, total: int, what: str) -> None:
        """Nor is its progress."""

    def line(self, text: str) -> None:
        """Kept and handed on."""
        self._keep(text)
        self._to.line(text)


def run_probes(
    ctx: Context,
    request: Request,
    project: Project,
    scratch: Path,
    *,
    path: str,
    probes: str = "quick",
    only: str | None = None,
    budget_s: float | None = None,
) -> tuple[list[Finding], list[Probed]]:
    """Run the probes `quick` or `full` on every entry point that takes images, or on `only` one.

    `path` is the file that findings name: MLProject, or pyproject.toml of a module. After `budget_s` seconds no further
    probe begins.

    Raises:
        SegserveError: what is no fault of the executor: no GPU, no network, a full disk.
    """
    seconds = BUDGET_SECONDS[probes] if budget_s is None else budget_s
    about = manifest.load(project.folder, project.folder).manifest
    course = Course(ctx, request, scratch, Place(path, 1, 1), about, time.monotonic() + seconds)
    names = ALIGNING.get(project.module.get("algorithm_type", ""), PROBES[probes])
    for entry in project.entry_points.values():
        if entry.problems or (only is not None and entry.name != only):
            continue
        if entry.name == "info":
            course.info()
        elif entry.images_parameter:
            lacking = [p.name for p in entry.parameters.values() if p.required and p.name != entry.images_parameter]
            if lacking:
                message = f"{entry.name} needs values for {', '.join(lacking)}, which nobody knows here."
                course.findings.append(rules.SKIPPED.at(message, course.place, "Give them defaults."))
            else:
                course.entry(entry, names)
    return course.findings, course.probed
