"""Server-sent events of a job: its state, what its worker says, the lines of its log, until it has ended.

The id of an event is where the reader is in events and log (`<bytes>-<attempt>-<bytes>`): who reconnects with
`Last-Event-ID` misses nothing and gets nothing twice.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
from starlette.concurrency import run_in_threadpool

from segserve.backends import local
from segserve.errors import SegserveError
from segserve.journal import JobRecord
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


async def follow(desk: Desk, job_id: str, at: _Place, still: Callable[[], object]) -> AsyncIterator[str]:
    """The events as text. Ends with the event `end`.

    `still` raises when the reader may not read any more: the stream breaks off, and who comes back is told why.
    """
    state, silent = "", 0.0
    while True:
        try:
            still()
        except SegserveError:
            return
        record = await run_in_threadpool(desk.get, job_id, None)
        messages = []
        if record.state != state:
            state = str(record.state)
            messages.append(_message("state", {"state": state, "attempt": record.attempt}, at))
        messages += await run_in_threadpool(_news, desk, record, at)
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


def _news(desk: Desk, record: JobRecord, at: _Place) -> list[str]:
    """What was written since `at`, as messages. Each says where it ends: a connection may break after any of them."""
    messages = []
    folder = desk.folder(record.job_id)
    while lines := _whole_lines(folder.events, at.events):
        for line, at.events in lines:
            messages.append(_message("progress", json.loads(line), at))
    for number in range(at.attempt, record.attempt + 1):
        if number != at.attempt:
            at.attempt, at.log = number, 0
        while lines := _whole_lines(folder.attempt(number).log, at.log):
            at.log = lines[-1][1]
            text = [local.printable(line) for line, _ in lines]
            messages.append(_message("log", {"lines": text, "attempt": number}, at))
    return messages


def _message(kind: str, data: dict[str, object], at: _Place) -> str:
    return f"event: {kind}\nid: {at}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _whole_lines(file: Path, start: int) -> list[tuple[str, int]]:
    """The lines that end between byte `start` and now (not too many), each with the byte after it."""
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            data = stream.read(_MOST_BYTES)
    except FileNotFoundError:
        return []
    whole = len(data) if len(data) == _MOST_BYTES and b"\n" not in data else data.rfind(b"\n") + 1
    lines = data[:whole].splitlines(keepends=True)
    ends = itertools.accumulate((len(line) for line in lines), initial=start)
    return [
        (line.decode("utf-8", "replace").rstrip("\r\n"), end)
        for line, end in zip(lines, itertools.islice(ends, 1, None), strict=True)
    ]
