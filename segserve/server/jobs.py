"""`/jobs`: submit, list, look, follow, fetch, cancel."""

from __future__ import annotations

import json
import shutil
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from segserve.errors import UsageError
from segserve.journal import Submitted, new_job_id
from segserve.model import JobState
from segserve.server import events, uploads
from segserve.server.access import Caller, Reader, Submitter, still_admitted
from segserve.server.desk import Desk, JobRequest, parsed
from segserve.server.problems import RESPONSES
from segserve.server.uploads import Limits

JobId = Annotated[str, Path(description="the whole id", max_length=40)]


class Accepted(BaseModel):
    """A job that stands in the queue, on the disk."""

    job: str
    new: bool = Field(description="false: an identical request is open, or came with the same Idempotency-Key")
    url: str
    events: str
    result: str


_FORM = {
    "type": "object",
    "required": ["executor"],
    "properties": {
        **JobRequest.model_json_schema()["properties"],
        "parameters": {"type": "string", "description": "a JSON object: the parameters of the entry point"},
        "images": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "every file of the form is an image, in this order",
        },
    },
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": JobRequest.model_json_schema()},
            "multipart/form-data": {"schema": _FORM},
        },
    }
}


def router(desk: Desk, limits: Limits) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/jobs", tags=["jobs"], responses=RESPONSES)

    @routes.post("", status_code=202, response_model=Accepted, openapi_extra=_BODY)
    async def submit(
        request: Request,
        caller: Submitter,
        idempotency_key: Annotated[str, Header(max_length=200, description="the same key is the same job")] = "",
    ) -> JSONResponse:
        """Put a job into the queue. When this answers, it is on the disk."""
        submitted = await _submit(desk, limits, request, caller, idempotency_key)
        base = f"{request.scope.get('root_path', '')}/jobs/{submitted.job_id}"
        accepted = Accepted(
            job=submitted.job_id, new=submitted.new, url=base, events=f"{base}/events", result=f"{base}/result"
        )
        return JSONResponse(accepted.model_dump(), status_code=202, headers={"Location": base})

    @routes.get("")
    def jobs(
        caller: Reader,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        state: Annotated[JobState | None, Query()] = None,
    ) -> list[dict[str, Any]]:
        """Your jobs, newest first; everybody's for an administrator."""
        return desk.jobs(user=caller.sees, limit=limit, state=state)

    @routes.get("/{job_id}")
    def show(job_id: JobId, caller: Reader) -> dict[str, Any]:
        """Everything known about one job."""
        return desk.show(desk.get(job_id, caller.sees))

    @routes.delete("/{job_id}", status_code=202)
    def cancel(job_id: JobId, caller: Submitter) -> dict[str, str]:
        """Stop a job. One that waits has ended when this answers; follow the events of another one."""
        return {"job": job_id, "state": str(desk.cancel(desk.get(job_id, caller.sees)))}

    @routes.get(
        "/{job_id}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "state, progress, log … end"}},
    )
    async def follow(
        request: Request, job_id: JobId, caller: Reader, last_event_id: Annotated[str, Header(max_length=60)] = ""
    ) -> StreamingResponse:
        """State, progress and log of a job as they come, until it has ended."""
        await run_in_threadpool(desk.get, job_id, caller.sees)
        stream = events.follow(desk, job_id, events.place(last_event_id), still_admitted(request))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @routes.get("/{job_id}/result", response_class=FileResponse)
    def result(job_id: JobId, caller: Reader) -> FileResponse:
        """output.json. 409 while the job is open; what ended it when it has no result."""
        return FileResponse(desk.output(desk.get(job_id, caller.sees)), media_type="application/json")

    @routes.get("/{job_id}/log", response_class=FileResponse, responses={200: {"content": {"text/plain": {}}}})
    def log(job_id: JobId, caller: Reader) -> FileResponse:
        """What MLflow and the executor have written in the latest attempt; of a build that failed, its log."""
        path = desk.log(desk.get(job_id, caller.sees))
        return FileResponse(path, media_type="text/plain; charset=utf-8", headers={"X-Content-Type-Options": "nosniff"})

    @routes.get("/{job_id}/files")
    def files(job_id: JobId, caller: Reader) -> list[dict[str, Any]]:
        """What is in the result: tables, pictures, exports, the report."""
        return desk.files(desk.get(job_id, caller.sees))

    @routes.get("/{job_id}/files/{name:path}", response_class=FileResponse)
    def file(job_id: JobId, name: Annotated[str, Path(max_length=1000)], caller: Reader) -> FileResponse:
        """One of these files."""
        path = desk.file(desk.get(job_id, caller.sees), name)
        # What an executor has written is not run as a page of this server.
        headers = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, headers=headers)

    return routes


async def _submit(desk: Desk, limits: Limits, request: Request, caller: Caller, key: str) -> Submitted:
    kind = request.headers.get("content-type", "")
    if kind.startswith("application/json"):
        wanted = checked(await _json(request))
        return await run_in_threadpool(desk.submit, wanted, caller=caller, key=key)
    job_id = new_job_id()
    try:
        form = await uploads.receive(request.stream(), kind, desk.folder(job_id).uploads, limits)
        wanted = checked(parsed(form.fields))
    except BaseException:
        shutil.rmtree(desk.folder(job_id).path, ignore_errors=True)
        raise
    # From here on the folder may be a job's: whoever gives up waiting for the thread takes nothing away.
    return await run_in_threadpool(
        desk.submit, wanted, caller=caller, key=key, job_id=job_id, uploads=tuple(form.files)
    )


def checked(values: Any) -> JobRequest:
    """The values as a request.

    Raises:
        RequestValidationError: with every field that is wrong.
    """
    try:
        return JobRequest.model_validate(values)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False)) from None


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The body is no JSON: {error}.") from None
