"""Run the candidates one after the other, compare each with the truth, write it all down under one MLflow run."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import segserve
from segserve import comparison, fetch, inputs, pipeline, sides, tracking
from segserve.bench import pages
from segserve.bench.candidates import Candidate
from segserve.bench.rows import Benchmark, Row, ranked
from segserve.errors import SegserveError, UsageError
from segserve.journal import JobRecord
from segserve.model import outcome_from_json
from segserve.pipeline import Context, Result
from segserve.pipeline import facts as facts_file
from segserve.pipeline.publish import choose_folder, new_folder

EXPERIMENT = "segserve-bench"
THUMBNAILS = 2  # pictures of each candidate in the page
_THUMBNAIL = 420  # px


@dataclass(frozen=True, slots=True)
class Setup:
    """What all candidates have in common: the annotated set, at which IoU and by what they are ranked."""

    images: Path
    truth: Path
    iou: float = 0.5
    rank: str = "ap"
    pictures: int = 8  # of disagreement, per candidate
    output: Path | None = None
    experiment: str = EXPERIMENT

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Those of the mean AP, and the one of the table."""
        return tuple(sorted({self.iou, *comparison.THRESHOLDS}))


def run(ctx: Context, candidates: Sequence[Candidate], setup: Setup) -> Benchmark:
    """The ranked benchmark. A candidate that fails is a row with its error.

    Raises:
        UsageError: images and truth cannot be read or do not belong together, before anything runs.
        BackendError: no tracking server, or no place for the result.
    """
    count, notes = _check(candidates, setup)
    exact = setup.output is not None
    folder = new_folder(choose_folder(setup.output, ctx.settings.run.results, "bench"), exact=exact)
    truth_digest = fetch.digest_of(setup.truth)
    with _parent(ctx, setup, len(candidates)) as (tracker, parent):
        rows = []
        for number, candidate in enumerate(candidates, 1):
            ctx.reporter.phase(f"[{number}/{len(candidates)}] {candidate.name}")
            rows.append(_Try(ctx, setup, folder, tracker, parent, number, candidate).row())
        digests = {row.inputs_digest for row in rows if row.inputs_digest}
        data = hashlib.sha256("\n".join([*sorted(digests), truth_digest]).encode()).hexdigest()
        benchmark = Benchmark(
            rows=ranked(rows, setup.rank),
            images=str(setup.images),
            truth=str(setup.truth),
            count=count,
            true_objects=sum(len(image.load()) for image in sides.read(setup.truth).images),
            data=data,
            iou=setup.iou,
            rank=setup.rank,
            folder=folder,
            run_id=parent.run_id,
            run_url=parent.url,
            notes=notes,
        )
        _record(tracker, benchmark)
    return benchmark


def _check(candidates: Sequence[Candidate], setup: Setup) -> tuple[int, tuple[str, ...]]:
    """The number of images, and notes; whatever is wrong with images and truth is said before anything runs."""
    truth = sides.read(setup.truth)
    count = inputs.plan((str(setup.images),), candidates[0].request.selection).count
    if truth.listed and len(truth.images) != count:
        raise UsageError(
            f"{setup.images} has {count} image(s), the truth {setup.truth} has {len(truth.images)}.",
            hint="Every image needs its truth: a label image of the same name, or one entry in the same order.",
        )
    return count, truth.notes


@contextmanager
def _parent(ctx: Context, setup: Setup, count: int) -> Iterator[tuple[tracking.Tracker, tracking.RunHandle]]:
    """The run under which those of the candidates are nested; it ends with the block."""
    where = tracking.resolve(ctx.home, idle_minutes=ctx.settings.tracking.idle_minutes)
    with tracking.hold(ctx.home):
        tracker = tracking.open_tracker(ctx.home, where.uri)
        parent = tracker.create_run(
            tracker.experiment(setup.experiment),
            name=f"bench {datetime.now(UTC):%Y-%m-%d %H:%M}, {count} candidates",
            tags={"segserve.version": segserve.__version__, "segserve.images_folder": str(setup.images)},
            params={"truth": str(setup.truth), "iou": f"{setup.iou:g}", "ranked_by": setup.rank},
        )
        status = "KILLED"
        try:
            yield tracker, parent
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            tracker.finish(parent.run_id, status)


