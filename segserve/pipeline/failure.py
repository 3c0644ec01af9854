"""How an attempt that did not end well is written down, and whether the queue tries again.

Tried again is what the machine, the network or a remote has done (`errors.retryable`), never what an executor did.
The jobs of commands have one try: whoever sits there decides.
"""

from __future__ import annotations

import random
from dataclasses import replace

from segserve import redact, tracking
from segserve.errors import BackendError, NotFound, RunCancelled, SegserveError
from segserve.journal import StaleFence
from segserve.layout import AttemptDir
from segserve.model import JobState, plan_from_json, to_json, write_atomically
from segserve.pipeline import facts as facts_file
from segserve.pipeline.context import Context, Hold
from segserve.pipeline.facts import Facts

_MLFLOW_STATUS = {JobState.SUCCEEDED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}


def end_badly(ctx: Context, hold: Hold, failure: SegserveError) -> JobState:
    """Write down that an attempt has failed, in MLflow and journal; return the state that its job has now.

    Raises:
        StaleFence: somebody else has the job; nothing was written.
    """
    if isinstance(failure, StaleFence):
        raise failure
    _in_words_of_the_client(failure, hold)
    record = ctx.journal.get(hold.job_id)
    if record.state.final or record.fence != hold.fence:
        return record.state
    if record.cancel or isinstance(failure, RunCancelled):
        return _end(ctx, hold, failure, JobState.CANCELLED)
    if not failure.retryable or record.tries >= record.most_tries:
        return _end(ctx, hold, failure, JobState.FAILED)
    delay = back_off(record.tries, first=ctx.settings.queue.backoff_s, most=ctx.settings.queue.longest_backoff_s)
    ctx.reporter.warn(f"{failure.message} Trying again in {delay:.1f} s.")
    if record.state is JobState.COLLECTING:  # the executor has done its part: only the rest is tried again
        ctx.journal.queue.postpone(hold.job_id, hold.fence, delay=delay, error=failure)
        return record.state
    _close_run(ctx, hold, failure, JobState.FAILED)
    forget_secrets(hold.attempt)
    ctx.journal.queue.put_back(hold.job_id, hold.fence, delay=delay, error=failure)
    return JobState.QUEUED


_MOST_FINDINGS = 20


def _in_words_of_the_client(failure: SegserveError, hold: Hold) -> None:
    """Who has sent images knows them by their names, not by where they lie here; and wants to know of all of them."""
    uploads = hold.folder.uploads
    if not uploads.is_dir():
        return
    if len(failure.findings) > 1 and not failure.quote:
        lines = [f"{one.place.path} {one.message}" for one in failure.findings[:_MOST_FINDINGS]]
        more = len(failure.findings) - len(lines)
        failure.quote = redact.text("\n".join([*lines, *([f"… and {more} more"] if more else [])]))
    failure.message, failure.hint, failure.quote = (
        text.replace(f"{uploads}/", "") for text in (failure.message, failure.hint, failure.quote)
    )


def back_off(tries: int, *, first: float, most: float) -> float:
    """Seconds until the next try: doubled each time, and spread: what failed together does not return together."""
    return min(most, first * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)  # noqa: S311 - so that many do not come at once


def _end(ctx: Context, hold: Hold, failure: SegserveError, state: JobState) -> JobState:
    _close_run(ctx, hold, failure, state)
    forget_secrets(hold.attempt)
    hold.folder.secrets.unlink(missing_ok=True)
    ctx.journal.move(hold.job_id, hold.fence, state, error=failure)
    return state


def _close_run(ctx: Context, hold: Hold, failure: SegserveError, state: JobState) -> None:
    facts = facts_file.read(hold.folder)
    if not facts.run_id:
        return
    try:
        tracker = tracking.open_tracker(ctx.home, facts.tracking_uri)
        tracker.set_tags(facts.run_id, {"segserve.error": failure.code, "segserve.message": failure.message})
        log_logs(tracker, facts, hold.attempt)
        tracker.finish(facts.run_id, _MLFLOW_STATUS[state])
    except BackendError as unreachable:
        ctx.reporter.warn(f"The MLflow run could not be closed: {unreachable.message}")


def reconcile(ctx: Context) -> list[str]:
    """End the MLflow runs that nobody ends any more: whoever had to was killed on the way. Returns their ids.

    A run that belongs to an open job is left alone only if it is the job's latest one.

    Raises:
        TrackingUnreachable: the tracking server does not answer.
    """
    tracker = tracking.open_tracker(ctx.home, tracking.resolve(ctx.home).uri)
    ended = []
    for run_id, job_id in tracker.unfinished("segserve.job").items():
        try:
            record = ctx.journal.get(job_id)
        except NotFound:  # of another home, on a server that several of them use
            continue
        if record.run_id == run_id and not record.state.final:
            continue
        status = _MLFLOW_STATUS[record.state] if record.run_id == run_id else "FAILED"
        tracker.finish(run_id, status)
        ended.append(run_id)
    return ended


def log_logs(tracker: tracking.Tracker, facts: Facts, attempt: AttemptDir) -> None:
    """The log of the attempt, among the artifacts of its run."""
    if attempt.log.exists():
        tracker.log_file(facts.run_id, attempt.log, tracking.EXECUTOR_LOG)


def forget_secrets(attempt: AttemptDir) -> None:
    """The launch needed parameters as they are; what is kept of it does not."""
    if not attempt.plan.exists():
        return
    plan = plan_from_json(attempt.plan.read_text(encoding="utf-8"))
    parameters = {name: redact.value(name, value) for name, value in plan.parameters.items()}
    if parameters != plan.parameters:
        write_atomically(attempt.plan, to_json(replace(plan, parameters=parameters)))
