"""The public Python façade and the composition root: the command line and any other edge go through here.

>>> import segserve
>>> result = segserve.run(".#main", ["examples/images"], parameters={"min_area": "30"})
>>> result.counts, result.folder
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segserve import bench as benchmarking
from segserve import config as settings
from segserve import (
    devices,
    dialects,
    doctor,
    environments,
    inputs,
    kit,
    layout,
    locking,
    manifest,
    project,
    refs,
    registry,
    scaffold,
    tracking,
    validation,
)
from segserve import replay as replaying
from segserve.backends import local
from segserve.check import whole as checking
from segserve.environments import docker
from segserve.environments.base import BuildOptions
from segserve.errors import (
    BackendError,
    EnvironmentBuildFailed,
    NotFound,
    SegserveError,
    UnreadableImage,
    UsageError,
    did_you_mean,
    disk_full,
)
from segserve.exporters import targets
from segserve.findings import Finding
from segserve.inputs import Selection
from segserve.journal import JobRecord
from segserve.model import JobState, Resources
from segserve.pipeline import (
    Context,
    QuietReporter,
    Reporter,
    Request,
    Result,
    Started,
    cancel,
    origin,
    prepare,
    settle,
    submit,
    titles,
)
from segserve.pipeline import facts as facts_file
from segserve.pipeline import (
    run as drive,
)
from segserve.store import Resolution

__all__ = [
    "Request",
    "Result",
    "Session",
    "Started",
    "images",
    "info",
    "inspect_images",
    "run",
    "session",
    "submit",
    "validate",
]


_CONFIGURED = "config.toml"
_LOOK_SECONDS = 0.2


def run(ref: str, images: Sequence[str | Path] = (), *, reporter: Reporter | None = None, **options: Any) -> Result:
    """Run executor `ref` on `images` and wait for the result. `options` are those of `Session.request`.

    Raises:
        SegserveError: see `segserve.errors`.
    """
    if options.pop("detach", False):
        raise UsageError(
            "segserve.run waits for the result.", hint="`with api.session() as s: s.run(s.request(…, detach=True))`"
        )
    with session(reporter=reporter) as here:
        done = here.run(here.request(ref, images, **options))
    assert isinstance(done, Result)  # noqa: S101 - only `detach` starts without waiting
    return done


def info(ref: str, **options: Any) -> dict[str, Any]:
    """Entry points, parameters, environment and commit of `ref`, as `segserve info --json` prints them."""
    with session() as here:
        return here.info(here.request(ref, (), **options))


def images(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Every file with its series: sizes of T, Z, C, channel names, (x, y) pixel size in µm.

    Raises:
        UnreadableImage: with a finding for every input that cannot be read.
    """
    return inputs.structure(inputs.describe(paths))


