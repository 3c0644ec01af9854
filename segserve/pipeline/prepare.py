"""Everything cheap, before anything slow: reference, project, parameters, images, environment key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from segserve import devices, dialects, environments, inputs, project, tracking
from segserve.environments.base import BuildOptions
from segserve.errors import UsageError
from segserve.findings import Severity
from segserve.inputs import InputPlan, Selection
from segserve.model import EnvironmentSpec, Resources
from segserve.pipeline import expected
from segserve.pipeline.bounds import Bounds
from segserve.pipeline.context import Context
from segserve.project import EntryPoint, Project
from segserve.refs import ExecutorRef
from segserve.store import Resolution


@dataclass(frozen=True)
class Request:
    """What somebody asks for, as plain values."""

    ref: ExecutorRef
    images: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    selection: Selection = field(default_factory=Selection)
    build: BuildOptions = field(default_factory=BuildOptions)
    gpus: str = "auto"
    wait: bool = True
    resources: Resources = field(default_factory=Resources)
    output: Path | None = None
    overlays: int | None = 24  # None: all
    exports: tuple[str, ...] = ()  # names of targets, checked
    experiment: str = ""
    parent_run: str = ""  # of MLflow, in the same experiment: the job's run is nested under it
    tags: Mapping[str, str] = field(default_factory=dict)  # of the job; in MLflow they begin with segserve.
    attached: bool = True
    offline: bool = False
    committed: bool = False
    allow_unreachable: bool = False
    submodules: bool = False
    keep: bool = False
    reuse: bool = False  # take an earlier result of exactly this request, if the executor is deterministic
    pinned: Resolution | None = None  # instead of what `ref` would mean today
    bounds: Bounds | None = None  # of a request that came from elsewhere
    others: bool = False  # it is not the local user's; stands in the journal, and decides how it is shut in
    variables: Mapping[str, str] = field(default_factory=dict)  # for the executor, beside those of its environment


@dataclass(frozen=True)
class Prepared:
    """A request that has passed every check that needs no build."""

    resolution: Resolution
    notes: tuple[str, ...]  # of resolution and checkout
    project: Project
    entry: EntryPoint
    parameters: Mapping[str, str]
    images: InputPlan | None
    spec: EnvironmentSpec


def prepare(ctx: Context, request: Request, checkout: Path) -> Prepared:
    """Resolve the reference, check it out into `checkout`, check project, parameters and images.

    Raises:
        UsageError, ExecutorError, BackendError: whatever is wrong, before anything slow has begun.
    """
    if request.output is not None and request.output.exists():
        raise UsageError(f"'{request.output}' exists already.", hint="Results never overwrite: choose another -o.")
    if request.output is not None:
        _refuse_read_only(request.output)
    if devices.parse(request.gpus):
        devices.describe(request.gpus)  # refuses more GPUs than there are
    tracking.external()  # refuses a tracking URI that no executor could log to
    ctx.reporter.phase(f"Resolving {request.ref}")
    resolution = request.pinned or ctx.store.resolve(
        request.ref,
        offline=request.offline,
        allow_unreachable=request.allow_unreachable,
        committed=request.committed,
        on_note=ctx.reporter.note,
    )
    notes = list(resolution.notes)
    ctx.store.checkout(resolution, checkout, submodules=request.submodules, on_note=notes.append)
    for note in notes[len(resolution.notes) :]:
        ctx.reporter.note(note)
    loaded = dialects.load(checkout / resolution.pin.subdir)
    for finding in loaded.findings:
        (ctx.reporter.note if finding.severity is Severity.NOTE else ctx.reporter.warn)(str(finding))
    entry = project.select(loaded, request.ref.entry)
    if request.bounds is not None:  # first: others may not learn either which files there are
        request.bounds.check_parameters(entry, request.parameters)
    parameters = project.check_parameters(entry, request.parameters, images=bool(request.images))
    images = _planned(request)
    for note in images.notes if images else ():
        ctx.reporter.note(note)
        notes.append(note)
    for mismatch in expected.mismatches(loaded.manifest, images) if images else ():
        ctx.reporter.warn(mismatch)
        notes.append(mismatch)
    spec = environments.detect(loaded, request.build)
    for warning in spec.warnings:
        ctx.reporter.warn(warning)
    return Prepared(resolution, tuple(notes), loaded, entry, parameters, images, spec)


def _planned(request: Request) -> InputPlan | None:
    if not request.images:
        return None
    bounds = request.bounds
    planned = inputs.plan(request.images, request.selection, within=bounds.roots if bounds else None)
    if bounds is not None:
        bounds.check_images(planned)
    return planned


def _refuse_read_only(output: Path) -> None:
    """Hours of work must not end at a folder that cannot be written."""
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"'{output}' cannot be written: '{above}' is no folder of yours.", hint="Choose another -o.")
