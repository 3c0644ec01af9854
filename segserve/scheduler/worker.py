"""`python -m segserve.scheduler.worker`: waits for one order on stdin, drives one job (or looks after
MLflow's runs), ends. One that keeps a pipeline (`segserve.antenna.resident`) takes further orders.

SIGINT: the job is cancelled. SIGTERM: it is handed over. `kill -9`: somebody takes it over, at once.
A worker whose job was taken from it (its fence is stale) ends on the spot and writes nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from segserve import config, layout, process
from segserve.antenna import resident
from segserve.errors import SegserveError
from segserve.journal import StaleFence
from segserve.model import to_json
from segserve.pipeline import Context, Drive, HandedOver, Hold, end_badly, go_on, reconcile, retention, wire
from segserve.pipeline.events import EventFile

_LOOK_SECONDS = 1.0
_TAKEN = 75  # exit code of one whose job was taken away


def main() -> None:
    """Entry point of the process."""
    order = sys.stdin.readline()
    if not order:  # the scheduler has gone before there was anything to do
        return
    signal.signal(signal.SIGTERM, _hand_over)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with suppress(KeyboardInterrupt, HandedOver, StaleFence):
        _obey(json.loads(order))


def _hand_over(*_: Any) -> None:
    raise HandedOver


def _obey(order: Mapping[str, Any]) -> None:
    home = layout.home()
    if "reconcile" in order:
        ctx = Context(home, config.load())
        reconcile(ctx)
        wanted = ctx.settings.retention
        retention.collect(ctx, days=wanted.days, max_gb=wanted.max_gb)
        return
    if order.get("stay"):
        _stay(home, order)
        return
    job_id = order.get("job") or order["go_on"]
    ctx = Context(home, config.load(), EventFile(home.job(job_id).events))
    keep = _Keep(ctx, ctx.settings.queue.lease_s)
    if "go_on" in order:
        owner = to_json(process.identity())
        go_on(ctx, job_id, owner=owner, lease_s=keep.lease_s, keeping=keep.keeping)
        return
    hold = Hold(job_id, order["fence"], home.job(job_id), order["attempt"])
    with keep.keeping(hold), suppress(SegserveError):  # journal, MLflow run and events say how it failed
        _drive(ctx, hold)


def _stay(home: layout.Home, first: Mapping[str, Any]) -> None:
    """Keep a pipeline: this order, and those that follow it on stdin until none has come for a while."""
    settings = config.load()

    def orders() -> Iterator[Mapping[str, Any]]:
        yield first
        while select.select([sys.stdin], [], [], settings.service.idle_s)[0] and (line := sys.stdin.readline()):
            yield json.loads(line)

    def context(job_id: str) -> Context:
        return Context(home, settings, EventFile(home.job(job_id).events))

    def keeping(ctx: Context, hold: Hold) -> AbstractContextManager[None]:
        return _Keep(ctx, settings.queue.lease_s).keeping(hold)

    resident.stay(orders(), context, keeping)


def _drive(ctx: Context, hold: Hold) -> None:
    record = ctx.journal.get(hold.job_id)
    try:
        hidden = hold.folder.secrets.read_text(encoding="utf-8") if hold.folder.secrets.exists() else ""
        request = wire.from_json(record.request, hidden)
    except (ValueError, TypeError, KeyError) as error:
        malformed = SegserveError(f"The request in the journal cannot be read: {type(error).__name__}: {error}")
        end_badly(ctx, hold, malformed)
        raise malformed from None
    Drive(ctx, request, hold, queued=record).go()


@dataclass(frozen=True)
class _Keep:
    """Renews the lease of a job while it is driven, and listens for whether somebody wants it to end."""

    ctx: Context
    lease_s: float

    @contextmanager
    def keeping(self, hold: Hold) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(hold, over), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _beat(self, hold: Hold, over: threading.Event) -> None:
        renewed, told = float("-inf"), False
        queue = self.ctx.journal.queue
        while not over.wait(min(_LOOK_SECONDS, self.lease_s / 4)):
            try:
                if time.monotonic() - renewed > self.lease_s / 4:
                    queue.renew(hold.job_id, hold.fence, self.lease_s)
                    renewed = time.monotonic()
                if not told and not queue.wanted(hold.job_id, hold.fence):
                    told = True
                    os.kill(os.getpid(), signal.SIGINT)
            except StaleFence:
                if not over.is_set():
                    os._exit(_TAKEN)
            except (OSError, sqlite3.Error):  # a full disk: the lease decides how long we may go on like this
                continue


if __name__ == "__main__":
    main()
