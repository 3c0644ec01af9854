"""`Scheduler`: who drives what, and with what right. A pass over the queue costs a few milliseconds and starts nothing
slow: workers are started before they are needed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from segserve import process
from segserve.antenna.chains import LANE
from segserve.errors import SegserveError
from segserve.journal import JobRecord
from segserve.model import to_json
from segserve.pipeline import Context, adrift
from segserve.pipeline.submit import GPU
from segserve.tracking.embedded import with_import_path

logger = logging.getLogger(__name__)

_LOG_BYTES = 5 << 20
RECONCILE_SECONDS = 300.0
START_SECONDS = 60.0  # until a worker renews the lease itself: it may have to be loaded first, on a busy machine


@dataclass
class _Worker:
    process: process.Popen[bytes]
    owner: str  # its identity as JSON: what stands in the row of its job
    job_id: str = ""
    told: float = 0.0  # when it was given its job, monotonic

    def send(self, order: Mapping[str, object]) -> None:
        """One line; it may have ended."""
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None  # it was started with a pipe
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def end_orders(self) -> None:
        """There will be no further one."""
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.close()


class Scheduler:
    """One pass at a time over the queue of a home. The caller holds `home.scheduler_lock`."""

    def __init__(self, ctx: Context, slots: Mapping[str, int]) -> None:
        self._ctx, self._slots = ctx, slots
        self._busy: list[_Worker] = []
        self._residents: dict[str, _Worker] = {}  # lane of a pipeline → who keeps it
        self._spare: _Worker | None = None
        self._reconciled = float("-inf")  # monotonic

    def look(self) -> None:
        """One pass. What the disk or the database refuses now is tried in the next one."""
        try:
            self._reap()
            self._adopt()
            self._dispatch()
            self._dispatch_pipelines()
            self._reconcile()
        except (OSError, sqlite3.Error, SegserveError) as failure:
            logger.warning("The queue could not be looked at: %s: %s", type(failure).__name__, failure)

    def stop(self, patience_s: float) -> None:
        """Ask the workers to hand their jobs over and wait for that; what runs goes on under its supervisors."""
        if self._spare is not None:
            self._dismiss(self._spare)
        workers = [*self._busy, *self._residents.values()]
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        for worker in workers:
            with suppress(process.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))

    def _reap(self) -> None:
        self._busy = [worker for worker in self._busy if worker.process.poll() is None]
        self._residents = {lane: one for lane, one in self._residents.items() if one.process.poll() is None}
        if self._spare is not None and self._spare.process.poll() is not None:
            self._spare = None

    def _adopt(self) -> None:
        """Jobs whose driver has gone: a worker finds out what has become of them."""
        for record in self._ctx.journal.begun_jobs():
            if not self._on_its_way(record) and adrift(self._ctx, record):
                self._give(self._worker(), {"go_on": record.job_id}, record.job_id)

    def _on_its_way(self, record: JobRecord) -> bool:
        """Whether a worker was told to go on with a job and has had no time yet to say that it does."""
        recently = time.monotonic() - START_SECONDS
        return any(
            worker.job_id == record.job_id and worker.owner != record.owner and worker.told > recently
            for worker in (*self._busy, *self._residents.values())
        )

    def _dispatch(self) -> None:
        driven = self._ctx.journal.queue.driven()
        for lane, most in self._slots.items():
            for _ in range(most - driven.get(lane, 0)):
                worker = self._worker()
                claim = self._ctx.journal.queue.take(lane, owner=worker.owner, lease_s=self._ctx.settings.queue.lease_s)
                if claim is None:
                    break
                order = {"job": claim.job_id, "fence": claim.fence, "attempt": claim.attempt}
                self._give(worker, order, claim.job_id)

    def _dispatch_pipelines(self) -> None:
        """One request at a time for each pipeline, by whoever keeps it."""
        queue = self._ctx.journal.queue
        lanes = queue.ready(LANE)
        if not self._residents and not lanes:
            return
        driven = queue.driven()
        if self._slots.get(GPU) and queue.ready(GPU):  # a job needs a GPU that a pipeline may hold without need
            self._dismiss_idle(driven, len(self._residents))
        for lane in lanes:
            if not driven.get(lane) and self._has_room(lane, driven):
                self._order(lane)

    def _has_room(self, lane: str, driven: Mapping[str, int]) -> bool:
        most = self._ctx.settings.service.residents
        if lane not in self._residents:
            self._dismiss_idle(driven, len(self._residents) + 1 - most)
        return lane in self._residents or len(self._residents) < most

    def _order(self, lane: str) -> None:
        worker = self._residents.get(lane) or self._worker()
        lease_s = self._ctx.settings.queue.lease_s
        claim = self._ctx.journal.queue.take(lane, owner=worker.owner, lease_s=lease_s)
        if claim is None:
            return
        if worker is self._spare:
            self._spare = None
        self._residents[lane] = worker
        worker.job_id, worker.told = claim.job_id, time.monotonic()
        worker.send({"stay": True, "job": claim.job_id, "fence": claim.fence, "attempt": claim.attempt})

    def _dismiss_idle(self, driven: Mapping[str, int], count: int) -> None:
        """Let the `count` pipelines end that nobody has asked for longest."""
        idle = sorted((one.told, lane) for lane, one in self._residents.items() if not driven.get(lane))
        for _, lane in idle[: max(0, count)]:
            self._residents.pop(lane).end_orders()

    def _reconcile(self) -> None:
        """From time to time somebody ends the MLflow runs of attempts that were killed at a bad moment."""
        if time.monotonic() > self._reconciled + RECONCILE_SECONDS and self._ctx.journal.jobs(limit=1):
            self._reconciled = time.monotonic()
            self._give(self._worker(), {"reconcile": True}, "")

    def _worker(self) -> _Worker:
        """A worker that waits for a job."""
        if self._spare is None or self._spare.process.poll() is not None:
            self._spare = self._start()
        return self._spare

    def _start(self) -> _Worker:
        log = self._ctx.home.workers_log
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".1.log"))
        with open(log, "ab", opener=_private) as stream:
            started = process.spawn(
                [sys.executable, "-P", "-m", "segserve.scheduler.worker"],
                cwd=self._ctx.home.path,
                env=with_import_path(os.environ),
                stdin=process.PIPE,
                stdout=stream,
                stderr=stream,
            )
        return _Worker(started, to_json(process.identity(started.pid)))

    def _give(self, worker: _Worker, order: Mapping[str, object], job_id: str) -> None:
        worker.job_id, worker.told = job_id, time.monotonic()
        self._busy.append(worker)
        self._spare = None
        # A worker that was killed has claimed nothing but its lease: its job is adrift, and found in the next pass.
        worker.send(order)
        worker.end_orders()

    def _dismiss(self, worker: _Worker) -> None:
        worker.end_orders()
        worker.process.wait()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
