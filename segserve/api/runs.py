"""Verbs that look at an executor or run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segserve import devices, environments, locking, project, refs
from segserve import replay as replaying
from segserve.api.requests import Requests
from segserve.check import whole as checking
from segserve.errors import SegserveError
from segserve.pipeline import Request, Result, Started, prepare, settle
from segserve.pipeline import run as drive

if TYPE_CHECKING:
    from segserve import bench as benchmarking  # imported where it is needed: a check need not wait for it


class Runs(Requests):
    """Executors: look, check, run, run again."""

    def run(self, request: Request) -> Result | Started:
        """Drive one job; see `pipeline.run`."""
        return drive(self.ctx, request)

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
        experiment: str = "",
        **options: Any,
    ) -> benchmarking.Benchmark:
        """Run every executor with every combination of the parameter values that it knows, and rank the results.

        images, truth: what `run` and `compare` take. `rank` is one of `bench.RANKINGS`; `options` are those of
        `request` and hold for all.

        Raises:
            UsageError: images, truth or parameters are wrong. A candidate that fails is a row of the answer.
        """
        from segserve import bench as benchmarking

        requests = [self.request(ref, [images], overlays=0, **options) for ref in executors]
        declared = [self._declared(request) for request in requests]
        candidates = benchmarking.expand(requests, declared, parameters or {})
        setup = benchmarking.Setup(
            Path(images).absolute(),
            Path(truth).absolute(),
            iou,
            rank,
            pictures,
            output,
            experiment or benchmarking.EXPERIMENT,
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
