"""The routes of SegServe, as SegUI, acia and the CI of executors call them, in front of the same queue.

They wait for the result. When it does not come within `sync_wait_s` (an environment is built for the first time), the
answer is 503 with Retry-After; the job goes on, and the same request later is the same job, also when it has ended
meanwhile. `parameters` that cannot be read count as none, with a warning in the log: that is what clients rely on.
"""

from __future__ import annotations

import codecs
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from segserve import collect, redact, refs
from segserve import format as polygons
from segserve.errors import SegserveError, UsageError
from segserve.format import Document
from segserve.journal import JobRecord, new_job_id
from segserve.server import uploads
from segserve.server.access import Caller, Submitter
from segserve.server.desk import Desk, JobRequest
from segserve.server.problems import RETRY_SECONDS, retry_after
from segserve.server.uploads import Limits, Upload

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_LABELS = ("method_repo", "entrypoint", "version", "parameters")
_MOST_SERIES = 200  # clients choose the labels; more than so many are counted together


def _form(field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The description of a body with files."""
    form = {"type": "object", "required": [field], "properties": {field: schema}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


_FILE = {"type": "string", "format": "binary"}


class _Metrics:
    """Names and labels as SegServe has them (`segmenation`: sic)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seen: set[tuple[str, ...]] = set()
        self._cells = Histogram("segmentation_cells", "Objects per image", _LABELS, registry=registry)
        self._seconds = Histogram("segmentation_seconds", "Seconds per request", _LABELS, registry=registry)
        self._each = Histogram("segmentation_per_image_seconds", "Seconds per image", _LABELS, registry=registry)
        self._images = Counter("segmenation_images", "Images", _LABELS, registry=registry)

    def count(self, labels: tuple[str, ...], objects: list[int], seconds: float) -> None:
        """A request that was answered."""
        if len(self._seen) >= _MOST_SERIES and labels not in self._seen:
            labels = ("other",) * len(_LABELS)
        self._seen.add(labels)
        self._seconds.labels(*labels).observe(seconds)
        self._images.labels(*labels).inc(len(objects))
        for number in objects:
            self._cells.labels(*labels).observe(number)
            self._each.labels(*labels).observe(seconds / len(objects))


def router(desk: Desk, limits: Limits, registry: CollectorRegistry, sync_wait_s: float) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["SegServe"])
    waiting = _Waiting(desk, limits, _Metrics(registry), sync_wait_s)

    @routes.post("/image-prediction/", openapi_extra=_form("file", _FILE))
    async def image_prediction(
        request: Request,
        caller: Submitter,
        repo: Annotated[str, Query(description="URL of the executor's repository")],
        entry_point: str = "main",
        version: str = "main",
        parameters: str = "{}",
    ) -> Response:
        """Segment one image (form field `file`): output.json and `filename`."""
        wanted = _wanted(repo, entry_point, version, parameters)
        return await waiting.answer(request, caller, wanted, "", single=True)

    @routes.post("/batch-image-prediction/", openapi_extra=_form("files", {"type": "array", "items": _FILE}))
    async def batch_image_prediction(
        request: Request,
        caller: Submitter,
        repo: Annotated[str, Query(description="URL of the executor's repository")],
        entry_point: str = "main",
        version: str = "main",
        parameters: str = "{}",
        username: str = "",
    ) -> Response:
        """Segment many images (form fields `files`): output.json."""
        wanted = _wanted(repo, entry_point, version, parameters)
        return await waiting.answer(request, caller, wanted, username, single=False)

    return routes


def _wanted(repo: str, entry: str, version: str, parameters: str) -> dict[str, Any]:
    return {"executor": repo, "entry": entry, "version": version, "parameters": lenient(parameters), "overlays": 0}


def lenient(text: str) -> dict[str, Any]:
    """The parameters in a query; none when they are no JSON object (SegUI may send `undefined`)."""
    try:
        values = json.loads(text).items()
        return {
            str(name): value if isinstance(value, (str, int, float)) else json.dumps(value)
            for name, value in values
            if value is not None
        }
    except (ValueError, AttributeError, RecursionError):
        logger.warning("'parameters' is no JSON object, and is taken as {}: %s", redact.text(text[:200]))
        return {}


