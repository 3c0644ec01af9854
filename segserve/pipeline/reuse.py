"""The result of the same request again, for executors that declare themselves deterministic. Opt-in.

A request is the same when commit, subdirectory, entry point, all parameters, the environment's content and the staged
images are: their pixels, planes, pixel sizes and scales in their order, not the names of their files. One job of the
queue reuses the result of another one of the *same user*, never of anybody else: that somebody has had these images
segmented is nobody's business. What it takes over is output.json; report, exports and MLflow run are its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from segserve import redact
from segserve.collect import NAME
from segserve.errors import NotFound
from segserve.journal import JobRecord
from segserve.layout import Home
from segserve.model import Ending, Job, JobState, Outcome, StagedImage, to_json, write_atomically
from segserve.pipeline.context import Context, Hold
from segserve.pipeline.prepare import Prepared, Request
from segserve.project import POLYGONS, EntryPoint, ParameterType
from segserve.tracking import Tracker

_NOT_IN_KEY = ("source", "modified", "name")


def key(request: Request, prepared: Prepared, job: Job, staged: Sequence[StagedImage], user: str) -> str:
    """SHA-256 (hex) over all that decides the result; "" when nothing may be reused for this request."""
    if not request.reuse or not _repeatable(request, prepared, staged):
        return ""
    decides = {
        "user": user,
        "pin": asdict(job.pin),
        "entry": job.entry,
        "parameters": {**prepared.entry.defaults, **prepared.parameters},
        "environment": [job.environment.kind, job.environment.key],
        "images": [
            {name: value for name, value in asdict(image).items() if name not in _NOT_IN_KEY} for image in staged
        ],
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def _repeatable(request: Request, prepared: Prepared, staged: Sequence[StagedImage]) -> bool:
    entry = prepared.entry
    if prepared.project.manifest.run.deterministic is not True or entry.produces != POLYGONS or not staged:
        return False
    named = {**entry.defaults, **prepared.parameters}
    named.pop(entry.images_parameter or "", None)
    return not request.variables and all(_lasts(entry, name, value) for name, value in named.items())


def _lasts(entry: EntryPoint, name: str, value: str) -> bool:
    """Whether a value means the same tomorrow, and may be written down: no path, no address, no secret."""
    parameter = entry.parameters.get(name)
    elsewhere = parameter is not None and parameter.type in (ParameterType.PATH, ParameterType.URI)
    return not value or (not elsewhere and redact.value(name, value) == value)


def find(ctx: Context, name: str) -> JobRecord | None:
    """The job whose result is still there for this key."""
    file = ctx.home.reusable(name)
    with suppress(NotFound):
        try:
            record = ctx.journal.get(json.loads(file.read_text(encoding="utf-8"))["job"])
        except FileNotFoundError:
            return None
        if record.state is JobState.SUCCEEDED and (Path(record.result) / NAME).is_file():
            return record
    file.unlink(missing_ok=True)  # its result was removed meanwhile, or the job is of another journal
    return None


def forget_removed(ctx: Context) -> None:
    """Take away what speaks of results that have gone; `find` would do it when somebody asks again."""
    for file in ctx.home.reuse.glob("*.json"):
        find(ctx, file.stem)


def take_over(ctx: Context, hold: Hold, known: JobRecord, tracker: Tracker, run_id: str) -> Outcome:
    """The output of another job becomes what this attempt has logged; how the attempt has ended."""
    folder, now = Path(known.result), time.time()
    shutil.copyfile(folder / "segserve.lock", hold.folder.lockfile)
    tracker.log_file(run_id, folder / NAME, NAME)
    tracker.set_tags(run_id, {"segserve.reused": known.job_id})
    ctx.journal.move(hold.job_id, hold.fence, JobState.RUNNING)
    done = Outcome(hold.fence, Ending.SUCCEEDED, exit_code=0, started=now, ended=now)
    write_atomically(hold.attempt.outcome, to_json(done))
    return done


def remember(home: Home, name: str, job_id: str) -> None:
    """From now on the result of this job is the one for this key."""
    file = home.reusable(name)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(file, json.dumps({"job": job_id}))
