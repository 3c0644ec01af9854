"""The process that keeps a pipeline: it answers one request after the other, and its stages stay loaded between them.

It takes orders as a worker of the queue does, but waits for the next one when a job has ended. It ends when nobody had
an order for `service.idle_s` seconds, or when the scheduler has gone; its stages end with it. A cancelled job costs the
stages, too: nobody knows what they were at.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from segserve import devices, redact
from segserve.antenna import answer, chain, chains
from segserve.antenna.chains import RESPONSE, Asked, Chain
from segserve.antenna.images import Fetcher
from segserve.antenna.line import StageDown
from segserve.antenna.stages import Stage
from segserve.errors import Defect, ExecutorFailed, RunCancelled, SegserveError, disk_full
from segserve.journal import StaleFence
from segserve.model import JobState, write_atomically
from segserve.pipeline import Context, HandedOver, Hold, end_badly, wire
from segserve.store import locked

Orders = Iterator[Mapping[str, Any]]


def stay(
    orders: Orders, context: Callable[[str], Context], keeping: Callable[[Context, Hold], AbstractContextManager[None]]
) -> None:
    """Work on orders (`job`, `fence`, `attempt`) until there are no more. `context` is that of one job.

    Raises:
        HandedOver: we were asked to stop; the job at hand waits in the queue again.
        StaleFence: somebody else has it.
    """
    kept = _Kept()
    try:
        for order in orders:
            job_id = order["job"]
            ctx = context(job_id)
            hold = Hold(job_id, order["fence"], ctx.home.job(job_id), order["attempt"])
            with keeping(ctx, hold):
                _recorded(ctx, hold, kept)
    finally:
        kept.close()


class _Kept:
    """The stages of the pipeline that was asked for last, and the GPUs that they share."""

    def __init__(self) -> None:
        self._chain: Chain | None = None
        self._others = True
        self._stages: tuple[Stage, ...] = ()
        self._lease = devices.Lease()

    def stages(self, ctx: Context, asked: Asked, job_id: str) -> tuple[Stage, ...]:
        """The stages of a pipeline; those of another version of it, or not shut in as these are, end first."""
        wanted = asked.chain
        if (wanted, asked.others) != (self._chain, self._others):
            self.close()
            self._lease = devices.lease(
                ctx.settings.service.gpus,
                job=job_id,
                on_wait=lambda text: ctx.reporter.phase(f"Waiting for a GPU: {text}"),
            )
            own = Context(ctx.home, ctx.settings)  # what they say belongs to no single request
            requests = [replace(wire.from_json(one.request), others=asked.others) for one in wanted.stages]
            self._stages = tuple(Stage(own, request, self._lease, {"pipeline": wanted.slug}) for request in requests)
            self._chain, self._others = wanted, asked.others
        return self._stages

    def close(self) -> None:
        """End all stages, and let go of the GPUs."""
        if self._stages:
            with ThreadPoolExecutor(len(self._stages)) as pool:
                list(pool.map(Stage.close, self._stages))
        self._stages, self._chain = (), None
        self._lease.close()


def _recorded(ctx: Context, hold: Hold, kept: _Kept) -> None:
    """One job; however it ends, it is written down."""
    try:
        with locked(hold.folder.lock):
            _answer(ctx, hold, kept)
    except KeyboardInterrupt:
        kept.close()
        end_badly(ctx, hold, RunCancelled("It was cancelled."))
    except HandedOver:
        ctx.journal.queue.put_back(hold.job_id, hold.fence, error=None, counted=False)
        raise
    except StaleFence:
        raise
    except SegserveError as failure:
        end_badly(ctx, hold, failure)
    except Exception as defect:
        kept.close()
        text = f"A defect of segserve: {type(defect).__name__}: {redact.text(str(defect))}"
        end_badly(ctx, hold, disk_full(defect, ctx.home.path) or Defect(text))


def _answer(ctx: Context, hold: Hold, kept: _Kept) -> None:
    began = time.monotonic()
    asked = _asked(ctx, hold)
    folder = hold.folder
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    ctx.journal.move(hold.job_id, hold.fence, JobState.RUNNING)
    ctx.reporter.phase(f"Running {asked.chain.slug}")
    stages = kept.stages(ctx, asked, hold.job_id)
    total = len(asked.images)
    fetched = folder.fetched
    fetched.mkdir(mode=0o700, exist_ok=True)
    try:
        if total:
            _start(stages)
        done = chain.run(
            asked,
            stages,
            Fetcher(fetched, ctx.settings.fetch),
            done=lambda count: ctx.reporter.progress(count, total, "images"),
        )
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    found = answer.response(asked, done, time.monotonic() - began)
    folder.result.mkdir(exist_ok=True)
    write_atomically(folder.result / RESPONSE, found.model_dump_json())
    _commit(ctx, hold, done)


def _start(stages: tuple[Stage, ...]) -> None:
    """Have all stages loaded, side by side: the second one is not to wait for the first image."""
    try:
        with ThreadPoolExecutor(len(stages)) as pool:
            list(pool.map(Stage.start, stages))
    except StageDown as gone:
        raise ExecutorFailed(f"A stage cannot be loaded: {gone}.", hint="`segserve ps --all` shows its job.") from None


def _commit(ctx: Context, hold: Hold, done: chain.Run) -> None:
    seconds = ", ".join(f"{key} {value:.2f} s" for key, value in done.seconds.items())
    ctx.reporter.note(f"Seconds of the stages: {seconds}")
    ctx.journal.move(hold.job_id, hold.fence, JobState.COLLECTING)
    warnings = [f"image {one.image.id}: {text}" for one in done.outcomes for text in one.errors]
    facts = {"result": hold.folder.result, "warnings": warnings[:100], "error": None}
    ctx.journal.move(hold.job_id, hold.fence, JobState.SUCCEEDED, **facts)


def _asked(ctx: Context, hold: Hold) -> Asked:
    try:
        return chains.from_json(ctx.journal.get(hold.job_id).request)
    except (ValueError, TypeError, KeyError) as error:
        raise SegserveError(f"The request in the journal cannot be read: {type(error).__name__}: {error}") from None