class _Waiting:
    """Puts a request into the queue and waits for its result, without a thread that waits."""

    def __init__(self, desk: Desk, limits: Limits, metrics: _Metrics, sync_wait_s: float) -> None:
        self._desk, self._limits, self._metrics, self._sync_wait_s = desk, limits, metrics, sync_wait_s

    async def answer(
        self, request: Request, caller: Caller, values: dict[str, Any], username: str, *, single: bool
    ) -> Response:
        began = time.monotonic()
        try:
            job_id, files = await self._submit(request, caller, values, username, single=single)
            record = await self._wait(request, job_id, began)
            if not record.state.final:
                return _come_back(record)
            output = await run_in_threadpool(self._desk.output, record)
            body, objects = await run_in_threadpool(_body, output, files[0].name if single else None)
        except SegserveError as refusal:
            return failure(refusal)
        labels = (refs.parse(values["executor"]).repo, values["entry"], values["version"], _shown(values["parameters"]))
        self._metrics.count(labels, objects, time.monotonic() - began)
        done = BackgroundTask(self._desk.session.ctx.journal.queue.delivered, job_id)
        return Response(body, media_type="application/json", background=done)

    async def _submit(
        self, request: Request, caller: Caller, values: dict[str, Any], username: str, *, single: bool
    ) -> tuple[str, list[Upload]]:
        job_id = new_job_id()
        folder = self._desk.folder(job_id)
        try:
            kind = request.headers.get("content-type", "")
            form = await uploads.receive(request.stream(), kind, folder.uploads, self._limits)
            _check_count(len(form.files), single=single)
            wanted = JobRequest.model_validate(values)
        except ValidationError as error:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise UsageError(f"The query is not what it should be: {error.errors()[0]['msg']}.") from None
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        submitted = await run_in_threadpool(
            self._desk.submit,
            wanted,
            caller=caller,
            share=username,
            job_id=job_id,
            uploads=tuple(form.files),
            awaited=True,
        )
        return submitted.job_id, form.files

    async def _wait(self, request: Request, job_id: str, began: float) -> JobRecord:
        while True:
            record = await run_in_threadpool(self._desk.get, job_id, None)
            late = time.monotonic() - began > self._sync_wait_s
            if record.state.final or late or await request.is_disconnected():
                return record
            await anyio.sleep(_LOOK_SECONDS)


def _check_count(files: int, *, single: bool) -> None:
    if not files or (single and files != 1):
        raise UsageError(
            "The form has more than one image." if files else "The form has no image.",
            hint="Fields: 'file' for one image, 'files' for many.",
        )


def _body(output: Path, filename: str | None) -> tuple[bytes, list[int]]:
    """The bytes of the answer, and how many objects each image has.

    The text is not parsed as a whole: `json.loads` of a large one holds the interpreter, and with it all other answers,
    for seconds.
    """
    with collect.opened(output) as stream:
        document = polygons.decode(stream)
    objects = [int(count) for count in document.counts()] if isinstance(document, Document) else []
    text = output.read_bytes().removeprefix(codecs.BOM_UTF8).rstrip()
    if filename is not None:
        text = text[:-1] + b',"filename":' + json.dumps(filename, ensure_ascii=False).encode() + b"}"
    return text, objects


def _come_back(record: JobRecord) -> Response:
    text = (
        f"Job {record.job_id} is {record.state}; the environment of the executor may be built for the first time."
        " Send the same request again: it is the same job."
    )
    return JSONResponse({"detail": text, "message": text}, 503, {"Retry-After": str(RETRY_SECONDS)})


def failure(error: SegserveError) -> Response:
    """An error as these routes tell it."""
    text = " ".join(filter(None, (error.message, error.hint)))
    status = 422 if error.http_status in (401, 403) else error.http_status  # SegUI takes those for its own login
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else retry_after(error)
    return JSONResponse({"detail": text, "message": text}, status, headers)


def _shown(parameters: dict[str, Any]) -> str:
    masked = {name: redact.value(name, str(value)) for name, value in parameters.items()}
    return json.dumps(masked, sort_keys=True, ensure_ascii=False)[:300]
