"""`/info`, `/readyz` and `/process`, as Antenna calls them.

`/info` and `/readyz` have short time limits there, so they answer from a catalogue that is read again beside them.
`/process` waits for its result as the SegServe routes do: the request is a job, and the same request later joins it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

import segserve
from segserve import api
from segserve.antenna import messages
from segserve.antenna.catalogue import Catalogue
from segserve.antenna.chains import RESPONSE
from segserve.errors import SegserveError
from segserve.journal import JobRecord
from segserve.server import permits
from segserve.server.access import Submitter
from segserve.server.desk import Desk
from segserve.server.problems import RESPONSES, RETRY_SECONDS

_LOOK_SECONDS = 0.03
_FRESH_SECONDS = 2.0


class Ready(BaseModel):
    """Slugs of the pipelines whose environments are built; none while nobody works on the queue."""

    status: list[str]


class Known:
    """The catalogue as it was a moment ago. Who asks gets what there is; what is old is read again meanwhile."""

    def __init__(self, session: api.Session) -> None:
        """Read it.

        Raises:
            UsageError: config.toml describes a pipeline that cannot be.
        """
        self._session = session
        self._lock = threading.Lock()
        self.catalogue: Catalogue = session.pipelines()
        self._read = time.monotonic()

    def look(self) -> Catalogue:
        """The catalogue, some seconds old at most when somebody asks often."""
        if time.monotonic() - self._read > _FRESH_SECONDS and self._lock.acquire(blocking=False):
            threading.Thread(target=self._again, name="catalogue", daemon=True).start()
        return self.catalogue

    def _again(self) -> None:
        try:
            self.catalogue = self._session.pipelines()
            self._read = time.monotonic()
        finally:
            self._lock.release()


def router(desk: Desk, known: Known, working: Callable[[], bool], sync_wait_s: float) -> APIRouter:
    """The routes. `working` says whether somebody works on the queue."""
    routes = APIRouter(tags=["Antenna"])
    about = f"segserve {segserve.__version__}: any segmentation repository, and chains of them"

    @routes.get("/readyz", responses={503: {"model": Ready, "description": "no pipeline can be asked now"}})
    async def readyz() -> JSONResponse:
        """The pipelines that can be asked without building anything."""
        ready = known.look().ready() if working() else []
        return JSONResponse(Ready(status=ready).model_dump(), status_code=200 if ready else 503)

    @routes.get("/info")
    async def info() -> messages.Info:
        """What this service is: all pipelines and algorithms, with category maps; also those that are not ready."""
        return known.look().info(about)

    @routes.post("/process", response_model=messages.PipelineResponse, responses=RESPONSES)
    async def process(request: Request, caller: Submitter, wanted: messages.PipelineRequest) -> Response:
        """Run a pipeline on images. It waits for the result; the same request again joins the one that runs."""
        submitted = await run_in_threadpool(
            desk.session.process,
            known.catalogue,
            wanted,
            user=caller.user,
            others=not caller.local,
            priority=caller.priority,
            quota=permits.quota(desk.session, caller, 0),
        )
        desk.wake()
        record = await _wait(desk, request, submitted.job_id, sync_wait_s)
        if not record.state.final:
            return _come_back(record)
        path = await run_in_threadpool(_response, desk, record)
        content = await run_in_threadpool(path.read_bytes)
        done = BackgroundTask(desk.session.ctx.journal.queue.delivered, record.job_id)
        return Response(content, media_type="application/json", background=done)

    return routes


async def _wait(desk: Desk, request: Request, job_id: str, sync_wait_s: float) -> JobRecord:
    began = time.monotonic()
    while True:
        record = await run_in_threadpool(desk.get, job_id, None)
        late = time.monotonic() - began > sync_wait_s
        if record.state.final or late or await request.is_disconnected():
            return record
        # Short at first, then a twentieth of what it has taken already.
        await anyio.sleep(min(0.5, max(_LOOK_SECONDS, (time.monotonic() - began) / 20)))


def _response(desk: Desk, record: JobRecord) -> Path:
    """The file with the answer.

    Raises:
        SegserveError: with the status of what ended the job; it is the next request's turn to try again.
    """
    try:
        return desk.file(record, RESPONSE)
    except SegserveError:
        desk.session.ctx.journal.queue.delivered(record.job_id)
        raise


def _come_back(record: JobRecord) -> Response:
    text = (
        f"Job {record.job_id} is {record.state}; its environments may be built for the first time."
        " Send the same request again: it is the same job."
    )
    return JSONResponse({"detail": text}, 503, {"Retry-After": str(RETRY_SECONDS)})
