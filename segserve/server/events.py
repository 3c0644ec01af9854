"""Server-sent events of a job: its state, what its worker says, the lines of its log, until it has ended.

The id of an event is where the reader is in events and log (`<bytes>-<attempt>-<bytes>`): who reconnects with
`Last-Event-ID` misses nothing and gets nothing twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.concurrency import run_in_threadpool

from segserve.backends import local
from segserve.server.desk import Desk

_LOOK_SECONDS = 0.5
_SILENCE_SECONDS = 15.0  # after which a comment keeps proxies from closing the connection
_MOST_BYTES = 1 << 18  # of each file at a time
_ID = re.compile(r"(\d{1,15})-(\d{1,6})-(\d{1,15})")


@dataclass
class _Place:
    """How far a reader is: bytes of the events, number of the attempt whose log it reads, bytes of that log."""

    events: int = 0
    attempt: int = 1
    log: int = 0

    def __str__(self) -> str:
        return f"{self.events}-{self.attempt}-{self.log}"


def place(last_event_id: str) -> _Place:
    """Where a reader was; the beginning when it does not say so, or says nonsense."""
    found = _ID.fullmatch(last_event_id)
    return _Place(*(int(part) for part in found.groups())) if found else _Place()


async def follow(desk: Desk, job_id: str, at: _Place) -> AsyncIterator[str]:
    """The events as text. Ends with the event `end`."""
    state, silent = "", 0.0
    while True:
        record = await run_in_threadpool(desk.get, job_id, None)
        messages = []
        if record.state != state:
            state = str(record.state)
            messages.append(_message("state", {"state": state, "attempt": record.attempt}, at))
        for line in await run_in_threadpool(_events, desk, job_id, at):
            messages.append(_message("progress", json.loads(line), at))
        for number in range(at.attempt, record.attempt + 1):
            if number != at.attempt:
                at.attempt, at.log = number, 0
            while lines := await run_in_threadpool(_log, desk, job_id, at):
                messages.append(_message("log", {"lines": lines, "attempt": number}, at))
        for message in messages:
            yield message
        if record.state.final:
            error = dict(record.error)
            yield _message("end", {"state": state, **({"error": error} if error else {})}, at)
            return
        silent = 0.0 if messages else silent + _LOOK_SECONDS
        if silent >= _SILENCE_SECONDS:
            silent = 0.0
            yield ": still here\n\n"
        await anyio.sleep(_LOOK_SECONDS)


def _message(kind: str, data: dict[str, object], at: _Place) -> str:
    return f"event: {kind}\nid: {at}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _events(desk: Desk, job_id: str, at: _Place) -> list[str]:
    lines, at.events = _whole_lines(desk.folder(job_id).events, at.events)
    return lines


def _log(desk: Desk, job_id: str, at: _Place) -> list[str]:
    attempt = desk.folder(job_id).attempt(at.attempt)
    lines, at.log = _whole_lines(attempt.log, at.log)
    return [local.printable(line) for line in lines]


def _whole_lines(file: Path, start: int) -> tuple[list[str], int]:
    """The lines that end between byte `start` and now (not too many), and where the next one begins."""
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            data = stream.read(_MOST_BYTES)
    except FileNotFoundError:
        return [], start
    end = len(data) if len(data) == _MOST_BYTES and b"\n" not in data else data.rfind(b"\n") + 1
    return data[:end].decode("utf-8", "replace").splitlines(), start + end
