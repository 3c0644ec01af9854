"""`Queue`: requests that wait; who is next, how often it is tried, who wants it to end.

Priorities are strict. Among the users with a job at the highest one, whoever has the fewest running is next, then
whoever was served longest ago; among the jobs of that user, the oldest. What this costs depends on the number of users
that wait, not on the number of jobs: every step reads one end of an index (`schema`, `jobs_ready`). Where sqlite might
choose another one, `INDEXED BY` decides.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

from segserve.errors import UsageError
from segserve.journal import quotas, rows
from segserve.journal.file import Database
from segserve.journal.quotas import Quota
from segserve.journal.records import StaleFence
from segserve.model import JobState

COMES_BACK_SECONDS = 3600.0  # how long a result waits for a client that went away

_READY = "state = 'queued' AND lane <> '' AND not_before = 0"
_DRIVEN = "state IN ('preparing', 'waiting', 'running', 'collecting')"
_OPEN = "state IN ('queued', 'preparing', 'waiting', 'running', 'collecting')"

# A loose index scan (https://sqlite.org/lang_with.html): one seek per user, however many jobs each of them has.
_USERS = f"""
WITH RECURSIVE waiting (user) AS (
    SELECT min(user) FROM jobs WHERE {_READY} AND lane = :lane AND priority = :priority
    UNION ALL
    SELECT (SELECT min(user) FROM jobs WHERE {_READY} AND lane = :lane AND priority = :priority AND user > waiting.user)
    FROM waiting WHERE waiting.user IS NOT NULL
)
SELECT waiting.user AS user FROM waiting LEFT JOIN users ON users.name = waiting.user
WHERE waiting.user IS NOT NULL
ORDER BY
    (SELECT count(*) FROM jobs INDEXED BY jobs_driven WHERE {_DRIVEN} AND user = waiting.user),
    coalesce(users.served, 0),
    waiting.user
LIMIT 1
"""


# The same by lanes; those whose next try is due are few.
_LANES = f"""
WITH RECURSIVE ready (lane) AS (
    SELECT min(lane) FROM jobs WHERE {_READY} AND lane >= :first AND lane < :end
    UNION ALL
    SELECT (SELECT min(lane) FROM jobs WHERE {_READY} AND lane > ready.lane AND lane < :end)
    FROM ready WHERE ready.lane IS NOT NULL
)
SELECT lane FROM ready WHERE lane IS NOT NULL
UNION
SELECT lane FROM jobs INDEXED BY jobs_delayed
WHERE state = 'queued' AND not_before > 0 AND not_before <= :now AND lane >= :first AND lane < :end
"""


@dataclass(frozen=True, slots=True)
class Submission:
    """A request for the queue. `request` is JSON that only the pipeline reads.

    `lane` is the kind of slot that it needs. `key` is the idempotency key of a client, "" for none. Two open requests
    of one user with the same `digest` are one job; "" is never joined. An `awaited` one also joins a job whose result
    nobody has had: its client went away and comes back. `key_digest` is what the key stands for, if not `digest`.
    """

    job_id: str
    request: str
    lane: str
    user: str = ""
    priority: int = 0
    most_tries: int = 3
    key: str = ""
    digest: str = ""
    awaited: bool = False
    key_digest: str = ""
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Submitted:
    """Which job a request is now; `new` is false when there was one already."""

    job_id: str
    new: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that was taken from the queue, as its driver has to know it. Its attempt has begun."""

    job_id: str
    fence: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Passage:
    """How often jobs went from one state to another, and how many seconds they had been in the first, all together."""

    old: JobState
    new: JobState
    times: int
    seconds: float


class KeyReused(UsageError):
    """An idempotency key came twice with different requests."""

    http_status = 422


