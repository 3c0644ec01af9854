"""A result comes home: the same folder that a local run publishes, at once and never over another one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from segserve import conversion
from segserve.client.answers import Counted, File
from segserve.client.connection import TRIES, Connection, ServerUnreachable
from segserve.errors import BackendError, writing
from segserve.pipeline import Result
from segserve.pipeline.publish import choose_folder, unfinished
from segserve.refs import FULL_SHA, Pin

_PAUSE, _LONGEST_PAUSE = 0.25, 15.0


def result(
    connection: Connection,
    facts: Mapping[str, Any],
    output: Path | None,
    results: str,
    progress: Callable[[int, int, str], None],
) -> Result:
    """Fetch all files of the result of a job, publish them, and say what it is.

    Raises:
        SegserveError: it cannot be had, or not be written.
    """
    job = facts["job"]
    listed = connection.get(f"/jobs/{job}/files", list[File])
    total = sum(file["bytes"] for file in listed)
    exact, wanted = output is not None, choose_folder(output, results, facts["executor"])
    with writing(wanted, "-o names another folder."), unfinished(wanted, exact=exact) as (beside, appear):
        done = 0
        for file in listed:
            done += _fetch(connection, job, file["name"], file["bytes"], beside / _relative(file["name"]))
            progress(round(done / 1e6), max(round(total / 1e6), 1), "MB fetched")
        published = appear()
    polygons = (published / conversion.RESULTS).is_file()
    counts = [row["objects"] or 0 for row in connection.get(f"/jobs/{job}/images", list[Counted])] if polygons else []
    loaded = conversion.load(published) if polygons else None
    return Result(
        job_id=job,
        pin=_pin(facts),
        entry=facts["entry"],
        images=tuple(loaded.results.images) if loaded else (),
        document=loaded.results.document if loaded else None,
        findings=loaded.findings if loaded else (),
        folder=published,
        run_url=run_url(connection, facts),
        counts=tuple(counts),
        seconds=facts.get("seconds") or {},
        warnings=tuple(facts.get("warnings") or ()),
    )


def run_url(connection: Connection, facts: Mapping[str, Any]) -> str:
    """Where the MLflow run of a job is looked at: below the service, unless it logs elsewhere."""
    said = str(facts.get("mlflow") or "")
    return said if not said or "://" in said else f"{connection.url}/{said.lstrip('/')}"


def _pin(facts: Mapping[str, Any]) -> Pin:
    if not FULL_SHA.fullmatch(facts["commit"]):
        raise BackendError("The server does not say which commit ran.", hint="Is it a segserve of this version?")
    return Pin(facts["repository"], facts["commit"], facts["subdir"])


def _relative(name: str) -> PurePosixPath:
    """A name below the folder; what the server says is not trusted with this disk."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or any(part in ("..", ".") for part in path.parts) or "\0" in name:
        raise BackendError(f"The server names a file that lies outside of the result: {name!r}.")
    return path


def _fetch(connection: Connection, job: str, name: str, size: int, target: Path) -> int:
    """One file; begun again where the connection was lost."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.touch()
    tries, before = 0, 0
    failure: Exception = ConnectionError("nothing came")
    while tries < TRIES:
        try:
            _more(connection, f"/jobs/{job}/files/{quote(name)}", target)
        except httpx.RequestError as error:
            failure = error
        except ServerUnreachable as error:  # a proxy without its server: it starts again
            failure = ConnectionError(error.message)
        have = target.stat().st_size
        if have == size:
            return size
        if have > size:  # it was another file
            target.write_bytes(b"")
            failure = ConnectionError(f"'{name}' came with another size than was said")
        tries = 1 if have > before else tries + 1  # what brings something may go on for as long as it takes
        before = have
        time.sleep(min(_PAUSE * 2**tries, _LONGEST_PAUSE))
    raise connection.unreachable(failure)


def _more(connection: Connection, path: str, target: Path) -> None:
    """What is missing of a file; the whole of it where the server does not give parts."""
    have = target.stat().st_size
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with connection.stream(path, headers) as answer, target.open("ab") as stream:
        if have and answer.status_code != httpx.codes.PARTIAL_CONTENT:
            stream.truncate(0)
        for chunk in answer.iter_bytes():  # as they come: those of a size of ours would be lost with the connection
            stream.write(chunk)
