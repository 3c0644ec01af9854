"""An attempt has ended: judge it, collect its output, make result folder, MLflow run and journal agree."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from segserve import tracking
from segserve.diagnosis import diagnose
from segserve.errors import (
    AttemptLost,
    BackendError,
    ExecutorFailed,
    RunCancelled,
    RunTimedOut,
)
from segserve.journal import StaleFence
from segserve.layout import AttemptDir, JobDir
from segserve.model import Ending, Job, JobState, Outcome
from segserve.pipeline import facts as facts_file
from segserve.pipeline import reuse
from segserve.pipeline.assemble import assemble
from segserve.pipeline.confinement import explained, note_filled
from segserve.pipeline.context import Context, Hold
from segserve.pipeline.facts import Facts
from segserve.pipeline.failure import forget_secrets, log_logs
from segserve.pipeline.publish import Result, publish

LOG_TAIL_BYTES = 256 * 1024


def finish(ctx: Context, job: Job, hold: Hold, outcome: Outcome) -> Result:
    """Collect a finished attempt. Who calls this writes down how it failed (`failure.end_badly`).

    Raises:
        RunError, OutputError, BackendError: it did not end with a valid result.
    """
    judge(outcome, hold.attempt)
    ctx.journal.move(job.id, hold.fence, JobState.COLLECTING)
    result = _collect(ctx, job, hold, outcome)
    forget_secrets(hold.attempt)
    hold.folder.secrets.unlink(missing_ok=True)
    _commit(ctx, hold, result)
    facts = facts_file.read(hold.folder)
    if facts.reuse_key and not facts.reused:
        reuse.remember(ctx.home, facts.reuse_key, job.id)
    note_filled(ctx.home, job, hold.attempt)
    if not job.options.get("keep"):
        _tidy(hold, pictures=bool(job.options.get("pictures")))
    return result


def _commit(ctx: Context, hold: Hold, result: Result) -> None:
    """The row decides which result is the job's; whoever comes too late takes his own away."""
    try:
        facts = {"result": str(result.folder), "warnings": result.warnings, "error": None}  # of an earlier attempt
        ctx.journal.move(hold.job_id, hold.fence, JobState.SUCCEEDED, **facts)
    except StaleFence:
        shutil.rmtree(result.folder, ignore_errors=True)
        raise


def judge(outcome: Outcome, attempt: AttemptDir) -> None:
    """Turn a bad ending into the error that names its cause.

    Raises:
        ExecutorFailed, RunTimedOut, RunCancelled, AttemptLost.
    """
    if outcome.ending is Ending.SUCCEEDED:
        return
    after = f"after {max(0.0, outcome.ended - outcome.started):.0f} s" if outcome.started else "before it began"
    if outcome.ending is Ending.TIMED_OUT:
        raise RunTimedOut(
            f"The executor ran past its time limit and was stopped {after}.",
            hint="Raise --timeout, or try fewer images with --first.",
            log=attempt.log,
        )
    if outcome.ending is Ending.EXCEEDED:
        raise ExecutorFailed(
            f"The executor was stopped {after}. {outcome.message}",
            hint="Try fewer images with --first. The limits are those of [sandbox] in config.toml.",
            log=attempt.log,
        )
    if outcome.ending in (Ending.CANCELLED, Ending.ORPHANED):
        who = "It was cancelled" if outcome.ending is Ending.CANCELLED else "The command that ran it went away"
        raise RunCancelled(f"{who}; the executor was stopped {after}.", hint="Run it again.", log=attempt.log)
    found = diagnose(tail(attempt.log), outcome.exit_code)
    found = explained(found, attempt) if found else None
    code = "" if outcome.exit_code is None else f" with exit code {outcome.exit_code}"
    lost = outcome.ending is Ending.LOST
    message = "The executor was lost" if lost else f"The executor failed{code}"
    raise (AttemptLost if lost else ExecutorFailed)(
        f"{message}: {found.cause}" if found else f"{message}." + (f" {outcome.message}" if outcome.message else ""),
        hint=found.hint if found else "The end of the log says more.",
        quote=found.quote if found else "\n".join(tail(attempt.log).splitlines()[-8:]),
        log=attempt.log,
    )


