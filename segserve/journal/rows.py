"""Statements that `Journal` and `Queue` share. All of them run inside a transaction of the caller."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from segserve.errors import NotFound
from segserve.journal.records import IllegalMove, StaleFence, columns, texts
from segserve.model import MOVES, JobState


def state_of(connection: sqlite3.Connection, job_id: str, fence: int | None = None) -> JobState:
    """The state of a job, whose fence must be `fence` if that is given.

    Raises:
        NotFound: no such job.
        StaleFence: somebody else has claimed it.
    """
    row = connection.execute("SELECT state, fence FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise NotFound(f"There is no job '{job_id}'.")
    if fence is not None and row["fence"] != fence:
        raise StaleFence(
            f"Another segserve command has taken over job {job_id}.", hint=f"See 'segserve show {job_id}'."
        )
    return JobState(row["state"])


def write(connection: sqlite3.Connection, job_id: str, fence: int, values: Mapping[str, Any]) -> None:
    """Change columns of a job.

    Raises:
        StaleFence: somebody else has claimed it.
    """
    assignments = "".join(f"{name} = ?, " for name in values)
    cursor = connection.execute(
        f"UPDATE jobs SET {assignments}updated = ? WHERE id = ? AND fence = ?",
        (*values.values(), time.time(), job_id, fence),
    )
    if cursor.rowcount != 1:
        raise StaleFence(f"Another segserve command has taken over job {job_id}.")


def move(connection: sqlite3.Connection, job_id: str, fence: int, state: JobState, **facts: Any) -> None:
    """Change a job's state along `MOVES`, and the state of its open attempt with it.

    Raises:
        StaleFence, IllegalMove.
    """
    current = state_of(connection, job_id, fence)
    if state not in MOVES[current] and (state is not current or current.final):
        raise IllegalMove(f"Job {job_id} cannot go from {current} to {state}.")
    nobody = {"owner": "", "lease_until": 0.0} if state.final or state is JobState.QUEUED else {}
    write(connection, job_id, fence, {"state": state.value, **columns(facts), **nobody})
    _follow(connection, job_id, state, facts.get("error"))


def begin_attempt(
    connection: sqlite3.Connection, job_id: str, fence: int, number: int, state: JobState, *, attached: bool
) -> None:
    """Write an attempt down; from now on its state is the job's, until one of them ends."""
    connection.execute(
        "INSERT INTO attempts (job_id, number, fence, host, state, attached, started) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (job_id, number, fence, socket.gethostname(), state.value, attached, time.time()),
    )


def _follow(connection: sqlite3.Connection, job_id: str, state: JobState, error: BaseException | None) -> None:
    # The latest attempt goes with its job until one of them ends; a job that is queued again leaves it failed.
    ended = state.final or state is JobState.QUEUED
    own = JobState.FAILED if state is JobState.QUEUED else state
    code = texts(error)["code"] if error is not None else ""
    connection.execute(
        "UPDATE attempts SET state = ?, error = ?, ended = ? WHERE job_id = ? AND ended IS NULL",
        (own.value, code, time.time() if ended else None, job_id),
    )
