"""`Remote`: the verbs. Arguments are those of the command line, answers are what `api` would have given."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from segserve import inputs, refs
from segserve.client import download, events
from segserve.client.answers import Accepted, Executor, Facts, Row, Stopped
from segserve.client.connection import Connection, ended
from segserve.client.events import Event
from segserve.client.sending import Sending
from segserve.client.upload import Form
from segserve.errors import NotFound, SegserveError, UsageError
from segserve.inputs import Selection
from segserve.pipeline import Reporter, Result, Started
from segserve.refs import RepoKind

_MOST_JOBS = 1000
_JOB = re.compile(r"[\w-]{1,40}", re.ASCII)
_FINAL = ("succeeded", "failed", "cancelled")
_FIELDS = ("first", "channel", "z", "series", "frames", "depth", "gpus", "timeout", "exports", "reuse")
_ALL = 1_000_000_000  # overlays: a form has no null


class Remote:
    """The verbs on one server."""

    def __init__(self, connection: Connection, reporter: Reporter, *, results: str) -> None:
        """`results` is the folder for results that nobody named."""
        self._connection, self._reporter, self._results = connection, reporter, results

    # -- run ----------------------------------------------------------------------------------------------------------

    def run(
        self,
        ref: str,
        images: Sequence[str] = (),
        *,
        output: Path | None = None,
        detach: bool = False,
        parameters: Mapping[str, str] | None = None,
        rev: str | None = None,
        entry: str | None = None,
        kind: str | None = None,
        **chosen: Any,
    ) -> Result | Started:
        """Send images, follow the job, bring its result home. Ctrl-C cancels the job.

        Raises:
            SegserveError: as a local run would raise it.
        """
        if output is not None and output.exists():
            raise UsageError(f"'{output}' exists already.", hint="Results never overwrite: choose another -o.")
        fields = {
            "executor": self._reference(ref, rev=rev, entry=entry),
            "version": rev,
            "entry": entry,
            "env": kind,
            "parameters": json.dumps(dict(parameters or {}), ensure_ascii=False),
            **{name: chosen.get(name) for name in _FIELDS},
            "overlays": _ALL if chosen.get("overlays", 24) is None else chosen.get("overlays"),
        }
        job = self._submit(fields, self._files(images, chosen))
        if detach:
            return Started(job, "", Path(output or ""))
        try:
            self._watch(job)
        except KeyboardInterrupt:
            self._stop(job)
            raise
        return self._bring(job, output)

    def fetch(self, job: str, output: Path | None = None) -> Path:
        """Follow a job to its end and bring its result home; where it is. Ctrl-C leaves the job alone.

        Raises:
            SegserveError: as the run would have raised it.
        """
        if output is not None and output.exists():
            raise UsageError(f"'{output}' exists already.", hint="Results never overwrite: choose another -o.")
        name = self._id(job)
        self._watch(name)
        return self._bring(name, output).folder

    def _bring(self, job: str, output: Path | None) -> Result:
        self._reporter.phase("Fetching the result")
        kept = f"The result is kept there: segserve fetch {job} --server {self._connection.url}"
        try:
            return download.result(self._connection, self.show(job), output, self._results, self._reporter.progress)
        except KeyboardInterrupt:
            self._reporter.warn(kept)
            raise
        except SegserveError as error:
            error.hint = f"{error.hint} {kept}".strip()
            raise

    def _stop(self, job: str) -> None:
        """Cancel the job of somebody who does not wait any more."""
        self._reporter.phase(f"Stopping job {job}")
        try:
            self._cancel(job)
        except SegserveError as error:
            again = f"segserve cancel {job} --server {self._connection.url}"
            self._reporter.warn(f"The job goes on: {error.message} Stop it by: {again}")

    def _reference(self, ref: str, *, rev: str | None, entry: str | None) -> str:
        parsed = refs.parse(ref, rev=rev, entry=entry)
        if parsed.kind is not RepoKind.PATH:
            return ref
        if not self._connection.loopback:
            raise UsageError(
                f"'{parsed.repo}' is a folder of this machine, which the server does not see.",
                hint="Push it and name its URL, or run without --server.",
            )
        return parsed.repo + ref[len(ref.split("#", maxsplit=1)[0].split("@", maxsplit=1)[0]) :]

    def _files(self, images: Sequence[str], chosen: Mapping[str, Any]) -> list[Path]:
        """The files to send, after the same checks as before a local run."""
        if not images:
            return []
        z, series, depth = (chosen.get(name) for name in ("z", "series", "depth"))
        selection = Selection(
            channel=chosen.get("channel"),
            z=None if z is None else str(z),
            series=None if series is None else str(series),
            frames=chosen.get("frames"),
            depth=None if depth is None else int(depth),
            first=chosen.get("first"),
        )
        planned = inputs.plan(images, selection)
        for note in planned.notes:
            self._reporter.note(note)
        # With --first, those that hold the chosen planes: the server spreads over them again.
        wanted = sorted({request.source for request in planned.requests})
        paths = [Path(planned.sources[index].path) for index in wanted]
        folders = [path for path in paths if path.is_dir()]
        if folders:
            raise UsageError(f"'{folders[0]}' is a folder and cannot be sent.", hint="Run it without --server.")
        return paths

    def _submit(self, fields: Mapping[str, Any], files: Sequence[Path]) -> str:
        form = Form({name: str(value) for name, value in fields.items() if value is not None}, files)
        if files:
            count = "1 image" if len(files) == 1 else f"{len(files)} images"
            self._reporter.phase(f"Sending {count} to {self._connection.url}")
        headers = {**form.headers, "Idempotency-Key": secrets.token_hex(16)}

        def send(check: Callable[[], None]) -> dict[str, Any]:
            def progress(sent: int, total: int) -> None:
                if sent < total:
                    check()
                self._reporter.progress(round(sent / 1e6), max(round(total / 1e6), 1), "MB sent")

            answer = self._connection.ask("POST", "/jobs", body=lambda: form.chunks(progress), headers=headers)
            return dict(self._connection.read(answer, Accepted))

        def taken(accepted: dict[str, Any] | None) -> None:
            if accepted is None:
                address = self._connection.url
                self._reporter.warn(f"The server may have taken the job: segserve ps --server {address} tells.")
            elif accepted["new"]:
                self._stop(accepted["job"])

        accepted = Sending(send).wait(taken)
        job = str(accepted["job"])
        self._reporter.phase(f"Job {job}" if accepted["new"] else f"Job {job}: the same request is on its way already")
        return job

    def _watch(self, job: str) -> None:
        try:
            for event in events.follow(self._connection, job):
                self._tell(event)
        except SegserveError as error:
            error.hint = f"{error.hint} The job goes on: segserve fetch {job} --server {self._connection.url}".strip()
            raise
        if event.data["state"] != "succeeded":
            raise ended(event.data["state"], event.data["error"])

    def _tell(self, event: Event) -> None:
        data = event.data
        if event.kind == "log":
            for line in data["lines"]:
                self._reporter.line(line)
        elif event.kind == "progress" and data["kind"] == "progress":
            self._reporter.progress(data["done"], data["total"], data["what"])
        elif event.kind == "progress":
            tell = {"note": self._reporter.note, "warning": self._reporter.warn}.get(data["kind"], self._reporter.phase)
            tell(data["text"])

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def jobs(self, *, everything: bool = False, limit: int = 50) -> list[dict[str, Any]]:
        """Open jobs (or all), newest first."""
        rows = self._connection.get("/jobs", list[Row], limit=min(limit, _MOST_JOBS) if everything else _MOST_JOBS)
        found = [{"result": "", **row} for row in rows if everything or row["state"] not in _FINAL]
        return found[:limit]

    def show(self, job: str) -> dict[str, Any]:
        """Everything that the server tells about a job (its id, or the beginning of it)."""
        facts: dict[str, Any] = self._connection.get(f"/jobs/{self._id(job)}", Facts)
        return {**facts, "mlflow": download.run_url(self._connection, facts)}

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """The log of the latest attempt, as lines; with `follow` what comes until the job has ended."""
        name = self._id(job)
        if not follow:
            yield from self._connection.ask("GET", f"/jobs/{name}/log").text.splitlines(keepends=True)
            return
        silent = True
        for event in events.follow(self._connection, name):
            if event.data["state"] == "queued":
                self._reporter.note(f"Job {name} waits in the queue.")
            for line in event.data["lines"] if event.kind == "log" else ():
                silent = False
                yield line + "\n"
        if silent:  # nothing ran: there may be the log of a build
            yield from self._whole(name)

    def _whole(self, job: str) -> list[str]:
        try:
            return self._connection.ask("GET", f"/jobs/{job}/log").text.splitlines(keepends=True)
        except NotFound:
            return []

    def cancel(self, job: str) -> dict[str, Any]:
        """Stop a job."""
        return self._cancel(self._id(job))

    def _cancel(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._connection.read(self._connection.ask("DELETE", f"/jobs/{job}"), Stopped)
        return found

    def executors(self, *, algorithm_type: str = "", tags: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Short names that the server knows."""
        asked = {"algorithm_type": algorithm_type, "tag": list(tags)}
        rows: list[dict[str, Any]] = self._connection.get("/executors", list[Executor], **asked)
        return rows

    def _id(self, text: str) -> str:
        """The whole id of the job that begins like this."""
        hint = f"segserve ps -a --server {self._connection.url} lists yours."
        if not _JOB.fullmatch(text):  # it becomes a part of a path
            raise NotFound(f"'{text}' is no job.", hint=hint)
        with suppress(NotFound):
            return str(self._connection.get(f"/jobs/{text}", Facts)["job"])
        rows = self._connection.get("/jobs", list[Row], limit=_MOST_JOBS)
        found = [str(row["job"]) for row in rows if row["job"].startswith(text)]
        if len(found) > 1:
            raise NotFound(f"Several jobs begin with '{text}': {', '.join(found[:5])}.", hint="Write more of it.")
        if not found:
            raise NotFound(f"There is no job '{text}' of yours on {self._connection.url}.", hint=hint)
        return found[0]