class Queue:
    """The queue in the journal's file; a part of `Journal`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, submission: Submission) -> Submitted:
        """Put a request into the queue. When this returns, it is on the disk.

        Raises:
            KeyReused: its idempotency key came with another request before.
            QuotaExceeded: it is a new job, and one too many.
        """
        now = time.time()
        with self._database.transaction() as connection:
            known = _known(connection, submission)
            if known is None:
                quotas.count(connection, submission.quota, now)
                connection.execute(
                    "INSERT INTO jobs (id, job, state, created, updated, request, user, lane, priority, most_tries,"
                    " digest, awaited) VALUES (?, '', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        submission.job_id,
                        JobState.QUEUED.value,
                        now,
                        now,
                        submission.request,
                        submission.user,
                        submission.lane,
                        submission.priority,
                        submission.most_tries,
                        submission.digest,
                        submission.awaited,
                    ),
                )
            job_id = known or submission.job_id
            if submission.key:
                connection.execute(
                    "INSERT OR IGNORE INTO idempotency_keys (user, key, digest, job_id) VALUES (?, ?, ?, ?)",
                    (submission.user, submission.key, submission.key_digest or submission.digest, job_id),
                )
        return Submitted(job_id, known is None)

    def delivered(self, job_id: str) -> None:
        """The client that waited has its result: the same request again is a new one."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE jobs SET awaited = 0 WHERE id = ?", (job_id,))

    def take(self, lane: str, *, owner: str, lease_s: float) -> Claim | None:
        """Claim the next job of a lane for a worker process; None when none waits there."""
        now = time.time()
        with self._database.transaction() as connection:
            _wake(connection, now)
            job_id = _next(connection, lane)
            if job_id is None:
                return None
            fence, attempt, user = connection.execute(
                "UPDATE jobs SET state = ?, fence = fence + 1, attempt = attempt + 1, tries = tries + 1, owner = ?,"
                " lease_until = ?, updated = ? WHERE id = ? RETURNING fence, attempt, user",
                (JobState.PREPARING.value, owner, now + lease_s, now, job_id),
            ).fetchone()
            rows.begin_attempt(connection, job_id, fence, attempt, JobState.PREPARING, attached=False)
            connection.execute(
                "INSERT INTO users (name, served) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET served = ?",
                (user, now, now),
            )
        return Claim(job_id, fence, attempt)

    def renew(self, job_id: str, fence: int, lease_s: float) -> None:
        """Hold a job for another `lease_s` seconds.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._database.transaction() as connection:
            rows.state_of(connection, job_id, fence)
            connection.execute("UPDATE jobs SET lease_until = ? WHERE id = ?", (time.time() + lease_s, job_id))

    def wanted(self, job_id: str, fence: int) -> bool:
        """Whether nobody wants a job to end; reads only.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        rows_found = self._database.read("SELECT cancel FROM jobs WHERE id = ? AND fence = ?", (job_id, fence))
        if not rows_found:
            raise StaleFence(f"Another segserve command has taken over job {job_id}.")
        return not rows_found[0]["cancel"]

    def put_back(
        self, job_id: str, fence: int, *, delay: float = 0.0, error: BaseException | None, counted: bool = True
    ) -> None:
        """Let somebody else try again, after `delay` seconds. Its attempt has failed with `error`.

        With `counted` false it was no fault of the job (its worker was asked to stop): the try does not count. One that
        somebody wants to end is not tried again.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._database.transaction() as connection:
            (cancel,) = connection.execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone() or (0,)
            rows.move(connection, job_id, fence, JobState.CANCELLED if cancel else JobState.QUEUED, error=error)
            connection.execute(
                "UPDATE jobs SET not_before = ?, tries = tries - ? WHERE id = ?",
                (time.time() + delay if delay else 0.0, 0 if counted else 1, job_id),
            )

    def postpone(self, job_id: str, fence: int, *, delay: float, error: BaseException) -> None:
        """Give a job up where it is (it ran, but could not be collected now); somebody may go on after `delay` seconds.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._database.transaction() as connection:
            state = rows.state_of(connection, job_id, fence)
            rows.move(connection, job_id, fence, state, error=error)
            connection.execute(
                "UPDATE jobs SET not_before = ?, tries = tries + 1, owner = '', lease_until = 0 WHERE id = ?",
                (time.time() + delay, job_id),
            )

    def cancel(self, job_id: str) -> JobState:
        """Want a job to end. One that waits has ended when this returns; the worker of another one will see it.

        Raises:
            NotFound: no such job (the whole id is asked for).
        """
        now = time.time()
        with self._database.transaction() as connection:
            state = rows.state_of(connection, job_id)
            if state.final:
                return state
            connection.execute("UPDATE jobs SET cancel = ?, updated = ? WHERE id = ?", (now, now, job_id))
            if state is JobState.QUEUED:
                (fence,) = connection.execute(
                    "UPDATE jobs SET fence = fence + 1 WHERE id = ? RETURNING fence", (job_id,)
                ).fetchone()
                rows.move(connection, job_id, fence, JobState.CANCELLED)
                return JobState.CANCELLED
        return state

    def driven(self) -> Mapping[str, int]:
        """How many jobs of each lane hold a slot: all that have begun and not ended, but for those that ran and wait
        to be collected again (`postpone`)."""
        counted = self._database.read(
            f"SELECT lane, count(*) FROM jobs INDEXED BY jobs_driven WHERE {_DRIVEN} AND not_before <= ? GROUP BY lane",
            (time.time(),),
        )
        return dict(map(tuple, counted))

    def states(self) -> Mapping[JobState, int]:
        """How many jobs there are in each state that is not final."""
        counted = self._database.read(
            f"SELECT state, count(*) FROM jobs INDEXED BY jobs_driven WHERE {_DRIVEN} GROUP BY state"
            " UNION ALL SELECT state, count(*) FROM jobs WHERE state = 'queued' GROUP BY state"
        )
        return {JobState(state): count for state, count in counted}

    def passages(self) -> list[Passage]:
        """Every change of state that there has been, counted; jobs that are gone included."""
        found = self._database.read("SELECT old, new, times, seconds FROM passages ORDER BY old, new")
        return [Passage(JobState(old), JobState(new), times, seconds) for old, new, times, seconds in found]

    def ready(self, beginning: str) -> list[str]:
        """The lanes whose names begin like this and in which a job may be taken now. One seek per lane."""
        end = beginning[:-1] + chr(ord(beginning[-1]) + 1)
        found = self._database.read(_LANES, {"first": beginning, "end": end, "now": time.time()})
        return [row["lane"] for row in found]

    def waiting(self) -> Mapping[str, int]:
        """How many jobs of each lane wait, those that wait for their next try included."""
        counted = self._database.read(
            "SELECT lane, count(*) FROM jobs WHERE state = 'queued' AND lane <> '' GROUP BY lane"
        )
        return dict(map(tuple, counted))


