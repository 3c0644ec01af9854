"""Jobs whose driver has gone: collect those that ended, end those that died, leave those that live.

A command holds the lock file of its job, whatever it does and however long it was suspended (Ctrl-Z). A worker of the
queue is named in the job's row and has a lease besides: one that says nothing until its lease is over is ended, because
others wait for its slot.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from segserve import process
from segserve.backends import local
from segserve.errors import AttemptLost, BackendError, NoSlot, RunCancelled, SegserveError
from segserve.journal import JobRecord, StaleFence
from segserve.model import JobState, Outcome, job_from_json
from segserve.pipeline.context import Context, Hold
from segserve.pipeline.failure import end_badly
from segserve.pipeline.finish import finish
from segserve.store import locked

_LOOK_SECONDS = 0.2
_END_SECONDS = 5.0
CANCEL_SECONDS = 60.0
# What a worker does while it has a job: it renews its lease.
Keeping = Callable[[Hold], AbstractContextManager[None]]


def settle(ctx: Context) -> list[str]:
    """Bring every open job that nobody drives to its true state; return the ids of those that ended now."""
    return [record.job_id for record in ctx.journal.begun_jobs() if adrift(ctx, record) and go_on(ctx, record.job_id)]


def adrift(ctx: Context, record: JobRecord) -> bool:
    """Whether nobody drives a job that has begun, and it is time to go on with it."""
    if record.state.final or record.not_before > time.time():
        return False
    worker = _worker(record)
    if worker is not None and worker.alive:
        return record.lease_until < time.time()
    try:
        with locked(ctx.home.job(record.job_id).lock, blocking=False):
            return True
    except NoSlot:  # a living command drives it
        return False


def go_on(ctx: Context, job_id: str, *, owner: str = "", lease_s: float = 0.0, keeping: Keeping | None = None) -> bool:
    """Take a job over from a driver that has gone; true if it has ended or waits for another try now.

    A worker (`owner`, `keeping`) waits for an attempt that still runs. A command leaves it alone.
    """
    record = ctx.journal.get(job_id)
    worker = _worker(record)
    if worker is not None and worker.alive:
        ctx.journal.claim(job_id)  # first: when it wakes up before it is dead, it writes nothing
        _kill(worker)
    folder = ctx.home.job(job_id)
    try:
        with locked(folder.lock, blocking=False):
            record = ctx.journal.get(job_id)
            if record.state.final or (record.state is JobState.QUEUED and record.lane):
                return False
            attempt = folder.attempt(record.attempt)
            outcome = local.recover(attempt)
            if outcome == local.ALIVE and keeping is None:
                return False
            fence = ctx.journal.claim(job_id, owner=owner, lease_s=lease_s)
            hold = Hold(job_id, fence, folder, record.attempt)
            with keeping(hold) if keeping else nullcontext():
                _resume(ctx, hold, record)
            return True
    except (NoSlot, StaleFence):  # somebody else was quicker
        return False


def _worker(record: JobRecord) -> process.Identity | None:
    return process.Identity(**json.loads(record.owner)) if record.owner else None


def _kill(worker: process.Identity) -> None:
    worker.send(signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    while worker.alive and time.monotonic() < deadline:
        time.sleep(0.01)


def _resume(ctx: Context, hold: Hold, record: JobRecord) -> None:
    try:
        outcome = _outcome(ctx, hold, record)
        if record.job is None and record.state is JobState.COLLECTING:  # a pipeline's answer is there, in full
            ctx.journal.move(hold.job_id, hold.fence, JobState.SUCCEEDED, result=hold.folder.result, error=None)
            return
        if record.job is None or record.state not in (JobState.RUNNING, JobState.COLLECTING):
            raise _interrupted(record)
        job = job_from_json(hold.folder.job.read_text(encoding="utf-8"))
        result = finish(ctx, job, hold, outcome)
        ctx.reporter.note(f"Job {job.id} has finished: {result.folder}")
    except KeyboardInterrupt:  # a worker that waits is told to cancel
        local.cancel(hold.attempt, wait=True)
        end_badly(ctx, hold, RunCancelled("It was cancelled."))
        raise
    except StaleFence:
        raise
    except SegserveError as failure:
        end_badly(ctx, hold, failure)
        ctx.reporter.note(f"Job {hold.job_id} has failed: {failure.message}")


def _outcome(ctx: Context, hold: Hold, record: JobRecord) -> Outcome:
    """How the attempt ended; waits for one that still runs."""
    if record.cancel:
        local.cancel(hold.attempt, wait=True)
    while (outcome := local.recover(hold.attempt)) == local.ALIVE:
        time.sleep(_LOOK_SECONDS)
    return outcome


def _interrupted(record: JobRecord) -> SegserveError:
    if record.lane:
        return AttemptLost("The worker that prepared the job was killed.", hint="It is tried again by itself.")
    return RunCancelled("The command was interrupted before the executor started.", hint="Run it again.")


def cancel(ctx: Context, job_id: str) -> JobState:
    """Stop a job wherever it is; one that has ended stays as it is."""
    settle(ctx)
    record = ctx.journal.get(job_id)
    if record.state.final or ctx.journal.queue.cancel(record.job_id).final:
        return ctx.journal.get(job_id).state
    folder = ctx.home.job(record.job_id)
    if not local.cancel(folder.attempt(record.attempt), wait=True):
        local.interrupt_driver(folder)
    deadline = time.monotonic() + CANCEL_SECONDS
    while not (record := ctx.journal.get(record.job_id)).state.final and time.monotonic() < deadline:
        if adrift(ctx, record):  # its driver writes the end; if there is none, we do
            go_on(ctx, record.job_id)
        time.sleep(_LOOK_SECONDS)
    if not record.state.final:
        raise BackendError(
            f"Job {record.job_id} has not ended within {CANCEL_SECONDS:.0f} s.", hint="It ends as soon as it can."
        )
    return record.state
