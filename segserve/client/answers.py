"""What answers of a server have to hold so that the client can read them. More than this is welcome."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Accepted(BaseModel):
    """Of `POST /jobs`."""

    job: str
    new: bool


class Row(BaseModel):
    """A job in a list."""

    job: str
    state: str
    executor: str
    entry: str
    images: int | None
    created: str
    progress: dict[str, int] | None
    error: str


class Facts(Row):
    """One job."""

    repository: str
    commit: str
    subdir: str
    mlflow: str
    seconds: dict[str, float]
    warnings: list[str]


class File(BaseModel):
    """A file of a result."""

    name: str
    bytes: int


class Counted(BaseModel):
    """An image of a job, with its number of objects."""

    objects: int | None


class Stopped(BaseModel):
    """Of `DELETE /jobs/{id}`."""

    job: str
    state: str


class Executor(BaseModel):
    """A short name."""

    name: str
    title: str
    description: str
    ref: str
    origin: str


class Event(BaseModel):
    """What one kind of event has to say; see `events`."""

    state: str = ""
    lines: list[str] = []
    kind: str = ""
    text: str = ""
    done: int = 0
    total: int = 0
    what: str = ""
    error: dict[str, Any] = {}