def tail(log: Path, limit: int = LOG_TAIL_BYTES) -> str:
    """The end of a log file; nothing when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - limit))
        return stream.read().decode("utf-8", "replace")


def _collect(ctx: Context, job: Job, hold: Hold, outcome: Outcome) -> Result:
    """The result, where people look for it and in the MLflow run."""
    began = time.monotonic()
    ctx.reporter.phase("Collecting the result")
    folder = hold.folder
    facts = facts_file.read(folder).timed(executor=outcome.ended - outcome.started)
    found = assemble(ctx, job, hold, facts, outcome)
    if Path(job.output) == folder.result:
        _clear(folder)
    published = publish(folder.assembly(hold.fence), Path(job.output), exact=job.output_exact)
    facts = replace(facts.timed(collect=time.monotonic() - began), warnings=found.warnings)
    facts.write(folder)
    result = Result(
        job_id=job.id,
        pin=job.pin,
        entry=job.entry,
        images=found.images,
        document=found.document,
        findings=found.findings,
        folder=published,
        run_url=facts.run_url,
        counts=found.counts,
        seconds=facts.seconds,
        warnings=found.warnings,
    )
    return _log_result(ctx, hold, facts, result, outcome)


def _clear(folder: JobDir) -> None:
    """Take away what a worker has published that was killed before it could say so: nobody was told of it."""
    for pattern in ("result", "result-*", ".result.*.partial"):
        for left in folder.path.glob(pattern):
            shutil.rmtree(left)


def _log_result(ctx: Context, hold: Hold, facts: Facts, result: Result, outcome: Outcome) -> Result:
    """The MLflow run gets the same files. One that cannot be reached does not cost the result that is there."""
    try:
        tracker = tracking.open_tracker(ctx.home, facts.tracking_uri)
        metrics = {f"seconds.{name}": value for name, value in facts.seconds.items()}
        metrics |= {"images": float(len(result.images)), "objects": float(sum(result.counts))}
        metrics |= {"cpu.seconds": outcome.cpu_seconds}
        if outcome.max_rss_bytes:  # 0: it ended before anybody could look
            metrics |= {"memory.mb": outcome.max_rss_bytes / 1e6}
        tracker.log_metrics(facts.run_id, metrics)
        # The parameter itself has what was asked for: a URL whose content can change.
        digests = {f"{name}.sha256": digest for name, digest in facts.parameter_digests.items()}
        # Not before the launch: an executor that logs a parameter itself, in its own spelling, would be refused.
        tracker.log_params(facts.run_id, {**facts.defaults, **digests})
        tracker.set_tags(facts.run_id, {"segserve.result": str(result.folder), "segserve.state": "succeeded"})
        assembly = hold.folder.assembly(hold.fence)
        _arrange_for_mlflow(assembly)
        tracker.log_folder(facts.run_id, assembly, "")
        log_logs(tracker, facts, hold.attempt)
        tracker.finish(facts.run_id, "FINISHED")
    except BackendError as unreachable:
        warning = f"The result is complete, but MLflow could not be told: {unreachable.message} {unreachable.quote}"
        ctx.reporter.warn(warning)
        return replace(result, warnings=(*result.warnings, warning))
    return result


def _arrange_for_mlflow(result: Path) -> None:
    """In the run's artifacts the table lies beside the report, where MLflow's UI previews it; the folder is ours."""
    table = result / "objects.csv"
    if table.exists():
        table.rename(result / tracking.OBJECTS)


def _tidy(hold: Hold, *, pictures: bool) -> None:
    """A finished job keeps its record, map and log; images and checkout can be had again.

    With `pictures` it keeps the staged images: of uploads nobody here has another copy, and people look at them.
    """
    folder = hold.folder
    for path in (folder.uploads, folder.fetched, folder.assembly(hold.fence), hold.attempt.checkout):
        shutil.rmtree(path, ignore_errors=True)
    if not pictures:
        shutil.rmtree(folder.inputs, ignore_errors=True)