def _known(connection: sqlite3.Connection, submission: Submission) -> str | None:
    """The job that a request is already."""
    if submission.key:
        row = connection.execute(
            "SELECT digest, job_id FROM idempotency_keys WHERE user = ? AND key = ?", (submission.user, submission.key)
        ).fetchone()
        if row is not None and row["digest"] != (submission.key_digest or submission.digest):
            raise KeyReused(
                "This Idempotency-Key came with another request before.", hint="Send a new key with a new request."
            )
        if row is not None:
            return str(row["job_id"])
    if not submission.digest:
        return None
    row = connection.execute(
        f"SELECT id FROM jobs WHERE user = ? AND digest = ? AND digest <> '' AND {_OPEN} AND cancel = 0"
        " ORDER BY created LIMIT 1",
        (submission.user, submission.digest),
    ).fetchone()
    if row is None and submission.awaited:
        row = connection.execute(
            "SELECT id FROM jobs INDEXED BY jobs_awaited WHERE user = ? AND digest = ? AND awaited = 1"
            " AND state = 'succeeded' AND updated > ? ORDER BY updated DESC LIMIT 1",
            (submission.user, submission.digest, time.time() - COMES_BACK_SECONDS),
        ).fetchone()
    return None if row is None else str(row["id"])


def _wake(connection: sqlite3.Connection, now: float) -> None:
    connection.execute(
        "UPDATE jobs INDEXED BY jobs_delayed SET not_before = 0"
        " WHERE state = 'queued' AND not_before > 0 AND not_before <= ?",
        (now,),
    )


def _next(connection: sqlite3.Connection, lane: str) -> str | None:
    best = connection.execute(
        f"SELECT priority FROM jobs WHERE {_READY} AND lane = ? ORDER BY priority DESC LIMIT 1",
        (lane,),
    ).fetchone()
    if best is None:
        return None
    (user,) = connection.execute(_USERS, {"lane": lane, "priority": best["priority"]}).fetchone()
    (job_id,) = connection.execute(
        f"SELECT id FROM jobs WHERE {_READY} AND lane = ? AND priority = ? AND user = ? ORDER BY created, id LIMIT 1",
        (lane, best["priority"], user),
    ).fetchone()
    return str(job_id)
