"""The public Python façade and the composition root: the command line and any other edge go through here.

>>> import segserve
>>> result = segserve.run(".#main", ["examples/images"], parameters={"min_area": "30"})
>>> result.counts, result.folder
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segserve import config as settings
from segserve import doctor, environments, inputs, layout, project, refs, tracking
from segserve import format as polygons
from segserve.backends import local
from segserve.environments import docker
from segserve.environments.base import BuildOptions
from segserve.errors import NotFound
from segserve.findings import Finding
from segserve.inputs import Selection
from segserve.journal import JobRecord
from segserve.model import Resources
from segserve.pipeline import (
    Context,
    QuietReporter,
    Reporter,
    Request,
    Result,
    Started,
    cancel,
    prepare,
    settle,
)
from segserve.pipeline import facts as facts_file
from segserve.pipeline import (
    run as drive,
)

__all__ = ["Request", "Result", "Session", "Started", "images", "info", "run", "session", "validate"]


def run(ref: str, images: Sequence[str | Path] = (), *, reporter: Reporter | None = None, **options: Any) -> Result:
    """Run executor `ref` on `images` and wait for the result. `options` are those of `Session.request`.

    Raises:
        SegserveError: see `segserve.errors`.
    """
    with session(reporter=reporter) as here:
        done = here.run(here.request(ref, images, **options))
    assert isinstance(done, Result)  # noqa: S101 - only `detach` starts without waiting, and it is no option here
    return done


def info(ref: str, **options: Any) -> dict[str, Any]:
    """Entry points, parameters, environment and commit of `ref`, as `segserve info --json` prints them."""
    with session() as here:
        return here.info(here.request(ref, (), **options))


def images(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Every series of image files: sizes of T, Z, C, channel names, (x, y) pixel size in µm."""
    return [
        {
            "file": source.given,
            "kind": source.kind,
            "series": number,
            "name": series.name,
            "t": series.sizes.get("T", 1),
            "z": series.sizes.get("Z", 1),
            "c": series.channels,
            "channels": list(inputs.channel_list(series)),
            "height": series.shape[0],
            "width": series.shape[1],
            "dtype": series.dtype,
            "pixel_size_um": series.pixel_size_um,
        }
        for source in inputs.describe(paths)
        for number, series in enumerate(source.series)
    ]


def validate(files: Sequence[Path]) -> list[Finding]:
    """Every finding about output.json files, in order; strict: what a run forgives is an error here."""
    return [
        replace(finding, place=replace(finding.place, path=str(file)))
        for file in files
        for finding in _findings(file.read_bytes())
    ]


def _findings(data: bytes) -> Sequence[Finding]:
    document, findings = polygons.examine(data, strict=True)
    if isinstance(document, polygons.Document):
        return [*findings, *polygons.check(document, strict=True)]
    return findings


@contextmanager
def session(*, config: Path | None = None, reporter: Reporter | None = None) -> Iterator[Session]:
    """One command's worth of work in the user's home."""
    yield Session(Context(layout.home().ensure(), settings.load(config), reporter or QuietReporter()))


