"""The record of all jobs: one sqlite file in WAL mode. A job is written down before anything of it starts.

Whoever drives a job claims it first. A claim raises the job's *fence*, an integer, and every later write says
`… WHERE id = ? AND fence = ?`: a command that was suspended, or whose job was taken over, finds its fence stale and
changes nothing. States move along `model.MOVES` alone. Supervisors never open this file.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segserve import redact
from segserve.errors import BackendError, NotFound, SegserveError, UsageError
from segserve.model import MOVES, Attempt, Job, JobState, job_from_json, to_json

BUSY_SECONDS = 30.0

# sqlite's WAL needs shared memory and locks that hold between all writers (https://sqlite.org/wal.html#overview).
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"}
    | {"orangefs", "pvfs2", "afs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.beegfs", "fuse.juicefs"}
    | {"fuse.s3fs", "fuse.rclone"}
)

# Statements per version; a journal at version n has had the first n. Never change one that was released: append.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE jobs (
            id       TEXT PRIMARY KEY,
            job      TEXT NOT NULL,               -- model.Job as JSON, never changes
            state    TEXT NOT NULL,
            fence    INTEGER NOT NULL DEFAULT 0,
            created  REAL NOT NULL,               -- seconds since the epoch
            updated  REAL NOT NULL,
            error    TEXT,                        -- JSON object: code, message, hint, quote
            run_id   TEXT NOT NULL DEFAULT '',    -- of the MLflow run
            run_url  TEXT NOT NULL DEFAULT '',
            result   TEXT NOT NULL DEFAULT '',    -- folder of the published result
            warnings TEXT NOT NULL DEFAULT '[]'   -- JSON array of texts
        )
        """,
        "CREATE INDEX jobs_by_age ON jobs (created)",
        "CREATE INDEX jobs_by_state ON jobs (state, created)",
        """
        CREATE TABLE attempts (
            job_id   TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
            number   INTEGER NOT NULL,
            fence    INTEGER NOT NULL,            -- the job's when the attempt began
            host     TEXT NOT NULL,
            slot     TEXT NOT NULL DEFAULT '',
            state    TEXT NOT NULL,
            error    TEXT NOT NULL DEFAULT '',    -- code of the error that ended it
            attached INTEGER NOT NULL,
            started  REAL NOT NULL,
            ended    REAL,
            PRIMARY KEY (job_id, number)
        ) WITHOUT ROWID
        """,
    ),
)
VERSION = len(MIGRATIONS)

_FACTS = ("error", "run_id", "run_url", "result", "warnings")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads like something else


class StaleFence(BackendError):
    """Somebody else has claimed the job since; nothing was written."""

    http_status = 409


class IllegalMove(SegserveError):
    """A change of state that `model.MOVES` does not have: a defect of ours."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as the journal knows it. Times are seconds since the epoch; `result` is a folder or "".

    `error` has the texts `code`, `message`, `hint` and `quote`, redacted, or is empty.
    """

    job: Job
    state: JobState
    fence: int
    created: float
    updated: float
    error: Mapping[str, str]
    run_id: str
    run_url: str
    result: str
    warnings: tuple[str, ...]

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.id


def new_job_id(now: float | None = None) -> str:
    """An id like `261120-143015-k3f9a`: UTC time, so that ids sort by age, and five random letters to type."""
    moment = datetime.fromtimestamp(time.time() if now is None else now, UTC)
    return f"{moment:%y%m%d-%H%M%S}-" + "".join(secrets.choice(_ALPHABET) for _ in range(5))


