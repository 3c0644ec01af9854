"""`Remote`: the verbs. Arguments are those of the command line, answers are what `api` would have given."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from segserve import inputs, refs
from segserve.client import download, events
from segserve.client.connection import Connection, ended
from segserve.client.events import Event
from segserve.client.upload import Form
from segserve.errors import NotFound, SegserveError, UsageError
from segserve.inputs import Selection
from segserve.pipeline import Reporter, Result, Started
from segserve.refs import RepoKind

_MOST_JOBS = 1000
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
            facts = self.show(job)
            return Started(job, facts["mlflow"], Path(output or ""))
        try:
            self._watch(job)
        except KeyboardInterrupt:
            self._reporter.phase("Stopping")
            self.cancel(job)
            raise
        self._reporter.phase("Fetching the result")
        return download.result(self._connection, self.show(job), output, self._results, self._reporter.progress)

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
        wanted = sorted({request.source for request in planned.requests}) if chosen.get("first") is None else None
        sources = planned.sources if wanted is None else [planned.sources[index] for index in wanted]
        paths = [Path(source.path) for source in sources]
        folders = [path for path in paths if path.is_dir()]
        if folders:
            raise UsageError(f"'{folders[0]}' is a folder and cannot be sent.", hint="Run it without --server.")
        return paths

    def _submit(self, fields: Mapping[str, Any], files: Sequence[Path]) -> str:
        form = Form({name: str(value) for name, value in fields.items() if value is not None}, files)
        what = "MB sent"

        def progress(sent: int, total: int) -> None:
            self._reporter.progress(round(sent / 1e6), max(round(total / 1e6), 1), what)

        if files:
            count = "1 image" if len(files) == 1 else f"{len(files)} images"
            self._reporter.phase(f"Sending {count} to {self._connection.url}")
        headers = {**form.headers, "Idempotency-Key": secrets.token_hex(16)}
        answer = self._connection.ask("POST", "/jobs", body=lambda: form.chunks(progress), headers=headers)
        accepted = answer.json()
        job = str(accepted["job"])
        self._reporter.phase(f"Job {job}" if accepted["new"] else f"Job {job}: the same request is on its way already")
        return job

    def _watch(self, job: str) -> None:
        for event in events.follow(self._connection, job):
            self._tell(event)
            if event.kind == "end" and event.data["state"] != "succeeded":
                raise ended(event.data["state"], event.data.get("error") or {})

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
        rows = self._connection.get("/jobs", limit=min(limit, _MOST_JOBS) if everything else _MOST_JOBS)
        found = [{"result": "", **row} for row in rows if everything or row["state"] not in _FINAL]
        return found[:limit]

    def show(self, job: str) -> dict[str, Any]:
        """Everything that the server tells about a job (its id, or the beginning of it)."""
        facts: dict[str, Any] = self._connection.get(f"/jobs/{self._id(job)}")
        return {**facts, "mlflow": download.run_url(self._connection, facts)}

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """The log of the latest attempt, as lines; with `follow` what comes until the job has ended."""
        name = self._id(job)
        if not follow:
            yield from self._connection.ask("GET", f"/jobs/{name}/log").text.splitlines(keepends=True)
            return
        silent = True
        for event in events.follow(self._connection, name):
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
        found: dict[str, Any] = self._connection.ask("DELETE", f"/jobs/{self._id(job)}").json()
        return found

    def executors(self, *, algorithm_type: str = "", tags: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Short names that the server knows."""
        rows: list[dict[str, Any]] = self._connection.get("/executors", algorithm_type=algorithm_type, tag=list(tags))
        return rows

    def _id(self, text: str) -> str:
        """The whole id of the job that begins like this."""
        try:
            return str(self._connection.get(f"/jobs/{text}")["job"])
        except SegserveError as refusal:
            if not isinstance(refusal, NotFound):
                raise
            found = [
                row["job"] for row in self._connection.get("/jobs", limit=_MOST_JOBS) if row["job"].startswith(text)
            ]
            if len(found) == 1:
                return str(found[0])
            if found:
                raise NotFound(f"Several jobs begin with '{text}': {', '.join(found[:5])}.") from None
            raise
