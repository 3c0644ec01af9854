"""The events of a job, each of them once: who loses the connection goes on where it was (`Last-Event-ID`)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import ValidationError

from segserve.client import answers
from segserve.client.connection import Connection, NotUnderstood
from segserve.errors import AccessDenied, BackendError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
PATIENCE_SECONDS = 600.0  # without any answer; the job goes on meanwhile


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is state, progress, log or end; `id` is where the reader is behind it."""

    kind: str
    id: str
    data: dict[str, Any]


def follow(connection: Connection, job: str) -> Iterator[Event]:
    """Every event until `end`, across lost connections.

    Raises:
        ServerUnreachable: nobody has answered for ten minutes.
        SegserveError: the server refuses.
    """
    last, pause, heard = "", _FIRST_PAUSE, time.monotonic()
    while True:
        failure: Exception = ConnectionError("the stream has ended")
        try:
            for event in _stream(connection, job, last):
                heard, pause, last = time.monotonic(), _FIRST_PAUSE, event.id or last
                yield event
                if event.kind == "end":
                    return
        except httpx.RequestError as error:
            failure = error
        except BackendError as error:  # a server that starts again, a proxy without one
            if isinstance(error, (AccessDenied, NotUnderstood)):
                raise
            failure = error
        if time.monotonic() - heard > PATIENCE_SECONDS:
            raise connection.unreachable(failure)
        if pause == _FIRST_PAUSE:
            connection.note("The connection to the server was lost; the job goes on. Trying again.")
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


def _stream(connection: Connection, job: str, last: str) -> Iterator[Event]:
    """The events after `last` of one connection."""
    with connection.stream(f"/jobs/{job}/events", {"Last-Event-ID": last} if last else None) as answer:
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise connection.not_understood()
        try:
            yield from parsed(answer.iter_lines())
        except ValidationError:
            raise connection.not_understood() from None


def parsed(lines: Iterable[str]) -> Iterator[Event]:
    """Server-sent events from their lines; what is cut off in the middle is none."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            if "data" in fields:
                data = answers.Event.model_validate_json(fields["data"]).model_dump()
                yield Event(fields.get("event", ""), fields.get("id", ""), data)
            fields = {}
