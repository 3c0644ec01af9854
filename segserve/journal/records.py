"""What a row of the journal means, and the errors of writing one."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from segserve import redact
from segserve.errors import BackendError, SegserveError
from segserve.model import Attempt, Job, JobState, job_from_json

_FACTS = ("error", "run_id", "run_url", "result", "warnings")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads like something else


class StaleFence(BackendError):
    """Somebody else has claimed the job since; nothing was written."""

    http_status = 409
    retryable = False


class IllegalMove(SegserveError):
    """A change of state that `model.MOVES` does not have: a defect of ours."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as the journal knows it. Times are seconds since the epoch; `result` is a folder or "".

    `job` is None while a request waits in the queue and nobody has looked at it; `request` is what came in (JSON of
    the pipeline), "" for the job of a command. `attempt` is the number of its latest attempt, 0 before the first.
    `owner` names the worker process that drives it; the lease of a command is its lock file, its `lease_until` is 0.
    `error` has the texts `code`, `message`, `hint` and `quote`, redacted, or is empty; of a job that is queued again
    it is what ended the attempt before.
    """

    job_id: str
    job: Job | None
    state: JobState
    fence: int
    created: float
    updated: float
    error: Mapping[str, str]
    run_id: str
    run_url: str
    result: str
    warnings: tuple[str, ...]
    request: str
    user: str
    lane: str
    priority: int
    attempt: int
    tries: int
    most_tries: int
    not_before: float
    owner: str
    lease_until: float
    cancel: float


def new_job_id(now: float | None = None) -> str:
    """An id like `261120-143015-k3f9a`: UTC time, so that ids sort by age, and five random letters to type."""
    moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    return f"{moment:%y%m%d-%H%M%S}-" + "".join(secrets.choice(_ALPHABET) for _ in range(5))


def columns(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts about a job (an exception, paths, texts) as the journal stores them: redacted."""
    stored: dict[str, Any] = {}
    for name, value in facts.items():
        if name not in _FACTS:
            raise TypeError(f"the journal has no fact '{name}'")
        if name == "error":
            stored[name] = None if value is None else json.dumps(texts(value), ensure_ascii=False)
        elif name == "warnings":
            stored[name] = json.dumps([redact.text(str(text)) for text in value], ensure_ascii=False)
        else:
            stored[name] = str(value)
    return stored


def texts(error: BaseException) -> dict[str, str]:
    """What is stored of an error."""
    if isinstance(error, SegserveError):
        return {"code": error.code, "message": error.message, "hint": error.hint, "quote": error.quote}
    return {"code": type(error).__name__, "message": redact.text(str(error)), "hint": "", "quote": ""}


def record(row: sqlite3.Row) -> JobRecord:
    """A row of `jobs`."""
    return JobRecord(
        job_id=row["id"],
        job=job_from_json(row["job"]) if row["job"] else None,
        state=JobState(row["state"]),
        fence=row["fence"],
        created=row["created"],
        updated=row["updated"],
        error=json.loads(row["error"]) if row["error"] else {},
        run_id=row["run_id"],
        run_url=row["run_url"],
        result=row["result"],
        warnings=tuple(json.loads(row["warnings"])),
        **{name: row[name] for name in _AS_STORED},
    )


_AS_STORED = (
    *("request", "user", "lane", "priority", "attempt", "tries", "most_tries"),
    *("not_before", "owner", "lease_until", "cancel"),
)


def attempt(row: sqlite3.Row) -> Attempt:
    """A row of `attempts`."""
    return Attempt(
        row["job_id"],
        row["number"],
        row["fence"],
        row["host"],
        row["slot"],
        JobState(row["state"]),
        row["error"],
        bool(row["attached"]),
    )
