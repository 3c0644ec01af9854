"""Errors as problem details (RFC 9457). `detail` has message and hint: a client that knows nothing else shows both."""

from __future__ import annotations

import logging
import math
import sqlite3
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from segserve import redact
from segserve.errors import QuotaExceeded, SegserveError, disk_full
from segserve.layout import Home

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 30  # what a client is told to wait when it is our turn


class Problem(BaseModel):
    """What is answered instead of a result."""

    title: str = Field(description="the kind of error, stable: `InvalidParameters`")
    status: int
    detail: str = Field(description="what happened, and what to do")
    message: str = Field(description="what happened")
    hint: str = Field(default="", description="what to do")
    quote: str = Field(default="", description="the deciding lines of a log")
    findings: list[dict[str, Any]] = Field(default_factory=list, description="each thing that is wrong, with its place")


RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": "What went wrong, and what to do."}
}


def problem(error: SegserveError) -> Problem:
    """An error of ours for a client."""
    return Problem(
        title=error.code,
        status=error.http_status,
        detail=" ".join(filter(None, (error.message, error.hint))),
        message=error.message,
        hint=error.hint,
        quote=error.quote,
        findings=[asdict(finding) for finding in error.findings],
    )


def retry_after(error: SegserveError) -> dict[str, str]:
    """The header that says when to come again, if the error knows."""
    return {"Retry-After": str(math.ceil(error.after_s))} if isinstance(error, QuotaExceeded) else {}


def install(app: FastAPI, home: Home) -> None:
    """Make every error that leaves a route one of these."""

    def explained(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SegserveError)  # it is registered for these
        return answer(problem(error), retry_after(error))

    def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        title = HTTPStatus(error.status_code).phrase.replace(" ", "")
        found = Problem(title=title, status=error.status_code, detail=message, message=message)
        return answer(found, dict(error.headers or {}))

    def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        wrong = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        message = redact.text("The request is not what it should be: " + "; ".join(wrong) + ".")
        hint = "/docs lists what each route takes."
        return answer(
            Problem(title="InvalidRequest", status=422, detail=f"{message} {hint}", message=message, hint=hint)
        )

    def defect(_: Request, error: Exception) -> JSONResponse:
        full = disk_full(error, home.path) if isinstance(error, (OSError, sqlite3.Error)) else None
        if full is not None:
            return answer(problem(full))
        logger.error("A defect of segserve", exc_info=error)
        message = "This is a fault of segserve; its log says more."
        return answer(Problem(title="Defect", status=500, detail=message, message=message))

    app.add_exception_handler(SegserveError, explained)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, defect)


def answer(found: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem as a response."""
    waiting = {"Retry-After": str(RETRY_SECONDS)} if found.status in (429, 503) else {}
    if found.status == HTTPStatus.UNAUTHORIZED:
        waiting["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        jsonable_encoder(found), status_code=found.status, media_type=MEDIA_TYPE, headers={**waiting, **(headers or {})}
    )