class Journal:
    """The journal in one file, created when it does not exist. Safe for many processes and threads at once."""

    def __init__(self, path: Path) -> None:
        """Open it (about a millisecond).

        Raises:
            BackendError: the file lies on a network file system, or a newer segserve wrote it.
        """
        self.path = path
        self._lock = threading.RLock()
        refuse_network_file_system(path)
        if not path.exists():
            _create(path)
        self._connection = _connect(path)
        try:
            self._migrate()
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    def create(self, job: Job, *, state: JobState = JobState.QUEUED) -> None:
        """Write a new job down. Its fence is 0: nobody drives it.

        Raises:
            IllegalMove: there is a job with this id.
        """
        now = time.time()
        with self._transaction():
            try:
                self._connection.execute(
                    "INSERT INTO jobs (id, job, state, created, updated) VALUES (?, ?, ?, ?, ?)",
                    (job.id, to_json(job), state.value, now, now),
                )
            except sqlite3.IntegrityError:
                raise IllegalMove(f"There is a job {job.id} already.") from None

    def claim(self, job_id: str) -> int:
        """Become the one who drives a job, and return its new fence. Whoever drove it before can write no more.

        Raises:
            NotFound: no such job (the whole id is asked for).
            UsageError: it has ended.
        """
        with self._transaction():
            state = self._state(job_id)
            if state.final:
                raise UsageError(f"Job {job_id} has ended: {state}.")
            (fence,) = self._connection.execute(
                "UPDATE jobs SET fence = fence + 1, updated = ? WHERE id = ? RETURNING fence", (time.time(), job_id)
            ).fetchone()
        return int(fence)

    def move(self, job_id: str, fence: int, state: JobState, **facts: Any) -> None:
        """Change a job's state, and what is known of it (`note`) with it. Its open attempt follows.

        A move to where the job is already is no move: a second collector may say again that it collects.

        Raises:
            StaleFence: somebody else has claimed the job.
            IllegalMove: `MOVES` has no such step.
        """
        with self._transaction():
            current = self._state(job_id, fence)
            if state not in MOVES[current] and (state is not current or current.final):
                raise IllegalMove(f"Job {job_id} cannot go from {current} to {state}.")
            self._write(job_id, fence, {"state": state.value, **_columns(facts)})
            self._follow(job_id, state, facts.get("error"))

    def note(self, job_id: str, fence: int, **facts: Any) -> None:
        """Record what is known of a job; its state stays.

        Args:
            job_id: the whole id.
            fence: from `claim`.
            facts: `error` (an exception), `run_id`, `run_url`, `result` (text or Path), `warnings` (texts).

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._transaction():
            self._state(job_id, fence)
            self._write(job_id, fence, _columns(facts))

    def new_attempt(self, job_id: str, fence: int, *, attached: bool, slot: str = "") -> Attempt:
        """Begin the next attempt of a job; its state is the job's, from now on.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._transaction():
            state = self._state(job_id, fence)
            (number,) = self._connection.execute(
                "SELECT coalesce(max(number), 0) + 1 FROM attempts WHERE job_id = ?", (job_id,)
            ).fetchone()
            attempt = Attempt(job_id, number, fence, socket.gethostname(), slot, state, "", attached)
            self._connection.execute(
                "INSERT INTO attempts (job_id, number, fence, host, slot, state, attached, started)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (job_id, number, fence, attempt.host, slot, state.value, attached, time.time()),
            )
        return attempt

    def assign(self, job_id: str, fence: int, number: int, slot: str) -> None:
        """Record which slot (GPU UUIDs, comma-separated) an attempt has.

        Raises:
            StaleFence: somebody else has claimed the job.
        """
        with self._transaction():
            self._state(job_id, fence)
            self._connection.execute(
                "UPDATE attempts SET slot = ? WHERE job_id = ? AND number = ?", (slot, job_id, number)
            )

    # -- reading ---------------------------------------------------------------------------------------------------

    def get(self, name: str) -> JobRecord:
        """One job by its id, by the beginning of it, or by its last letters (`k3f9a`), if that is unique.

        Raises:
            NotFound: no job or more than one has that name; the message lists them.
        """
        with self._lock:
            rows = self._connection.execute("SELECT * FROM jobs WHERE id = ?", (name,)).fetchall()
            if not rows and name:
                pattern = name.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
                rows = self._connection.execute(
                    "SELECT * FROM jobs WHERE id LIKE ? ESCAPE '\\' OR id LIKE ? ESCAPE '\\'"
                    " ORDER BY created DESC, id DESC LIMIT 6",
                    (f"{pattern}%", f"%-{pattern}"),
                ).fetchall()
        if len(rows) > 1:
            found = ", ".join(row["id"] for row in rows[:5]) + (", …" if len(rows) > 5 else "")
            raise NotFound(f"More than one job is called '{name}…': {found}.", hint="Type more of its id.")
        if not rows:
            raise NotFound(f"There is no job '{name}'.", hint="'segserve ps --all' lists them.")
        return _record(rows[0])

    def jobs(self, limit: int | None = 50, state: JobState | None = None) -> list[JobRecord]:
        """Jobs, newest first (`limit` None: all of them)."""
        where, values = ("WHERE state = ?", [state.value]) if state else ("", [])
        return self._select(
            f"{where} ORDER BY created DESC, id DESC LIMIT ?", [*values, -1 if limit is None else limit]
        )

    def open_jobs(self) -> list[JobRecord]:
        """Jobs that have not ended, oldest first."""
        states = [state.value for state in JobState if not state.final]
        return self._select(f"WHERE state IN ({','.join('?' * len(states))}) ORDER BY created, id", states)

    def attempts(self, job_id: str) -> list[Attempt]:
        """The attempts of a job, in their order."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT * FROM attempts WHERE job_id = ? ORDER BY number", (job_id,)
            ).fetchall()
        return [
            Attempt(
                row["job_id"],
                row["number"],
                row["fence"],
                row["host"],
                row["slot"],
                JobState(row["state"]),
                row["error"],
                bool(row["attached"]),
            )
            for row in rows
        ]

    # -- inside ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: a transaction that reads first and writes then cannot be upgraded while another one writes, and
        # sqlite would answer "database is locked" at once instead of waiting.
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _select(self, clause: str, values: Sequence[Any]) -> list[JobRecord]:
        with self._lock:
            return [_record(row) for row in self._connection.execute(f"SELECT * FROM jobs {clause}", values)]  # noqa: S608

    def _state(self, job_id: str, fence: int | None = None) -> JobState:
        row = self._connection.execute("SELECT state, fence FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFound(f"There is no job '{job_id}'.")
        if fence is not None and row["fence"] != fence:
            raise StaleFence(
                f"Another segserve command has taken over job {job_id}.", hint=f"See 'segserve show {job_id}'."
            )
        return JobState(row["state"])

    def _write(self, job_id: str, fence: int, columns: dict[str, Any]) -> None:
        assignments = "".join(f"{name} = ?, " for name in columns)
        cursor = self._connection.execute(
            f"UPDATE jobs SET {assignments}updated = ? WHERE id = ? AND fence = ?",  # noqa: S608
            (*columns.values(), time.time(), job_id, fence),
        )
        if cursor.rowcount != 1:
            raise StaleFence(f"Another segserve command has taken over job {job_id}.")

    def _follow(self, job_id: str, state: JobState, error: BaseException | None) -> None:
        # The latest attempt goes with its job until one of them ends; a job that is queued again leaves it failed.
        ended = state.final or state is JobState.QUEUED
        own = JobState.FAILED if state is JobState.QUEUED else state
        code = _texts(error)["code"] if error is not None else ""
        self._connection.execute(
            "UPDATE attempts SET state = ?, error = ?, ended = ? WHERE job_id = ? AND ended IS NULL",
            (own.value, code, time.time() if ended else None, job_id),
        )

    def _migrate(self) -> None:
        found = _user_version(self._connection)
        if found == VERSION:
            return
        if found > VERSION:
            raise BackendError(
                f"{self.path} was written by a newer segserve (version {found} of the journal, this one knows"
                f" {VERSION}).",
                hint="Upgrade segserve, or set SEGSERVE_HOME to another folder.",
            )
        with self._transaction():
            found = _user_version(self._connection)  # another process may have been quicker
            _apply(self._connection, MIGRATIONS[found:VERSION], max(found, VERSION))


_MOUNTS = Path("/proc/self/mounts")


def refuse_network_file_system(path: Path, mounts: Path = _MOUNTS) -> None:
    """Raise BackendError when `path` (which need not exist) lies on NFS, CIFS, Lustre, GPFS or the like."""
    kind = file_system(path, mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise BackendError(
            f"The journal {path} would lie on a network file system ({kind}), where sqlite loses data.",
            hint="Set SEGSERVE_HOME to a folder on a local disk of this machine, for example below /var/tmp.",
        )


def file_system(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of file system (`ext4`, `nfs4` …) that holds a path, by the kernel's table; "" where there is none."""
    real = os.fspath(path.parent.resolve() / path.name)
    best, kind = "", ""
    with suppress(FileNotFoundError):
        for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, point, this_kind, *_ = line.split(" ")
            point = point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):  # later lines are mounted over earlier ones
                best, kind = point, this_kind
    return kind