def inspect_images(paths: Sequence[str | Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """`images`, and what `run` would have to say about them: notes, or the choices that it would ask for."""
    described = images(paths)
    try:
        planned = inputs.plan(paths)
    except UnreadableImage as refusal:
        return described, [f"`segserve run` needs a choice: {refusal.message} {refusal.hint}".strip()]
    count = "1 image" if planned.count == 1 else f"{planned.count} images"
    return described, [*planned.notes, f"`segserve run` makes {count} of this"]


def validate(
    files: Sequence[str | Path],
    images: str | Path | None = None,
    *,
    pairs: bool = False,
    ignore: Sequence[str] = (),
) -> list[Finding]:
    """Every finding about output.json files, in order; strict: what a run forgives is an error here.

    `images` is the folder (or file) that they belong to, `pairs` also looks for overlaps, `ignore` names rules.

    Raises:
        NotFound: one of them does not exist or is no file.
    """
    known = validation.measured(Path(images)) if images is not None else None
    reports = (validation.validate(Path(file), known, pairs=pairs, skip=frozenset(ignore)) for file in files)
    return [finding for report in reports for finding in report.findings]


def new(folder: str | Path, *, template: str = "threshold", env: str = "uv") -> Path:
    """Write a repository with an executor that runs as it stands; see `segserve new`. Returns its absolute path.

    Raises:
        UsageError: no such template or kind of environment, no name, or the folder is in use.
    """
    for word, known in ((template, {**scaffold.METHODS, **scaffold.MODULES}), (env, scaffold.ENVIRONMENTS)):
        if word not in known:
            raise UsageError(f"There is no '{word}'.", hint=did_you_mean(word, known))
    return scaffold.create(Path(folder), template=template, env=env)


def sdk_wheel(folder: str | Path = ".") -> dict[str, str]:
    """Write the wheel of `segserve_sdk` into `folder`; its path, version and SHA-256.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        path = kit.write_wheel(Path(folder))
    except OSError as error:
        raise disk_full(error) or UsageError(f"'{folder}' cannot be written: {error.strerror}.") from None
    return {"path": str(path), "version": kit.version(), "sha256": kit.digest()}


@contextmanager
def session(*, config: Path | None = None, reporter: Reporter | None = None) -> Iterator[Session]:
    """One command's worth of work in the user's home.

    Raises:
        UsageError: the configuration is malformed.
        BackendError: the home cannot be used.
        DiskFull: whatever the disk had no space for. The one place that turns what the system says into this.
    """
    try:
        yield Session(Context(_home(), settings.load(config), reporter or QuietReporter()), config)
    except (OSError, sqlite3.Error) as error:
        full = disk_full(error, layout.home().path)
        if full is None:
            raise
        raise full from error


def _home() -> layout.Home:
    home = layout.home()
    try:
        return home.ensure()
    except OSError as error:
        if disk_full(error):
            raise
        raise BackendError(
            f"'{home.path}' cannot be used: {error.strerror}.", hint="SEGSERVE_HOME names another folder."
        ) from None


def _names(chosen: settings.Settings) -> dict[str, registry.Registered]:
    """Short names: those of config.toml, and those that come with segserve."""
    configured: dict[str, registry.Registered | None] = {}
    for name, entry in chosen.executors.items():
        if isinstance(entry, settings.ExecutorSettings):
            configured[name] = registry.Registered(name, entry.ref, entry.description, _CONFIGURED)
        else:
            configured[name] = registry.Registered(name, entry, origin=_CONFIGURED) if entry else None
    return registry.known(configured)


def _title(name: registry.Registered) -> str:
    """The title in the manifest of an executor in a folder here; those of others are not fetched for a list."""
    target = refs.parse(name.ref)
    if target.kind is not refs.RepoKind.PATH:
        return ""
    root = Path(target.repo)
    return manifest.load(root / target.subdir, root).manifest.title


@dataclass
class Session:
    """The verbs. All arguments are plain values; all answers are dataclasses or JSON-like.

    `config` is the config.toml that was named, None for the default one.
    """

    ctx: Context
    config: Path | None = None

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
        exports: str | None = None,
        experiment: str | None = None,
        keep: bool = False,
        kind: str | None = None,
        python: str | None = None,
        no_lock: bool = False,
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
        parsed = refs.parse(ref, rev=rev, entry=entry)
        parsed = registry.resolve(parsed, ref, _names(chosen), entry=entry)
        limit = chosen.run.timeout_s if timeout is None else timeout
        return Request(
            ref=parsed,
            images=(str(images),) if isinstance(images, (str, Path)) else tuple(str(path) for path in images),
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
                use_lock=not no_lock,
            ),
            gpus=str(gpus),
            wait=not no_wait,
            resources=Resources(cpus=cpus or 0.0, memory_gb=memory or 0.0, timeout_s=limit),
            output=output,
            overlays=overlays,
            exports=targets(exports) if exports else (),
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
    def _scratch(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self.ctx.home.temporary))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _loaded(self, request: Request) -> Iterator[tuple[Resolution, project.Project, list[str]]]:
        """The commit and the project in it, and notes for people; parameters and images are not looked at."""
        with self._scratch() as folder:
            resolution = self.ctx.store.resolve(
                request.ref,
                offline=request.offline,
                allow_unreachable=request.allow_unreachable,
                committed=request.committed,
                on_note=self.ctx.reporter.note,
            )
            notes = list(resolution.notes)
            checkout = self.ctx.store.checkout(
                resolution, folder / "checkout", submodules=request.submodules, on_note=notes.append
            )
            yield resolution, dialects.load(checkout / resolution.pin.subdir), notes

    def plan(self, request: Request) -> dict[str, Any]:
        """What `run` would do, after every cheap check (`--dry-run`)."""
        with self._scratch() as folder:
            ready = prepare(self.ctx, request, folder / "checkout")
            pin, resolution = ready.resolution.pin, ready.resolution
            return {
                "repository": pin.repo,
                "commit": pin.sha,
                "subdir": pin.subdir,
                "dirty": resolution.dirty,
                "entry": ready.entry.name,
                "parameters": {**ready.entry.defaults, **ready.parameters},
                "environment": f"{ready.spec.kind} {ready.spec.key}",
                "built": environments.is_built(self.ctx.home, ready.spec),
                "images": ready.images.count if ready.images else 0,
                "gpu": devices.describe(request.gpus),
                "warnings": [*ready.notes, *ready.spec.warnings, *map(str, ready.project.findings)],
            }

    def bench(
        self,
        executors: Sequence[str],
        images: str | Path,
        truth: str | Path,
        *,
        parameters: Mapping[str, Sequence[str]] | None = None,
        iou: float = 0.5,
        rank: str = "ap",
        pictures: int = 8,
        output: Path | None = None,
        experiment: str = benchmarking.EXPERIMENT,
        **options: Any,
    ) -> benchmarking.Benchmark:
        """Run every executor with every combination of the parameter values that it knows, and rank the results.

        images, truth: what `run` and `compare` take. `rank` is one of `bench.RANKINGS`; `options` are those of
        `request` and hold for all.

        Raises:
            UsageError: images, truth or parameters are wrong. A candidate that fails is a row of the answer.
        """
        requests = [self.request(ref, [images], overlays=0, **options) for ref in executors]
        declared = [self._declared(request) for request in requests]
        candidates = benchmarking.expand(requests, declared, parameters or {})
        setup = benchmarking.Setup(
            Path(images).absolute(), Path(truth).absolute(), iou, rank, pictures, output, experiment
        )
        return benchmarking.run(self.ctx, candidates, setup)

    def _declared(self, request: Request) -> set[str] | None:
        """The names of the entry point's parameters; None when it cannot be had, which its run will report."""
        try:
            with self._loaded(request) as (_, loaded, _notes):
                return set(project.select(loaded, request.ref.entry).parameters)
        except SegserveError:
            return None

    def info(self, request: Request) -> dict[str, Any]:
        """Entry points, parameters with types and defaults, environment, commit; nothing is built.

        Only the entry point that the reference names, if it names one of them.
        """
        with self._loaded(request) as (resolution, loaded, notes):
            described, name = project.describe(loaded), request.ref.entry
            if name != refs.DEFAULT_ENTRY:
                chosen = [entry for entry in described["entry_points"] if entry["name"] == name]
                if not chosen:
                    project.select(loaded, name)  # says what there is, or takes it as the name of a script
                described["entry_points"] = chosen or described["entry_points"]
            facts = {
                "repository": resolution.pin.repo,
                "commit": resolution.pin.sha,
                "subdir": resolution.pin.subdir,
                "branch": resolution.branch,
                "dirty": resolution.dirty,
            }
            return {**described, **facts, "notes": [*notes, *map(str, loaded.findings)]}

    def check(
        self,
        request: Request,
        *,
        ignore: Sequence[str] = (),
        probing: checking.Probing | None = None,
        anew: bool = False,
    ) -> checking.Checked:
        """Whether the executor is a good one; see `segserve.check`. With `probing` it is run, `anew` solved."""
        with self._scratch() as folder:
            return checking.check(self.ctx, request, folder, ignore=ignore, probing=probing, anew=anew)

    def executors(self, *, algorithm_type: str = "", tags: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Short names of executors: what each stands for, its description, the title in its manifest, who says so.

        With a type or tags, only the algorithm modules of that type that have all the tags. Of remote ones, those are
        known that have been fetched before.
        """
        names = _names(self.ctx.settings).values()
        rows = [{**asdict(name), "title": _title(name)} for name in names]
        if not algorithm_type and not tags:
            return rows
        modules = [(row, self._known_module(row["ref"])) for row in rows]
        return [
            {**row, "algorithm_type": module["algorithm_type"], "tags": module["tags"]}
            for row, module in modules
            if module and algorithm_type in ("", module["algorithm_type"]) and set(tags) <= set(module["tags"])
        ]

    def _known_module(self, ref: str) -> dict[str, Any]:
        """What an algorithm module says of itself; empty for executors, and for what was never fetched."""
        try:
            with self._loaded(self.request(ref, offline=True)) as (_, loaded, _notes):
                return dict(loaded.module)
        except SegserveError:
            return {}

    def add_executor(self, name: str, ref: str, *, description: str = "") -> dict[str, str]:
        """Let a short name stand for a reference, in config.toml.

        Raises:
            UsageError: no name, or no reference; config.toml cannot be written.
        """
        text = str(registry.check(name, ref))
        file = self.config or settings.default_path()
        settings.edit_executor(file, name, {"ref": text, "description": description} if description else text)
        return {"name": name, "ref": text, "file": str(file)}

    def remove_executor(self, name: str) -> dict[str, str]:
        """Forget a short name of config.toml, or hide one that comes with segserve.

        Raises:
            NotFound: there is no such name.
        """
        names = _names(self.ctx.settings)
        if name not in names:
            raise NotFound(f"No executor is registered under '{name}'.", hint=did_you_mean(name, names))
        file, ours = self.config or settings.default_path(), names[name].origin == _CONFIGURED
        settings.edit_executor(file, name, None if ours else False)
        return {"name": name, "what": "is forgotten" if ours else "is hidden", "file": str(file)}

    def jobs(self, *, everything: bool = False, limit: int = 50) -> list[dict[str, Any]]:
        """Open jobs (or all), newest first; those that ended meanwhile are collected before."""
        settle(self.ctx)
        records = self.ctx.journal.jobs(limit=limit) if everything else self.ctx.journal.open_jobs()
        return [self.row(record) for record in records]

    def row(self, record: JobRecord) -> dict[str, Any]:
        """A job in a list."""
        staged = self.ctx.home.job(record.job_id).inputs_map
        return {
            "job": record.job_id,
            "state": str(record.state),
            **titles(record),
            "images": len(inputs.read_map(staged)) if staged.exists() else None,
            "progress": self._progress(record),
            "result": record.result,
            "error": record.error.get("message", "") if record.error else "",
        }

    def _progress(self, record: JobRecord) -> dict[str, int] | None:
        """What the executor of a running job says: how many images are done, of how many."""
        running = record.state is JobState.RUNNING
        said = local.progress(self.ctx.home.job(record.job_id).attempt(record.attempt)) if running else None
        return asdict(said) if said else None

    def show(self, job_id: str) -> dict[str, Any]:
        """Everything known about one job.

        Raises:
            NotFound: there is none, or several begin like this.
        """
        settle(self.ctx)
        return self.facts(self.ctx.journal.get(job_id))

    def facts(self, record: JobRecord) -> dict[str, Any]:
        """Everything known about one job, as far as the journal knows how it is."""
        facts = facts_file.read(self.ctx.home.job(record.job_id))
        return {
            **self.row(record),
            **origin(record),
            "attempt": record.attempt,
            "mlflow": record.run_url or facts.run_url,
            "seconds": {name: round(value, 3) for name, value in facts.seconds.items()},
            "warnings": list(record.warnings or facts.warnings),
            "log": str(self._log(record)),
            "hint": record.error.get("hint", "") if record.error else "",
            "quote": record.error.get("quote", "") if record.error else "",
        }

    def _log(self, record: JobRecord) -> Path:
        """The log of the attempt; of a job whose environment could not be built, that of the build."""
        attempt = self.ctx.home.job(record.job_id).attempt(record.attempt)
        if record.job is None:
            return attempt.log
        build = self.ctx.home.environment_log(record.job.environment.key)
        failed = record.error.get("code") == EnvironmentBuildFailed.__name__ if record.error else False
        return build if failed and build.exists() and not attempt.plan.exists() else attempt.log

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """The log of a job's latest attempt, as lines; with `follow` until it ends. One that waits is waited for."""
        record = self.ctx.journal.get(job_id)
        while follow and record.state is JobState.QUEUED:
            time.sleep(_LOOK_SECONDS)
            record = self.ctx.journal.get(job_id)
        attempt = self.ctx.home.job(record.job_id).attempt(record.attempt)
        log = self._log(record)
        if log != attempt.log:
            yield from log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            return
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
        with self._loaded(request) as (_, loaded, _notes):
            spec = environments.detect(loaded, request.build)
            for warning in spec.warnings:
                self.ctx.reporter.warn(warning)
            built = environments.prepare(
                self.ctx.home,
                loaded,
                spec,
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

    def lock(self, request: Request, output: Path | None = None) -> tuple[Path, int]:
        """Write the lock of an executor's environment, which is built for it; its path and the number of packages.

        Raises:
            UsageError: it is no folder, and `output` does not say where to write.
        """
        with self._loaded(request) as (resolution, loaded, _notes):
            return locking.write(self.ctx, request, resolution, loaded, output)

    def replay(
        self,
        what: str,
        images: Sequence[str | Path] = (),
        *,
        no_lock: bool = False,
        offline: bool = False,
        entry: str | None = None,
        **options: Any,
    ) -> replaying.Replay:
        """Run an old result again: `what` is a job or the path of an output.json. `options` are those of `request`."""
        settle(self.ctx)
        file = Path(what)
        if file.is_dir():
            file = file / "output.json"
        origin = (
            replaying.of_file(self.ctx, file, offline=offline) if file.is_file() else replaying.of_job(self.ctx, what)
        )
        request = self.request(
            refs.of_pin(origin.pin), images, entry=entry, offline=offline, no_lock=no_lock, **options
        )
        return replaying.replay(self.ctx, request, origin)

    def environment_key(self, request: Request) -> str:
        """The content key of an executor's environment on this machine; nothing is built."""
        with self._loaded(request) as (_, loaded, _notes):
            return environments.detect(loaded, request.build).key

    def remove_environment(self, key: str) -> str:
        """Remove one environment; returns its full key."""
        return environments.remove(self.ctx.home, key, keep=self._keys_in_use())

    def collect_garbage(self, older_than_days: float) -> list[str]:
        """Remove environments that nobody uses; returns their keys."""
        in_use = self._keys_in_use()
        removed = environments.collect_garbage(self.ctx.home, in_use, older_than_days=older_than_days)
        if shutil.which("docker"):
            kept = [built.environment.location for built in environments.built(self.ctx.home)]
            try:
                removed += docker.collect_garbage(kept)
            except BackendError as failure:  # no engine answers: there is nothing of ours to find
                self.ctx.reporter.note(f"Docker images were not looked at: {failure.message}")
        return removed

    def _keys_in_use(self) -> set[str]:
        settle(self.ctx)
        return {record.job.environment.key for record in self.ctx.journal.open_jobs() if record.job is not None}

    def ui(self) -> str:
        """The address of the tracking UI: the server that the environment names, else the embedded one, started."""
        external = tracking.external()
        if external is not None:
            return external.uri
        return tracking.ui(self.ctx.home, idle_minutes=self.ctx.settings.tracking.idle_minutes)

    def stop_ui(self) -> bool:
        """Stop the embedded tracking server; false when it did not run."""
        return tracking.stop_server(self.ctx.home)

    def doctor(self) -> list[dict[str, str]]:
        """What this machine has and lacks."""
        return [asdict(check) for check in doctor.examine(self.ctx.home, self.ctx.settings)]
