"""Whether it lives, what it can do, how it is.

`/livez` has the shape that Antenna reads (`antenna` has the others); `/status`, `/metrics` are ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

import segserve
from segserve.model import JobState
from segserve.server.desk import Desk
from segserve.server.places import Places


class Alive(BaseModel):
    """The process answers."""

    status: bool = True


class Status(BaseModel):
    """How the queue is: jobs per lane, and the slots that there are."""

    version: str
    working: bool
    waiting: dict[str, int]
    driven: dict[str, int]
    slots: dict[str, int]
    gpus: int


class _QueueMetrics(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def collect(self) -> list[Metric]:
        """Read at every scrape: the journal is the truth, also after a restart."""
        queue = self._desk.session.ctx.journal.queue
        waiting = GaugeMetricFamily("segserve_jobs_waiting", "Jobs in the queue", labels=["lane"])
        driven = GaugeMetricFamily("segserve_jobs_driven", "Jobs that have begun and not ended", labels=["lane"])
        slots = GaugeMetricFamily("segserve_slots", "Jobs that may be driven at a time", labels=["lane"])
        for lane, most in self._desk.slots.items():
            waiting.add_metric([lane], queue.waiting().get(lane, 0))
            driven.add_metric([lane], queue.driven().get(lane, 0))
            slots.add_metric([lane], most)
        return [waiting, driven, slots, *self._states(), *self._disk()]

    def _states(self) -> list[Metric]:
        queue = self._desk.session.ctx.journal.queue
        jobs = GaugeMetricFamily("segserve_jobs", "Jobs that have not ended", labels=["state"])
        ended = CounterMetricFamily("segserve_jobs_ended", "Jobs that have ended", labels=["state"])
        phases = SummaryMetricFamily("segserve_phase_seconds", "Seconds of jobs in a state", labels=["phase"])
        counted, passages = queue.states(), queue.passages()
        for state in JobState:
            if state.final:
                ended.add_metric([state.value], sum(one.times for one in passages if one.new is state))
                continue
            jobs.add_metric([state.value], counted.get(state, 0))
            of_it = [one for one in passages if one.old is state]
            phases.add_metric([state.value], sum(one.times for one in of_it), sum(one.seconds for one in of_it))
        return [jobs, ended, phases]

    def _disk(self) -> list[Metric]:
        home = self._desk.session.ctx.home
        free = GaugeMetricFamily("segserve_disk_free_bytes", "Left where jobs, environments and caches lie")
        free.add_metric([], shutil.disk_usage(home.path).free)
        kept = GaugeMetricFamily("segserve_cached", "Environments and mirrors of repositories", labels=["kind"])
        for kind, folder in (("environments", home.environments), ("repositories", home.repositories)):
            kept.add_metric([kind], sum(one.is_dir() for one in folder.iterdir()) if folder.is_dir() else 0)
        return [free, kept]


def router(desk: Desk, registry: CollectorRegistry, places: Places, working: Callable[[], bool]) -> APIRouter:
    """The routes. `working` says whether somebody works on the queue."""
    routes = APIRouter(tags=["service"])
    registry.register(_QueueMetrics(desk))
    requests = Gauge("segserve_requests", "Requests that are answered now", registry=registry)
    requests.set_function(lambda: places.count)

    @routes.get("/livez")
    async def livez() -> Alive:
        """The process answers."""
        return Alive()

    @routes.get("/status")
    def status() -> Status:
        """How the queue is."""
        queue = desk.session.ctx.journal.queue
        return Status(
            version=segserve.__version__,
            working=working(),
            waiting=dict(queue.waiting()),
            driven=dict(queue.driven()),
            slots=dict(desk.slots),
            gpus=desk.gpus,
        )

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(await run_in_threadpool(generate_latest, registry), media_type=CONTENT_TYPE_LATEST)

    return routes
