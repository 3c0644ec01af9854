"""`Journal`: one job at a time, by whoever drives it or looks at it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segserve.errors import NotFound, UsageError
from segserve.journal import rows
from segserve.journal.file import Database
from segserve.journal.queue import Queue
from segserve.journal.records import IllegalMove, JobRecord, attempt, columns, record
from segserve.model import Attempt, Job, JobState, to_json


class Journal:
    """The journal in one file, created when it does not exist. Safe for many processes and threads at once."""

    def __init__(self, path: Path) -> None:
        """Open it (about a millisecond).

        Raises:
            BackendError: the file lies on a network file system, or a newer segserve wrote it.
        """
        self.path = path
        self._database = Database(path)
        self.queue = Queue(self._database)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def begin(self, job: Job, *, user: str = "") -> int:
        """Write the job of a command down, which drives it from now on; return its fence. Its first attempt begins.

        Raises:
            IllegalMove: there is a job with this id.
        """
        now = time.time()
        with self._database.transaction() as connection:
            try:
                connection.execute(
                    "INSERT INTO jobs (id, job, state, fence, created, updated, user, attempt, tries)"
                    " VALUES (?, ?, ?, 1, ?, ?, ?, 1, 1)",
                    (job.id, to_json(job), JobState.PREPARING.value, now, now, user),
                )
            except sqlite3.IntegrityError:
                raise IllegalMove(f"There is a job {job.id} already.") from None
            rows.begin_attempt(connection, job.id, 1, 1, JobState.PREPARING, attached=job.attached)
        return 1

    def accept(self, job: Job, fence: int) -> None:
        """Record what a request from the queue has become.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._database.transaction() as connection:
            rows.write(connection, job.id, fence, {"job": to_json(job)})

    def claim(self, job_id: str, *, owner: str = "", lease_s: float = 0.0) -> int:
        """Become the one who drives a job, and return its new fence. Whoever drove it before can write no more.

        A worker names itself (`owner`) and holds the job for `lease_s` seconds; a command holds a lock file instead.

        Raises:
            NotFound: no such job (the whole id is asked for).
            UsageError: it has ended.
        """
        now = time.time()
        with self._database.transaction() as connection:
            state = rows.state_of(connection, job_id)
            if state.final:
                raise UsageError(f"Job {job_id} has ended: {state}.")
            (fence,) = connection.execute(
                "UPDATE jobs SET fence = fence + 1, updated = ?, owner = ?, lease_until = ? WHERE id = ?"
                " RETURNING fence",
                (now, owner, now + lease_s if lease_s else 0.0, job_id),
            ).fetchone()
        return int(fence)

    def move(self, job_id: str, fence: int, state: JobState, **facts: Any) -> None:
        """Change a job's state, and what is known of it (`note`) with it. Its open attempt follows.

        A move to where the job is already is no move: a second collector may say again that it collects.

        Raises:
            StaleFence: somebody else has claimed the job.
            IllegalMove: `MOVES` has no such step.
        """
        with self._database.transaction() as connection:
            rows.move(connection, job_id, fence, state, **facts)

    def note(self, job_id: str, fence: int, **facts: Any) -> None:
        """Record what is known of a job; its state stays.

        Args:
            job_id: the whole id.
            fence: from `claim`.
            facts: `error` (an exception), `run_id`, `run_url`, `result` (text or Path), `warnings` (texts).

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._database.transaction() as connection:
            rows.state_of(connection, job_id, fence)
            rows.write(connection, job_id, fence, columns(facts))

    def assign(self, job_id: str, fence: int, number: int, slot: str) -> None:
        """Record which slot (GPU UUIDs, comma-separated) an attempt has.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._database.transaction() as connection:
            rows.state_of(connection, job_id, fence)
            connection.execute("UPDATE attempts SET slot = ? WHERE job_id = ? AND number = ?", (slot, job_id, number))

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, name: str) -> JobRecord:
        """One job by its id, by the beginning of it, or by its last letters (`k3f9a`), if that is unique.

        Raises:
            NotFound: no job or more than one has that name; the message lists them.
        """
        found = self._select("WHERE id = ?", (name,))
        if not found and name:
            pattern = name.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            found = self._select(
                "WHERE id LIKE ? ESCAPE '\\' OR id LIKE ? ESCAPE '\\' ORDER BY created DESC, id DESC LIMIT 6",
                (f"{pattern}%", f"%-{pattern}"),
            )
        if len(found) > 1:
            ids = ", ".join(one.job_id for one in found[:5]) + (", …" if len(found) > 5 else "")
            raise NotFound(f"More than one job is called '{name}…': {ids}.", hint="Type more of its id.")
        if not found:
            raise NotFound(f"There is no job '{name}'.", hint="'segserve ps --all' lists them.")
        return found[0]

    def jobs(
        self, limit: int | None = 50, state: JobState | None = None, *, user: str | None = None
    ) -> list[JobRecord]:
        """Jobs, newest first (`limit` None: all of them), of one state or user or of all."""
        wanted = {"state": state.value if state else None, "user": user}
        given = {name: value for name, value in wanted.items() if value is not None}
        where = f"WHERE {' AND '.join(f'{name} = ?' for name in given)}" if given else ""
        most = -1 if limit is None else limit
        return self._select(f"{where} ORDER BY created DESC, id DESC LIMIT ?", (*given.values(), most))

    def open_jobs(self) -> list[JobRecord]:
        """Jobs that have not ended, oldest first."""
        states = [state.value for state in JobState if not state.final]
        return self._select(f"WHERE state IN ({','.join('?' * len(states))}) ORDER BY created, id", states)

    def begun_jobs(self) -> list[JobRecord]:
        """Open jobs that somebody drives or has driven, oldest first: all that do not just wait in the queue."""
        driven = self._select("INDEXED BY jobs_driven WHERE state IN ('preparing', 'waiting', 'running', 'collecting')")
        left = self._select("INDEXED BY jobs_never_queued WHERE state = 'queued' AND lane = ''")  # by version 1
        return sorted([*driven, *left], key=lambda one: (one.created, one.job_id))

    def attempts(self, job_id: str) -> list[Attempt]:
        """The attempts of a job, in their order."""
        return [
            attempt(row)
            for row in self._database.read("SELECT * FROM attempts WHERE job_id = ? ORDER BY number", (job_id,))
        ]

    def _select(self, clause: str, values: Sequence[Any] = ()) -> list[JobRecord]:
        return [record(row) for row in self._database.read(f"SELECT * FROM jobs {clause}", values)]
