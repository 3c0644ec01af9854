"""Requests go into the queue: nothing is looked at yet, everything is on the disk when `submit` returns."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from segserve import devices
from segserve.journal import JobRecord, Quota, Submission, Submitted, new_job_id
from segserve.pipeline import wire
from segserve.pipeline.context import Context
from segserve.pipeline.prepare import Request

CPU, GPU = "cpu", "gpu"


def submit(
    ctx: Context,
    request: Request,
    *,
    gpus: int,
    job_id: str = "",
    user: str = "",
    priority: int = 0,
    key: str = "",
    images: Mapping[str, str] | None = None,
    awaited: bool = False,
    quota: Quota | None = None,
) -> Submitted:
    """Put a request into the queue; an identical one of the same user that is open, or has this `key`, is joined.

    `gpus` is how many the machine has. `job_id` is given when its folder has uploads already, `images` maps names to
    what is in them (a hash); without it the request joins no other. `awaited`: see `journal.Submission`.

    Raises:
        KeyReused: the idempotency key came with another request before.
        QuotaExceeded: it would be a new job, and one too many.
        UsageError: `request.gpus` is no number of GPUs.
    """
    name = job_id or new_job_id()
    folder = ctx.home.job(name)
    secrets = wire.secrets_of(request)
    if secrets:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(folder.secrets, "w", encoding="utf-8", opener=_private) as stream:
            stream.write(secrets)
    try:
        submission = Submission(
            job_id=name,
            request=wire.to_json(request),
            lane=lane(request, gpus),
            user=user,
            priority=priority,
            most_tries=ctx.settings.queue.tries,
            key=key,
            digest="" if images is None else wire.digest(request, images),
            awaited=awaited,
            key_digest=wire.digest(request, images or {}) if key else "",
            quota=quota,
        )
        submitted = ctx.journal.queue.submit(submission)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)  # its secrets, above all
        raise
    if not submitted.new:
        shutil.rmtree(folder.path, ignore_errors=True)
    return submitted


def lane(request: Request, gpus: int) -> str:
    """The kind of slot that a request needs on a machine with so many GPUs."""
    wanted = devices.parse(request.gpus)
    return GPU if (gpus if wanted is None else wanted) else CPU


def titles(record: JobRecord) -> dict[str, str]:
    """What people call a job: executor, entry point, when it came; of one that nobody has looked at, as requested."""
    if record.job is not None:
        return {"executor": record.job.executor, "entry": record.job.entry, "created": record.job.created}
    slug = wire.pipeline_of(record.request)
    ref = None if slug else wire.from_json(record.request).ref
    created = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
    return {"executor": ref.name if ref else slug, "entry": ref.entry if ref else "pipeline", "created": created}


def origin(record: JobRecord) -> dict[str, Any]:
    """What a job runs: repository, commit, subdirectory, parameters, environment; as requested, until it is known."""
    job = record.job
    if job is not None:
        environment = f"{job.environment.kind} {job.environment.key}"
        pin = job.pin
        place = {"repository": pin.repo, "commit": pin.sha, "subdir": pin.subdir}
        return {**place, "parameters": dict(job.parameters), "environment": environment}
    if wire.pipeline_of(record.request):
        return {"repository": "", "commit": "", "subdir": "", "parameters": {}, "environment": ""}
    request = wire.from_json(record.request)
    place = {"repository": request.ref.repo, "commit": "", "subdir": request.ref.subdir}
    return {**place, "parameters": dict(request.parameters), "environment": ""}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
