"""Jobs whose driver has gone: collect those that ended, end those that died, leave those that live."""

from __future__ import annotations

from segserve.backends import local
from segserve.errors import NoSlot, RunCancelled, SegserveError
from segserve.layout import JobDir
from segserve.model import Job, JobState, Outcome, job_from_json
from segserve.pipeline.context import Context
from segserve.pipeline.finish import finish, record_failure
from segserve.store import locked


def settle(ctx: Context) -> list[str]:
    """Bring every open job that nobody drives to its true state; return the ids of those that ended now."""
    return [record.job_id for record in ctx.journal.open_jobs() if _settle_one(ctx, record.job_id)]


def _settle_one(ctx: Context, job_id: str) -> bool:
    folder = ctx.home.job(job_id)
    try:
        with locked(folder.lock, blocking=False):
            return _undriven(ctx, job_id, folder)
    except NoSlot:  # a living command drives it
        return False


def _undriven(ctx: Context, job_id: str, folder: JobDir) -> bool:
    record = ctx.journal.get(job_id)
    if record.state.final:
        return False
    outcome = local.recover(folder.attempt(1))
    if outcome == local.ALIVE:
        return False
    fence = ctx.journal.claim(job_id)
    if record.state in (JobState.RUNNING, JobState.COLLECTING) and isinstance(outcome, Outcome):
        _collect(ctx, job_from_json(folder.job.read_text(encoding="utf-8")), fence, outcome)
    else:
        interrupted = RunCancelled("The command was interrupted before the executor started.", hint="Run it again.")
        record_failure(ctx, job_id, fence, interrupted, JobState.CANCELLED)
    return True


def _collect(ctx: Context, job: Job, fence: int, outcome: Outcome) -> None:
    try:
        result = finish(ctx, job, fence, outcome)
        ctx.reporter.note(f"Job {job.id} has finished: {result.folder}")
    except SegserveError as failure:
        ctx.reporter.note(f"Job {job.id} has failed: {failure.message}")


def cancel(ctx: Context, job_id: str) -> JobState:
    """Stop a job wherever it is; one that has ended stays as it is."""
    settle(ctx)
    record = ctx.journal.get(job_id)
    if record.state.final:
        return record.state
    folder = ctx.home.job(record.job_id)
    if not local.cancel(folder.attempt(1), wait=True):
        local.interrupt_driver(folder)
    with locked(folder.lock):  # the driver writes the end; if there is none, we do
        _undriven(ctx, record.job_id, folder)
    return ctx.journal.get(record.job_id).state
