"""The embedded tracking server: MLflow's own Flask application and its UI over sqlite, in one small process.

    python -m segserve.tracking HOME --idle SECONDS

Measured on two quiet cores, seconds from the start to the first answered API call, with a database that exists
(with a fresh one: + 0.6), and how twenty clients fare that log 100 runs at once:
    mlflow server                16–25 s, 15 processes, 2.0 GB
    mlflow server --workers 1    10–11 s, 10 processes, 1.1–1.6 GB
    uvicorn, FastAPI app         4.0–4.9 s, 265 MB; 40 threads exhaust SQLAlchemy's pool of 15 connections: errors
    werkzeug, Flask app          3.6–4.5 s, 245 MB; 7.1 s, with a WAL 6.1 s; its threads are unbounded as well
    waitress, Flask app          3.8–4.0 s, 270 MB; 7.2 s, with a WAL 5.9 s; 12 threads, all other requests queue
`mlflow.server:app` on waitress is one of the ways that `mlflow server` itself offers. The FastAPI application adds an
assistant that runs shell commands, a gateway and a job queue, open to whoever reaches the port; none of it is wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segserve import process, redact
from segserve.errors import NoSlot
from segserve.layout import Home
from segserve.model import write_atomically
from segserve.store import locked
from segserve.tracking import record
from segserve.tracking.embedded import ALREADY_RUNNING
from segserve.tracking.record import HEALTH, HOST, INSTANCE_HEADER, Record

THREADS = 12
CONNECTIONS = 2 * THREADS  # a request that opens a session within a session must not wait for another request
MAX_BODY = 1 << 40  # bytes; artifacts that come through the server
_TICK_SECONDS = 5.0

StartResponse = Callable[..., Any]
Wsgi = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class Activity:
    """WSGI middleware: answers /health itself, counts requests in flight, and knows when the last one ended."""

    def __init__(self, app: Wsgi, instance: str) -> None:
        self._app, self._instance = app, instance
        self._lock = threading.Lock()
        self._in_flight = 0
        self._last = time.monotonic()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        from werkzeug.wsgi import ClosingIterator

        self._count(1)
        with contextlib.ExitStack() as stack:
            stack.callback(self._count, -1)
            if environ["PATH_INFO"] == HEALTH:
                start_response("200 OK", [("Content-Type", "text/plain"), (INSTANCE_HEADER, self._instance)])
                return [b"OK"]
            body = self._app(environ, start_response)
            return ClosingIterator(body, stack.pop_all().close)

    def _count(self, step: int) -> None:
        with self._lock:
            self._in_flight += step
            self._last = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one is in flight."""
        with self._lock:
            return 0.0 if self._in_flight else time.monotonic() - self._last


def main(arguments: list[str]) -> int:
    """Serve until idle, replaced or told to stop; the exit code is for `embedded`."""
    parser = argparse.ArgumentParser(prog="python -m segserve.tracking")
    parser.add_argument("home", type=Path)
    parser.add_argument("--idle", type=float, required=True, help="seconds")
    options = parser.parse_args(arguments)
    home = Home(options.home.resolve()).ensure()
    os.umask(0o077)
    try:
        with locked(record.life_lock(home), blocking=False):
            _serve(home, options.idle)
    except NoSlot:
        return ALREADY_RUNNING
    return 0


def _serve(home: Home, idle_s: float) -> None:
    previous = record.read(home)
    ports = previous.ports if previous else ()
    listener = _bind(ports[:1])
    port: int = listener.getsockname()[1]
    mine = Record(
        identity=process.identity(),
        instance=secrets.token_hex(16),
        hostname=os.uname().nodename,
        mlflow=version("mlflow"),
        ports=(port, *(old for old in ports if old != port))[:8],
        idle_s=idle_s,
        started=time.time(),
        ready=False,
    )
    mine.write(home)
    signal.signal(signal.SIGTERM, _stop)
    # SQLAlchemy escapes odd characters in the path of a database, and MLflow makes folders of the escaped name.
    os.chdir(home.path)
    os.environ.update(_variables(home))
    _begin_again(home.mlflow_database)
    if not home.mlflow_database.exists():
        write_atomically(_unfinished(home.mlflow_database), "")
    _use_wal(home.mlflow_database)
    from mlflow.server import app

    _open_store(app, home, port)
    _unfinished(home.mlflow_database).unlink(missing_ok=True)
    _quieten()
    activity = Activity(app, mine.instance)
    from waitress.server import create_server

    server = create_server(
        activity, sockets=[listener], threads=THREADS, max_request_body_size=MAX_BODY, connection_limit=1000, ident=None
    )
    mine = replace(mine, ready=True)
    mine.write(home)
    print(f"segserve: MLflow {mine.mlflow} at {mine.uri}", file=sys.stderr, flush=True)
    threading.Thread(target=_watch, args=(home, mine, activity), daemon=True).start()
    server.run()


