"""The sqlite file: made at once, migrated, refused where sqlite would lose data; one connection for all threads."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from segserve.errors import BackendError
from segserve.journal import schema

BUSY_SECONDS = 30.0

# sqlite's WAL needs shared memory and locks that hold between all writers (https://sqlite.org/wal.html#overview).
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs"}
    | {"orangefs", "pvfs2", "afs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.beegfs", "fuse.juicefs"}
    | {"fuse.s3fs", "fuse.rclone"}
)


class Database:
    """The open file. Created when it does not exist; safe for many processes and threads at once."""

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

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; nobody else writes meanwhile."""
        # IMMEDIATE: a transaction that reads first and writes then cannot be upgraded while another one writes, and
        # sqlite would answer "database is locked" at once instead of waiting.
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk ends it before we do
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, statement: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[sqlite3.Row]:
        """All rows of one query."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _migrate(self) -> None:
        found = _user_version(self._connection)
        if found == schema.VERSION:
            return
        if found > schema.VERSION:
            raise BackendError(
                f"{self.path} was written by a newer segserve (version {found} of the journal, this one knows"
                f" {schema.VERSION}).",
                hint="Upgrade segserve, or set SEGSERVE_HOME to another folder.",
            )
        with self.transaction() as connection:
            found = _user_version(connection)  # another process may have been quicker
            _apply(connection, schema.MIGRATIONS[found : schema.VERSION], max(found, schema.VERSION))


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
        _apply(connection, schema.MIGRATIONS, schema.VERSION)
        connection.execute("COMMIT")
        connection.close()
        with suppress(FileExistsError):
            os.link(scratch, path)
    finally:
        scratch.unlink()


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level None: transactions are ours. check_same_thread off: `Database._lock` does that.
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