@dataclass(frozen=True)
class _Try:
    """One candidate on its way to a row."""

    ctx: Context
    setup: Setup
    folder: Path
    tracker: tracking.Tracker
    parent: tracking.RunHandle
    number: int
    candidate: Candidate

    @property
    def _slug(self) -> str:
        name = re.sub(r"[^\w.=-]+", "-", self.candidate.name, flags=re.ASCII).strip("-.")[:80]
        return f"{self.number:02d}-{name}"

    @property
    def _key(self) -> str:
        """Finds the candidate's job again, in journal and MLflow."""
        return f"{self.parent.run_id}/{self.number}"

    def row(self) -> Row:
        """Run, compare, write down."""
        request = replace(
            self.candidate.request,
            output=self.folder / "results" / self._slug,
            experiment=self.setup.experiment,
            parent_run=self.parent.run_id,
            tags={**self.candidate.request.tags, "candidate": self._key},
        )
        bare = Row(self.number, self.candidate.name, str(request.ref), dict(request.parameters))
        try:
            result = pipeline.run(self.ctx, request)
            assert isinstance(result, Result)  # only a detached request starts without waiting
            done = self._compared(bare, result)
        except SegserveError as failure:
            self.ctx.reporter.warn(f"{self.candidate.name}: {failure.message}")
            return self._failed(bare, failure)
        self._log(done)
        return done

    def _compared(self, bare: Row, result: Result) -> Row:
        job = self.ctx.home.job(result.job_id)
        facts = facts_file.read(job)
        outcome = outcome_from_json(job.attempt(1).outcome.read_text(encoding="utf-8"))
        found = comparison.compare(result.folder, self.setup.truth, self.setup.thresholds).pooled.as_dict()
        at = {one["iou"]: one for one in found["at"]}
        scores = at[self.setup.iou]
        return replace(
            bare,
            commit=result.pin.sha,
            ap=scores["ap"],
            mean_ap=sum(at[iou]["ap"] for iou in comparison.THRESHOLDS) / len(comparison.THRESHOLDS),
            pq=scores["panoptic_quality"],
            f1=scores["f1"],
            precision=scores["precision"],
            recall=scores["recall"],
            objects=found["predicted"],
            seconds=result.seconds["executor"],
            memory_mb=outcome.max_rss_bytes / 1e6 or math.nan,  # 0: it ended before anybody could look
            inputs_digest=facts.inputs_digest,
            run_id=facts.run_id,
            run_url=result.run_url,
            result=str(result.folder),
            thumbnails=self._draw(result.folder),
        )

    def _draw(self, result: Path) -> tuple[bytes, ...]:
        """Pictures of disagreement, beside the results; returns the first of them, small."""
        import cv2

        folder = self.folder / "disagreement" / self._slug
        folder.mkdir(parents=True)
        thumbnails: list[bytes] = []
        for number, (name, picture) in enumerate(self._pictures(result), 1):
            if picture is None:
                continue
            comparison.save_picture(folder, number, name, picture)
            if len(thumbnails) < THUMBNAILS:
                scale = min(1.0, _THUMBNAIL / max(picture.shape[:2]))
                small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
                thumbnails.append(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
        return tuple(thumbnails)

    def _pictures(self, result: Path) -> list[tuple[str, Any]]:
        """On the images; on black where those are stacks, or have channels of which one was chosen."""
        for images in (self.setup.images, None):
            try:
                drawn = comparison.pictures(result, self.setup.truth, images, self.setup.iou)
                return list(islice(drawn, self.setup.pictures))
            except UsageError as failure:
                self.ctx.reporter.note(f"No picture on the images: {failure.message}")
        return []

    def _failed(self, bare: Row, failure: SegserveError) -> Row:
        record = self._job()
        if record is not None and record.job is not None and record.run_id:
            run_id, url, commit = record.run_id, record.run_url, record.job.pin.sha
            self._name(run_id)
        else:  # it was refused before it had a run of its own
            handle = self.tracker.create_run(
                self.parent.experiment_id,
                name=self.candidate.name,
                tags={
                    "mlflow.parentRunId": self.parent.run_id,
                    "segserve.candidate": self._key,
                    "segserve.error": failure.code,
                    "segserve.message": failure.message,
                },
                params=self.candidate.request.parameters,
            )
            self.tracker.finish(handle.run_id, "FAILED")
            run_id, url, commit = handle.run_id, handle.url, ""
        return replace(bare, commit=commit, run_id=run_id, run_url=url, error=failure.message, hint=failure.hint)

    def _name(self, run_id: str) -> None:
        """In MLflow's table the nested runs are called as in ours."""
        self.tracker.set_tags(run_id, {"mlflow.runName": self.candidate.name})

    def _job(self) -> JobRecord | None:
        recent = self.ctx.journal.jobs(limit=20)
        return next((record for record in recent if record.job and record.job.tags.get("candidate") == self._key), None)

    def _log(self, row: Row) -> None:
        """The candidate's own run gets its scores and pictures beside what every run has."""
        self._name(row.run_id)
        self.tracker.log_metrics(row.run_id, row.metrics)
        self.tracker.set_tags(row.run_id, {"segserve.truth": str(self.setup.truth)})
        self.tracker.log_folder(row.run_id, self.folder / "disagreement" / self._slug, "disagreement")


def _record(tracker: tracking.Tracker, benchmark: Benchmark) -> None:
    """Table and pages into the folder and the parent run; the data's hash to all runs."""
    folder = benchmark.folder
    (folder / "bench.md").write_text(pages.markdown(benchmark), encoding="utf-8")
    (folder / "bench.html").write_text(pages.html(benchmark), encoding="utf-8")
    text = json.dumps(benchmark.as_dict(), indent=2, ensure_ascii=False)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    for name in ("bench.md", "bench.html", "bench.json"):
        tracker.log_file(benchmark.run_id, folder / name, name)
    if (folder / "disagreement").exists():
        tracker.log_folder(benchmark.run_id, folder / "disagreement", "disagreement")
    for run_id in (benchmark.run_id, *(row.run_id for row in benchmark.rows)):
        tracker.set_tags(run_id, {"segserve.data": benchmark.data})
    best = benchmark.rows[0]
    if not best.error:
        tracker.log_metrics(benchmark.run_id, {f"best.{name}": value for name, value in best.metrics.items()})
        tracker.set_tags(benchmark.run_id, {"segserve.best": best.name})
