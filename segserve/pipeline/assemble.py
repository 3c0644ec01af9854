"""The folder of a result, made beside its place: from polygons that are held against the images, or from any files."""

from __future__ import annotations

import shlex
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import segserve
from segserve import collect, conversion, inputs, report, tracking
from segserve.errors import NotFound, OutputMissing
from segserve.exporters import export_all
from segserve.findings import Finding
from segserve.format import Document
from segserve.layout import JobDir
from segserve.model import Job, Outcome, StagedImage
from segserve.pipeline.context import Context, Hold
from segserve.pipeline.facts import Facts
from segserve.project import POLYGONS


@dataclass(frozen=True, slots=True)
class Assembled:
    """What stands in the folder. `counts`: objects per image; `warnings`: those of the facts, and of collecting."""

    warnings: tuple[str, ...]
    images: tuple[StagedImage, ...] = ()
    document: Document | None = None
    findings: tuple[Finding, ...] = ()
    counts: tuple[int, ...] = ()


def assemble(ctx: Context, job: Job, hold: Hold, facts: Facts, outcome: Outcome) -> Assembled:
    """Write everything that the result has, lock file included, into the attempt's assembly folder.

    Raises:
        OutputError: what the executor left is no valid result.
    """
    folder, assembly = hold.folder, hold.folder.assembly(hold.fence)
    project = hold.attempt.checkout / job.pin.subdir
    artifacts = _artifacts(ctx, folder, facts)
    # Files are kept as they were logged; only polygons are held against the images.
    polygons = job.images_parameter and job.options.get("produces", POLYGONS) == POLYGONS
    images = inputs.read_map(folder.inputs_map) if polygons else ()
    shutil.rmtree(assembly, ignore_errors=True)
    assembly.mkdir()
    if images:
        output, note = collect.find_output(artifacts, project)
        known = replace(facts, warnings=(*facts.warnings, *([note] if note else [])))
        assembled = _from_polygons(job, hold, known, outcome, images, output)
    else:
        assembled = Assembled((*facts.warnings, *_copy_artifacts(artifacts, project, assembly / "artifacts")))
    shutil.copyfile(folder.lockfile, assembly / "segserve.lock")
    return assembled


def _from_polygons(
    job: Job, hold: Hold, facts: Facts, outcome: Outcome, images: tuple[StagedImage, ...], output: Path
) -> Assembled:
    folder, assembly = hold.folder, hold.folder.assembly(hold.fence)
    # In files that people pass on, an image is called by its name below the folder that all have in common.
    named = tuple(replace(image, source=name) for image, name in zip(images, inputs.short_names(images), strict=True))
    collected = collect.collect(output, named)
    written = report.write(
        assembly,
        collected,
        named,
        folder.inputs,
        _report_facts(job, facts, outcome),
        overlays=job.options.get("overlays", 24),
        originals=[image.source for image in images],
    )
    findings = written.findings
    if job.options.get("exports"):
        # From what was just written, by the same way as `segserve export`: one home for how it is read.
        loaded = conversion.load(assembly, staged=folder.inputs_map)
        exported = export_all(loaded.results, job.options["exports"], assembly / conversion.EXPORTS)
        findings = (*findings, *exported.findings)
    document = collected.document if isinstance(collected.document, Document) else None
    return Assembled(facts.warnings, images, document, findings, written.counts)


def _artifacts(ctx: Context, folder: JobDir, facts: Facts) -> Path | None:
    """What the executor logged, on this disk: where it lies, or downloaded from somebody's tracking server."""
    tracker = tracking.open_tracker(ctx.home, facts.tracking_uri)
    local = tracker.local_artifacts(facts.run_id)
    if local is not None:
        return local
    try:
        return tracker.download(facts.run_id, "", folder.path / "artifacts")
    except NotFound:  # nothing was logged
        return None


def _copy_artifacts(artifacts: Path | None, project: Path, target: Path) -> tuple[str, ...]:
    """What an entry point without images logged, as it is, but for links; returns notes for people."""
    target.mkdir()
    if artifacts is not None and artifacts.is_dir():
        shutil.copytree(artifacts, target, ignore=_links, dirs_exist_ok=True)
    if (target / collect.NAME).exists():
        return ()
    try:
        left, note = collect.find_output(None, project)
    except OutputMissing:  # training logs models and metrics, not polygons
        return ()
    shutil.copyfile(left, target / collect.NAME)
    return (note,)


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_symlink()]


def _report_facts(job: Job, facts: Facts, outcome: Outcome) -> Mapping[str, Any]:
    """What the report says about how the result was made."""
    return {
        **facts.about,
        "executor": job.executor,
        "repository": job.pin.repo,
        "commit": job.pin.sha,
        "subdir": job.pin.subdir,
        "entry": job.entry,
        "command": _command(job),
        "parameters": dict(job.parameters),
        "environment": {"kind": job.environment.kind, "source": job.environment.source, "key": job.environment.key},
        "machine": {
            "host": socket.gethostname(),
            "memory": f"{outcome.max_rss_bytes / 1e6:.0f} MB" if outcome.max_rss_bytes else "–",
            "cpu": f"{outcome.cpu_seconds:.1f} s",
        },
        "job": job.id,
        "created": job.created,
        "mlflow_url": facts.run_url,
        "inputs_digest": facts.inputs_digest,
        "seconds": dict(facts.seconds),
        "warnings": list(facts.warnings),
        "version": segserve.__version__,
    }


def _command(job: Job) -> str:
    """What to type to run the same commit again."""
    fragment = f"{job.pin.subdir}:{job.entry}" if job.pin.subdir else job.entry
    words = ["segserve", "run", f"{job.pin.repo}@{job.pin.sha}#{fragment}"]
    words += ["IMAGES"] if job.images_parameter else []
    words += [word for name, value in job.options.get("selection", {}).items() for word in (f"--{name}", str(value))]
    words += [word for name, value in job.parameters.items() for word in ("-P", f"{name}={value}")]
    return shlex.join(words)