def _bind(preferred: tuple[int, ...]) -> socket.socket:
    for port in (*preferred, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            listener.close()
        else:
            return listener
    raise SystemExit(f"segserve: no port of {HOST} can be used.")


def _variables(home: Home) -> dict[str, str]:
    """How `mlflow server` tells its workers what to serve (mlflow/server/constants.py), and what it documents."""
    return {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{home.mlflow_database.name}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": home.artifacts.as_uri(),
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": home.artifacts.as_uri(),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1,127.0.0.1:*,localhost,localhost:*",
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "QueuePool",
        "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(CONNECTIONS),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }


def _unfinished(path: Path) -> Path:
    """Lies beside a database while it is made or upgraded, and names the copy to go back to."""
    return path.with_name(f"{path.name}.unfinished")


def _begin_again(path: Path) -> None:
    """Take away what a server left that was killed in the middle: alembic cannot go on with half a schema."""
    marker = _unfinished(path)
    if not marker.exists():
        return
    copy = marker.read_text(encoding="utf-8")
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if copy:
        _copy_database(path.with_name(copy), path)
    marker.unlink()


def _use_wal(path: Path) -> None:
    """Set once, kept in the file: commits are a fifth cheaper and readers don't wait."""
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode=WAL")
    except sqlite3.DatabaseError as error:
        raise SystemExit(f"segserve: {path}: {error}. Move that file away to begin anew.") from None


def _open_store(app: Any, home: Home, port: int) -> None:
    """Create the database, or bring that of an older MLflow up to date; the first query is paid here, not by a command.

    Raises:
        SystemExit: with one sentence for the log.
    """
    if _schema_behind(home.mlflow_database):
        _upgrade(home.mlflow_database)
    answer = app.test_client().post(
        "/api/2.0/mlflow/experiments/search", json={"max_results": 1}, base_url=f"http://{HOST}:{port}"
    )
    if answer.status_code != 200:
        raise SystemExit(f"segserve: {home.mlflow_database} cannot be used: {answer.get_data(as_text=True)[:2000]}")


def _schema_behind(path: Path) -> bool:
    """Whether the database has an older schema than this MLflow (which would upgrade some of them without a copy).

    Raises:
        SystemExit: it has one that this MLflow does not know.
    """
    import mlflow
    from alembic.script import ScriptDirectory

    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
        found = [row[0] for row in database.execute("SELECT version_num FROM alembic_version")] if tables else []
    script = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if not found or found == script.get_heads():
        return False
    if found[0] not in {revision.revision for revision in script.walk_revisions()}:
        raise SystemExit(
            f"segserve: {path} was written by a newer MLflow than {version('mlflow')}. "
            "Upgrade mlflow, or move that file away to begin anew."
        )
    return True


def _upgrade(path: Path) -> None:
    """`mlflow db upgrade`, with a copy beforehand that comes back when it fails.

    Raises:
        SystemExit: it failed.
    """
    copy = path.with_name(f"{path.name}.before-{version('mlflow')}")
    print(f"segserve: upgrading the schema of {path}; a copy is kept as {copy.name}", file=sys.stderr, flush=True)
    _copy_database(path, copy)
    write_atomically(_unfinished(path), copy.name)
    try:
        process.run([sys.executable, "-P", "-m", "mlflow", "db", "upgrade", f"sqlite:///{path.name}"], cwd=path.parent)
    except process.CommandFailed as failure:
        _copy_database(copy, path)
        _unfinished(path).unlink()
        raise SystemExit(f"segserve: the schema of {path} could not be upgraded: {failure}") from None


def _copy_database(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)


def _quieten() -> None:
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every burst
    root = logging.getLogger()
    root.addHandler(logging.StreamHandler())
    for logger in (root, *(logging.getLogger(name) for name in ("mlflow", "alembic", "sqlalchemy"))):
        for handler in logger.handlers:
            handler.setFormatter(redact.LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))


def _watch(home: Home, mine: Record, activity: Activity) -> None:
    """End the server when it is idle and not held, or when its home has gone or belongs to another server."""
    while True:
        time.sleep(min(_TICK_SECONDS, mine.idle_s / 4))
        current = record.read(home)
        if current is None or current.instance != mine.instance:
            break
        if activity.idle_s >= mine.idle_s:
            with record.exclusive_hold(home) as nobody:
                if nobody and activity.idle_s >= mine.idle_s:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(_TICK_SECONDS * 2)  # new holders wait until this process is gone
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(number: int, frame: object) -> None:
    raise SystemExit(0)  # waitress ends its loop on this and lets requests finish


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
