"""What the routes ask of journal and queue. Functions that may block for milliseconds: routes call them in threads."""

from __future__ import annotations

import json
import mimetypes
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from segserve import api
from segserve.errors import InvalidParameters, NotFound, SegserveError, UsageError
from segserve.inputs import inside
from segserve.journal import JobRecord, Submitted, new_job_id
from segserve.layout import JobDir
from segserve.model import JobState
from segserve.server import permits
from segserve.server.access import Caller
from segserve.server.uploads import Upload

Scalar = str | int | float | bool


class JobRequest(BaseModel):
    """What is to run on what. The words are those of `segserve run`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    executor: str = Field(min_length=1, description="repository, with @revision and #entry point if you like")
    version: str | None = Field(None, description="branch, tag or commit, if `executor` does not say it")
    entry: str | None = Field(None, description="entry point, if `executor` does not say it")
    parameters: dict[str, Scalar] = Field(default_factory=dict, description="of the entry point")
    images: list[str] = Field(default_factory=list, description="files or folders on the server; else upload them")
    first: int | None = Field(None, ge=1, description="only so many images, spread evenly")
    channel: str | None = Field(None, description="index or name")
    z: str | None = Field(None, description="each, max, mean or an index")
    series: str | None = Field(None, description="index, name or all")
    frames: str | None = Field(None, description="a:b, a:b:step or an index")
    depth: int | None = Field(None, description="8 or 16 bit")
    gpus: str = Field("auto", description="a number, or auto")
    timeout: float | None = Field(None, ge=0, description="seconds, for each attempt")
    overlays: int | None = Field(24, ge=0, description="pictures of so many images; null: of all")
    exports: str | None = Field(None, description="formats to export to, separated by commas")
    env: str | None = Field(None, description="kind of environment: uv, conda, docker, local")
    reuse: bool | None = Field(None, description="take an earlier result of the same request; null: as configured")
    priority: int = Field(0, ge=-10, le=0, description="lower than 0 lets others go first")

    @model_validator(mode="after")
    def _fits(self) -> JobRequest:
        """What neither a row nor a command line can hold is refused now."""
        words = [value for value in dict(self).values() if isinstance(value, str)]
        words += [*self.parameters, *map(str, self.parameters.values()), *self.images]
        if any("\0" in word or _SURROGATE.search(word) for word in words):
            raise ValueError("a text has a null or half a character")
        return self


_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Desk:
    """One per server."""

    session: api.Session
    gpus: int  # how many the machine has
    slots: Mapping[str, int]  # jobs that may be driven at a time, per lane
    wake: Callable[[], None]  # tells the scheduler that there is something new

    def folder(self, job_id: str) -> JobDir:
        """The folder of a job, or of one that is to be."""
        return self.session.ctx.home.job(job_id)

    def submit(
        self,
        wanted: JobRequest,
        *,
        caller: Caller,
        share: str = "",
        key: str = "",
        job_id: str = "",
        uploads: tuple[Upload, ...] = (),
        awaited: bool = False,
    ) -> Submitted:
        """Put a request into the queue. Its uploads are taken away when it is refused. `share`: see `Caller.share`.

        Raises:
            UsageError, KeyReused: it cannot be one.
            AccessDenied, QuotaExceeded: not of this caller.
        """
        try:
            return self._submit(wanted, caller, share, key, job_id, uploads, awaited)
        except BaseException:
            if job_id:
                shutil.rmtree(self.folder(job_id).path, ignore_errors=True)
            raise

    def _submit(
        self,
        wanted: JobRequest,
        caller: Caller,
        share: str,
        key: str,
        job_id: str,
        uploads: tuple[Upload, ...],
        awaited: bool,
    ) -> Submitted:
        if uploads and wanted.images:
            raise UsageError("Images are named and uploaded.", hint="Do one of both.")
        permits.files(caller, wanted.images)
        given = [upload.path for upload in uploads] or wanted.images
        request = self.session.request(
            wanted.executor,
            given,
            rev=wanted.version,
            entry=wanted.entry,
            parameters=wanted.parameters,
            **wanted.model_dump(include={*_SAME_WORDS}),
            kind=wanted.env,
        )
        permits.repository(self.session, caller, request.ref)
        job_id = job_id or new_job_id()
        images = {f"{number} {upload.path.name}": upload.sha256 for number, upload in enumerate(uploads)}
        submitted = api.submit(
            self.session.ctx,
            permits.bounded(self.session, caller, request, self.folder(job_id).uploads),
            gpus=self.gpus,
            job_id=job_id,
            user=caller.share(share),
            priority=min(wanted.priority, caller.priority),
            key=key,
            images=None if wanted.images else images,
            awaited=awaited,
            quota=permits.quota(self.session, caller, sum(upload.size for upload in uploads)),
        )
        if submitted.new:
            self.wake()
        return submitted

    def permit(self, caller: Caller, executor: str) -> None:
        """Refuse a reference that the caller may not run, and so may not have looked at either.

        Raises:
            InvalidRef, AccessDenied.
        """
        permits.repository(self.session, caller, self.session.request(executor).ref)

    def get(self, job_id: str, user: str | None) -> JobRecord:
        """A job by its whole id; one of somebody else's is not there (`user` None: whoever asks sees all).

        Raises:
            NotFound: there is none.
        """
        record = self.session.ctx.journal.get(job_id)
        if record.job_id != job_id or (user is not None and record.user != user):
            raise NotFound(f"There is no job '{job_id}'.", hint="GET /jobs lists them.")
        return record

    def jobs(self, *, user: str | None, limit: int, state: JobState | None) -> list[dict[str, Any]]:
        """Rows, newest first."""
        return [self.row(record) for record in self.session.ctx.journal.jobs(limit, state, user=user)]

    def row(self, record: JobRecord) -> dict[str, Any]:
        """A job in a list."""
        return {**self.session.row(record), "user": record.user, "priority": record.priority, "attempt": record.attempt}

    def show(self, record: JobRecord) -> dict[str, Any]:
        """Everything known about a job, but where it lies on the server."""
        facts = {name: value for name, value in self.session.facts(record).items() if name not in _OF_THE_SERVER}
        return {**self.row(record), **facts, "mlflow": _OWN_MLFLOW.sub("mlflow/", facts["mlflow"])}

    def cancel(self, record: JobRecord) -> JobState:
        """Want it to end; its worker sees to it."""
        state = self.session.ctx.journal.queue.cancel(record.job_id)
        self.wake()
        return state

    def output(self, record: JobRecord) -> Path:
        """output.json of a job that has succeeded.

        Raises:
            SegserveError: it has not, or its entry point makes none; with the status of what ended it.
        """
        return self.file(record, "output.json")

    def file(self, record: JobRecord, name: str) -> Path:
        """A file of the result.

        Raises:
            NotFound, SegserveError.
        """
        folder = _result(record)
        relative = PurePosixPath(name)
        path = folder / relative
        if relative.is_absolute() or not inside(str(path.absolute()), [folder.resolve()]) or not _is_file(path):
            raise NotFound(f"The result of job {record.job_id} has no file '{name}'.", hint="…/files lists them.")
        return path.resolve()

    def log(self, record: JobRecord) -> Path:
        """The log of a job's latest attempt, or of the build that failed.

        Raises:
            NotFound: nothing has been written yet.
        """
        path = Path(self.session.facts(record)["log"])
        if not path.is_file():
            raise NotFound(f"Job {record.job_id} has written no log.", hint="…/events says how it goes.")
        return path

    def files(self, record: JobRecord) -> list[dict[str, Any]]:
        """The files of a result: name, bytes, media type."""
        folder = _result(record)
        return [
            {
                "name": path.relative_to(folder).as_posix(),
                "bytes": path.stat().st_size,
                "type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]


_SAME_WORDS = ("first", "channel", "z", "series", "frames", "depth", "gpus", "timeout", "overlays", "exports", "reuse")
_OF_THE_SERVER = ("log", "result")
_OWN_MLFLOW = re.compile(r"http://127\.0\.0\.1:\d+/(?=#)")  # nobody reaches it but through us


class NotReady(SegserveError):
    """The job has not ended yet."""

    exit_code, http_status = 6, 409


class JobFailed(SegserveError):
    """The job has ended, without a result."""

    exit_code, http_status = 4, 502


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _result(record: JobRecord) -> Path:
    if not record.state.final:
        raise NotReady(f"Job {record.job_id} is {record.state}.", hint=f"GET /jobs/{record.job_id}/events says more.")
    if record.state is not JobState.SUCCEEDED:
        error: Mapping[str, str] = record.error
        raise JobFailed(
            f"Job {record.job_id} has {record.state}: {error.get('message', '')}".removesuffix(": "),
            hint=error.get("hint", ""),
            quote=error.get("quote", ""),
        )
    folder = Path(record.result)
    if not folder.is_dir():
        raise NotFound(f"The result of job {record.job_id} is not on this machine any more.")
    return folder


def parsed(fields: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a form as those of a `JobRequest`: `parameters` is JSON, what is empty was not given.

    Raises:
        InvalidParameters: `parameters` is no JSON object.
    """
    values: dict[str, Any] = {name: value for name, value in fields.items() if value != ""}
    if "parameters" in values:
        try:
            values["parameters"] = json.loads(values["parameters"])
        except (ValueError, RecursionError) as error:
            raise InvalidParameters(f"The field 'parameters' is no JSON: {error}.") from None
    return values