@dataclass
class Session:
    """The verbs. All arguments are plain values; all answers are dataclasses or JSON-like."""

    ctx: Context

    def request(
        self,
        ref: str,
        images: Sequence[str | Path] = (),
        *,
        rev: str | None = None,
        entry: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        output: Path | None = None,
        detach: bool = False,
        first: int | None = None,
        channel: str | int | None = None,
        z: str | int | None = None,
        series: str | int | None = None,
        frames: str | None = None,
        depth: str | int | None = None,
        gpus: str | int = "auto",
        no_wait: bool = False,
        timeout: float | None = None,
        memory: float | None = None,
        cpus: float | None = None,
        overlays: int | None = 24,
        experiment: str | None = None,
        keep: bool = False,
        kind: str | None = None,
        python: str | None = None,
        offline: bool = False,
        committed: bool = False,
        allow_unreachable: bool = False,
        submodules: bool = False,
    ) -> Request:
        """A request from plain values.

        Raises:
            InvalidRef, UsageError: something is not what it should be.
        """
        chosen = self.ctx.settings
        limit = chosen.run.timeout_s if timeout is None else timeout
        return Request(
            ref=refs.parse(ref, rev=rev, entry=entry),
            images=tuple(str(path) for path in images),
            parameters={name: str(value) for name, value in (parameters or {}).items()},
            selection=Selection(
                channel=channel,
                z=None if z is None else str(z),
                series=None if series is None else str(series),
                frames=frames,
                depth=None if depth is None else int(depth),
                first=first,
            ),
            build=BuildOptions(
                kind=kind,
                python=python,
                channels=chosen.environments.channels,
                mirrors=chosen.environments.mirrors,
                keep_defaults=chosen.environments.keep_defaults,
                docker_volumes=chosen.environments.docker_volumes,
                docker_variables=chosen.environments.docker_variables,
                offline=offline,
            ),
            gpus=str(gpus),
            wait=not no_wait,
            resources=Resources(cpus=cpus or 0.0, memory_gb=memory or 0.0, timeout_s=limit),
            output=output,
            overlays=overlays,
            experiment=experiment or "",
            attached=not detach,
            offline=offline,
            committed=committed,
            allow_unreachable=allow_unreachable,
            submodules=submodules,
            keep=keep,
        )

    def run(self, request: Request) -> Result | Started:
        """Drive one job; see `pipeline.run`."""
        return drive(self.ctx, request)

    @contextmanager
    def _prepared(self, request: Request) -> Iterator[Any]:
        folder = Path(tempfile.mkdtemp(dir=self.ctx.home.temporary))
        try:
            yield prepare(self.ctx, request, folder / "checkout")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def plan(self, request: Request) -> dict[str, Any]:
        """What `run` would do, after every cheap check (`--dry-run`)."""
        from segserve import devices

        with self._prepared(request) as ready:
            pin, resolution = ready.resolution.pin, ready.resolution
            return {
                "repository": pin.repo,
                "commit": pin.sha,
                "dirty": resolution.dirty,
                "entry": ready.entry.name,
                "parameters": dict(ready.parameters),
                "environment": f"{ready.spec.kind} {ready.spec.key}",
                "built": environments.is_built(self.ctx.home, ready.spec),
                "images": ready.images.count if ready.images else 0,
                "gpu": devices.describe(request.gpus),
                "warnings": [*ready.notes, *ready.spec.warnings],
            }

    def info(self, request: Request) -> dict[str, Any]:
        """Entry points, parameters with types and defaults, environment, commit; nothing is built."""
        folder = Path(tempfile.mkdtemp(dir=self.ctx.home.temporary))
        try:
            resolution = self.ctx.store.resolve(
                request.ref,
                offline=request.offline,
                allow_unreachable=request.allow_unreachable,
                committed=request.committed,
            )
            notes = list(resolution.notes)
            self.ctx.store.checkout(
                resolution, folder / "checkout", submodules=request.submodules, on_note=notes.append
            )
            loaded = project.load(folder / "checkout" / resolution.pin.subdir)
            facts = {
                "repository": resolution.pin.repo,
                "commit": resolution.pin.sha,
                "subdir": resolution.pin.subdir,
                "branch": resolution.branch,
                "dirty": resolution.dirty,
            }
            return {**project.describe(loaded), **facts, "notes": [*notes, *map(str, loaded.findings)]}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def jobs(self, *, everything: bool = False, limit: int = 50) -> list[dict[str, Any]]:
        """Open jobs (or all), newest first; those that ended meanwhile are collected before."""
        settle(self.ctx)
        records = self.ctx.journal.jobs(limit=limit) if everything else self.ctx.journal.open_jobs()
        return [self._row(record) for record in records]

    def _row(self, record: JobRecord) -> dict[str, Any]:
        job = record.job
        staged = self.ctx.home.job(record.job_id).inputs_map
        return {
            "job": record.job_id,
            "state": str(record.state),
            "executor": job.executor,
            "entry": job.entry,
            "images": len(inputs.read_map(staged)) if staged.exists() else None,
            "created": job.created,
            "error": record.error.get("message", "") if record.error else "",
        }

    def show(self, job_id: str) -> dict[str, Any]:
        """Everything known about one job.

        Raises:
            NotFound: there is none, or several begin like this.
        """
        settle(self.ctx)
        record = self.ctx.journal.get(job_id)
        folder = self.ctx.home.job(record.job_id)
        facts = facts_file.read(folder)
        job = record.job
        return {
            **self._row(record),
            "repository": job.pin.repo,
            "commit": job.pin.sha,
            "subdir": job.pin.subdir,
            "parameters": dict(job.parameters),
            "environment": f"{job.environment.kind} {job.environment.key}",
            "result": record.result,
            "mlflow": facts.run_url,
            "seconds": dict(facts.seconds),
            "warnings": list(facts.warnings),
            "log": str(folder.attempt(1).log),
            "hint": record.error.get("hint", "") if record.error else "",
            "quote": record.error.get("quote", "") if record.error else "",
        }

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """The log of a job's attempt, as lines; with `follow` until the job ends."""
        record = self.ctx.journal.get(job_id)
        attempt = self.ctx.home.job(record.job_id).attempt(1)
        if not attempt.log.exists() and not follow:
            raise NotFound(f"Job {record.job_id} has written no log.", hint=f"segserve show {record.job_id}")

        def ended() -> bool:
            return not follow or attempt.outcome.exists() or self.ctx.journal.get(record.job_id).state.final

        for line in local.follow(attempt, until=ended):
            yield line + "\n"
        settle(self.ctx)

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job and everything that it started."""
        record = self.ctx.journal.get(job_id)
        return {"job": record.job_id, "state": str(cancel(self.ctx, record.job_id))}

    def environments(self) -> list[dict[str, Any]]:
        """Built environments, newest use first."""
        return [
            {
                "key": built.key,
                "kind": built.environment.spec.kind,
                "source": built.environment.spec.source,
                "python": built.python,
                "packages": len(built.environment.packages),
                "bytes": built.size_bytes,
                "used": built.last_used,
                "location": built.environment.location,
            }
            for built in environments.built(self.ctx.home)
        ]

    def build_environment(self, request: Request) -> dict[str, Any]:
        """Build (or find) the environment of an executor."""
        with self._prepared(request) as ready:
            built = environments.prepare(
                self.ctx.home,
                ready.project,
                ready.spec,
                report=self.ctx.reporter.line,
                options=request.build,
                phase=self.ctx.reporter.phase,
            )
        return {
            "key": built.spec.key,
            "kind": built.spec.kind,
            "location": built.location,
            "packages": list(built.packages),
        }

    def remove_environment(self, key: str) -> str:
        """Remove one environment; returns its full key."""
        return environments.remove(self.ctx.home, key, keep=self._keys_in_use())

    def collect_garbage(self, older_than_days: float) -> list[str]:
        """Remove environments that nobody uses; returns their keys."""
        in_use = self._keys_in_use()
        removed = environments.collect_garbage(self.ctx.home, in_use, older_than_days=older_than_days)
        if shutil.which("docker"):
            kept = [built.environment.location for built in environments.built(self.ctx.home)]
            removed += docker.collect_garbage(kept)
        return removed

    def _keys_in_use(self) -> set[str]:
        settle(self.ctx)
        return {record.job.environment.key for record in self.ctx.journal.open_jobs()}

    def ui(self) -> str:
        """The address of the tracking UI; the embedded server is started when needed."""
        return tracking.ui(self.ctx.home, idle_minutes=self.ctx.settings.tracking.idle_minutes)

    def stop_ui(self) -> bool:
        """Stop the embedded tracking server; false when it did not run."""
        return tracking.stop_server(self.ctx.home)

    def doctor(self) -> list[dict[str, str]]:
        """What this machine has and lacks."""
        return [asdict(check) for check in doctor.examine(self.ctx.home, self.ctx.settings)]
