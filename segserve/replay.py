"""An old result again: the same commit, the packages of its lock, the same images; then what has changed.

`segserve replay JOB` finds everything in the journal. `segserve replay output.json --images DIR` finds the commit by
the short hash that executors write into `model`, and by the `results.json` and `segserve.lock` beside it, if any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segserve import comparison, inputs, refs
from segserve.comparison import DriftReport
from segserve.errors import NotFound, UsageError
from segserve.inputs import Selection
from segserve.pipeline import Context, Request, Result, run
from segserve.refs import Pin
from segserve.store import Resolution


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known about an old result; None where nothing says so. `selection`: which planes of the images."""

    reference: Path
    pin: Pin
    entry: str | None
    images: tuple[str, ...] | None = None
    parameters: Mapping[str, str] | None = None
    lock: Path | None = None
    digest: str = ""  # of the staged images
    selection: Selection | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """The old result, the new one, and what became of every object."""

    origin: Origin
    result: Result
    drift: DriftReport
    notes: tuple[str, ...] = ()


def of_job(ctx: Context, job_id: str) -> Origin:
    """What the journal knows about a job.

    Raises:
        NotFound: no such job, or its result folder is gone.
    """
    record = ctx.journal.get(job_id)
    job, folder = record.job, ctx.home.job(record.job_id)
    reference = Path(record.result) if record.result else None
    if job is None or reference is None or not (reference / "output.json").exists():
        raise NotFound(
            f"Job {record.job_id} has no result to compare with.", hint=f"segserve show {record.job_id} says why."
        )
    staged = inputs.read_map(folder.inputs_map)
    return Origin(
        reference,
        job.pin,
        job.entry,
        tuple(dict.fromkeys(image.source for image in staged)),
        job.parameters,
        folder.lockfile if folder.lockfile.exists() else None,
        inputs.digest(staged),
        Selection(**job.options.get("selection", {})),  # jobs of older versions have none
    )


def of_file(ctx: Context, file: Path, *, offline: bool = False) -> Origin:
    """What an output.json says about itself, and the files beside it.

    Raises:
        UsageError: it is no document, or does not say which executor wrote it.
        RevisionNotFound, RepositoryUnreachable: its commit cannot be had.
    """
    beside, named = file.parent / "results.json", dict[str, Any]()
    if beside.exists():
        named = _document(beside).get("executor", {})
    own_lock = file.parent / "segserve.lock"
    locked = own_lock if own_lock.exists() else None
    if named.get("commit"):
        pin = Pin(named["repository"], named["commit"], named.get("subdir", ""))
        return Origin(file, pin, named.get("entry"), lock=locked)
    model = _document(file).get("model", "")
    ref = refs.from_model(str(model))
    resolution = ctx.store.resolve(ref, offline=offline, on_note=ctx.reporter.note)
    return Origin(file, resolution.pin, None, lock=locked)


def _document(file: Path) -> dict[str, Any]:
    hint = "Name a job, a result folder or its output.json."
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UsageError(f"{file} is no JSON: {error}.", hint=hint) from None
    if not isinstance(document, dict):
        raise UsageError(f"{file} is no output.json.", hint=hint)
    return document


def replay(ctx: Context, request: Request, origin: Origin) -> Replay:
    """Run `request` at the commit of `origin`, with the packages of its lock, and compare.

    Raises:
        UsageError: nothing says on which images.
        SegserveError: as for every run.
    """
    images = request.images or origin.images
    if not images:
        raise UsageError("Nothing says on which images this was made.", hint="Name them: --images DIR.")
    missing = [path for path in images if not Path(path).exists()]
    if missing:
        raise UsageError(
            f"{len(missing)} image(s) are not where they were, first: {missing[0]}", hint="Name them: --images DIR."
        )
    notes = (
        [] if origin.lock else ["There is no segserve.lock: the environment is built from what its files say today."]
    )
    build = replace(request.build, lock_file=origin.lock) if request.build.use_lock else request.build
    again = replace(
        request,
        ref=replace(request.ref, entry=origin.entry or request.ref.entry),
        pinned=Resolution(origin.pin, requested=str(origin.pin)),
        images=tuple(images),
        selection=request.selection if request.selection.given() else origin.selection or request.selection,
        parameters={**(origin.parameters or {}), **request.parameters},
        build=build,
    )
    result = run(ctx, again)
    assert isinstance(result, Result)  # a replay waits
    if origin.digest and inputs.digest(result.images) != origin.digest:
        notes.append("The images are not those of then: what differs may come from them.")
    reference = origin.reference
    return Replay(origin, result, comparison.drift(result.folder, reference), tuple(notes))