def _create(path: Path) -> None:
    # Built beside and linked into place: nobody ever sees a journal without tables, and switching to WAL, for which
    # sqlite does not wait, is never done by two at once.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        connection = _connect(scratch)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        _apply(connection, MIGRATIONS, VERSION)
        connection.execute("COMMIT")
        connection.close()
        with suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are ours. check_same_thread off: `Journal._lock` does that.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _apply(connection: sqlite3.Connection, versions: Iterable[Sequence[str]], version: int) -> None:
    # Not `executescript`: that commits first, and a half-migrated journal must not be seen.
    for statements in versions:
        for statement in statements:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {version:d}")


def _columns(facts: dict[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, value in facts.items():
        if name not in _FACTS:
            raise TypeError(f"the journal has no fact '{name}'")
        if name == "error":
            columns[name] = None if value is None else json.dumps(_texts(value), ensure_ascii=False)
        elif name == "warnings":
            columns[name] = json.dumps([redact.text(str(text)) for text in value], ensure_ascii=False)
        else:
            columns[name] = str(value)
    return columns


def _texts(error: BaseException) -> dict[str, str]:
    if isinstance(error, SegserveError):
        return {"code": error.code, "message": error.message, "hint": error.hint, "quote": error.quote}
    return {"code": type(error).__name__, "message": redact.text(str(error)), "hint": "", "quote": ""}


def _record(row: sqlite3.Row) -> JobRecord:
    return JobRecord(
        job=job_from_json(row["job"]),
        state=JobState(row["state"]),
        fence=row["fence"],
        created=row["created"],
        updated=row["updated"],
        error=json.loads(row["error"]) if row["error"] else {},
        run_id=row["run_id"],
        run_url=row["run_url"],
        result=row["result"],
        warnings=tuple(json.loads(row["warnings"])),
    )
