"""What is written down of a job before anything slow begins: job.json, and its MLflow run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import segserve
from segserve import redact, tracking
from segserve.config import Settings
from segserve.model import Job
from segserve.pipeline.context import Hold
from segserve.pipeline.prepare import Prepared, Request
from segserve.pipeline.publish import choose_folder


def job_of(request: Request, prepared: Prepared, hold: Hold, settings: Settings, *, queued: bool) -> Job:
    """The job that a request has become; `queued`: its result stays in the job's folder."""
    executor = replace(request.ref, subdir=prepared.resolution.pin.subdir).name
    where = hold.folder.result if queued else choose_folder(request.output, settings.run.results, executor)
    return Job(
        id=hold.job_id,
        pin=prepared.resolution.pin,
        entry=prepared.entry.name,
        parameters={name: redact.value(name, value) for name, value in prepared.parameters.items()},
        images_parameter=prepared.entry.images_parameter if prepared.images else None,
        environment=prepared.spec,
        resources=request.resources,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        executor=executor,
        tags=_tags(request, prepared),
        output=str(where),
        output_exact=request.output is not None,
        attached=request.attached and not queued,
        options={
            "overlays": request.overlays,
            "exports": list(request.exports),
            "produces": prepared.entry.produces,
            "keep": request.keep or settings.run.keep,
            "pictures": queued,
            "selection": request.selection.given(),
        },
    )


def _tags(request: Request, prepared: Prepared) -> dict[str, str]:
    resolution = prepared.resolution
    tags = {**request.tags, "requested": str(request.ref), "branch": resolution.branch}
    if resolution.dirty:
        tags["dirty"] = "true"
    return {name: value for name, value in tags.items() if value}


def open_run(
    tracker: tracking.Tracker, request: Request, prepared: Prepared, job: Job, experiment: str
) -> tracking.RunHandle:
    """A run with pin, parameters and what the manifest says, in the experiment of that name; RUNNING from now on."""
    told = {**prepared.project.manifest.texts(), **job.tags}
    run = tracker.create_run(
        tracker.experiment(experiment),
        name=f"{job.executor}#{job.entry} {job.id}",
        tags={
            **({"mlflow.parentRunId": request.parent_run} if request.parent_run else {}),
            "mlflow.source.name": job.pin.repo,
            "mlflow.source.git.commit": job.pin.sha,
            "segserve.job": job.id,
            "segserve.repository": job.pin.repo,
            "segserve.commit": job.pin.sha,
            "segserve.subdir": job.pin.subdir,
            "segserve.entry_point": job.entry,
            "segserve.environment": f"{job.environment.kind}:{job.environment.key}",
            "segserve.version": segserve.__version__,
            **{f"segserve.{name}": value for name, value in told.items()},
        },
    )
    tracker.log_params(run.run_id, job.parameters)
    return run
