"""Verbs that look after jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segserve import inputs
from segserve.api.verbs import Verbs
from segserve.backends import local
from segserve.errors import EnvironmentBuildFailed, NotFound
from segserve.journal import JobRecord
from segserve.model import JobState
from segserve.pipeline import cancel, origin, retention, settle, titles
from segserve.pipeline import facts as facts_file
from segserve.pipeline.publish import choose_folder, publish

_LOOK_SECONDS = 0.2


class Jobs(Verbs):
    """Jobs: list, show, follow, cancel."""

    def jobs(self, *, everything: bool = False, limit: int = 50) -> list[dict[str, Any]]:
        """Open jobs (or all), newest first; those that ended meanwhile are collected before."""
        settle(self.ctx)
        records = self.ctx.journal.jobs(limit=limit) if everything else self.ctx.journal.open_jobs()
        return [self.row(record) for record in records]

    def collect_jobs(
        self, days: float | None = None, max_gb: float | None = None, *, dry_run: bool = False
    ) -> list[dict[str, Any]]:
        """Remove what is kept of jobs that have ended; None: as `[retention]` says. What went, oldest first."""
        settle(self.ctx)
        wanted = self.ctx.settings.retention
        days, max_gb = wanted.days if days is None else days, wanted.max_gb if max_gb is None else max_gb
        removed = retention.collect(self.ctx, days=days, max_gb=max_gb, dry_run=dry_run)
        return [{"job": one.job_id, "bytes": one.size, "why": one.why} for one in removed]

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
            "reused": facts.reused,
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
        if follow and record.state is JobState.QUEUED:
            self.ctx.reporter.note(f"Job {record.job_id} waits in the queue.")
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

    def fetch(self, job_id: str, output: Path | None = None) -> Path:
        """Copy the result of a job to `output`, else to where results of runs are put; where it is.

        Raises:
            NotFound: it has none, or none any more.
            UsageError: the place exists, or cannot be written.
        """
        facts = self.show(job_id)
        job, folder = facts["job"], Path(facts["result"])
        if facts["state"] != JobState.SUCCEEDED:
            raise NotFound(f"Job {job} has no result: it is {facts['state']}.", hint=f"segserve logs -f {job}")
        if not folder.is_dir():
            raise NotFound(f"The result of job {job} is not on this machine any more.", hint=f"segserve replay {job}")
        wanted = choose_folder(output, self.ctx.settings.run.results, facts["executor"])
        return publish(folder, wanted, exact=output is not None)

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job and everything that it started."""
        record = self.ctx.journal.get(job_id)
        return {"job": record.job_id, "state": str(cancel(self.ctx, record.job_id))}
