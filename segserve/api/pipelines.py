"""Verbs that look after pipelines: which there are, building what they need, asking one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segserve import dialects, environments, project, refs
from segserve.antenna import catalogue, messages
from segserve.antenna.catalogue import Catalogue, Seen
from segserve.antenna.chain import algorithms
from segserve.api.environments import Environments
from segserve.api.requests import Requests, registered
from segserve.errors import SegserveError, UnknownEntryPoint
from segserve.journal import Quota, Submission, Submitted, new_job_id
from segserve.pipeline import Request, wire


class Pipelines(Environments, Requests):
    """Pipelines: list, build, ask."""

    def pipelines(self) -> Catalogue:
        """All pipelines, and which of them are ready. Nothing is built or fetched.

        Raises:
            UsageError: config.toml describes one that cannot be.
        """
        return catalogue.catalogue(self.ctx.settings, registered(self.ctx.settings), _Executors(self))

    def pipeline_rows(self) -> list[dict[str, Any]]:
        """What `segserve pipelines` prints."""
        return [
            {
                "slug": slug,
                "name": entry.chain.name,
                "version": entry.chain.version,
                "stages": [one.key for one in algorithms(entry.chain)],
                "ready": entry.ready,
            }
            for slug, entry in self.pipelines().entries.items()
        ]

    def build_pipeline(self, slug: str, *, others: bool = False) -> list[dict[str, Any]]:
        """Build the environments of a pipeline; one row for each, as `env build` has them. `others`: see `Request`.

        Raises:
            UnknownPipeline: there is none.
            EnvironmentBuildFailed, BackendError: it cannot be built.
        """
        chain = self.pipelines().chain(slug)
        requests = [replace(wire.from_json(stage.request), others=others) for stage in chain.stages]
        return [self.build_environment(request) for request in requests]

    @contextmanager
    def offline(self, request: Request) -> Iterator[project.Project]:
        """The project of an executor that was fetched before."""
        with self._loaded(replace(request, offline=True)) as (_, loaded, _notes):
            yield loaded

    def process(
        self,
        known: Catalogue,
        wanted: messages.PipelineRequest,
        *,
        user: str,
        others: bool = True,
        priority: int = 0,
        quota: Quota | None = None,
    ) -> Submitted:
        """Put a request for a pipeline into the queue; one that waits, runs or was not answered is joined.

        `others`: it is not the local user who asks.

        Raises:
            UnknownPipeline, BadConfig, TooLarge: it cannot be one.
            QuotaExceeded: it would be a new job, and one too many.
        """
        asked = replace(known.asked(wanted), others=others)
        return self.ctx.journal.queue.submit(
            Submission(
                job_id=new_job_id(),
                request=asked.to_json(),
                lane=asked.lane,
                user=user,
                priority=priority,
                most_tries=self.ctx.settings.queue.tries,
                digest=asked.digest,
                awaited=True,
                quota=quota,
            )
        )


@dataclass(frozen=True)
class _Executors:
    """What the catalogue wants to know of executors (`catalogue.Executors`)."""

    session: Pipelines

    def request(self, ref: str, *, entry: str | None, parameters: Mapping[str, Any]) -> Request:
        """A request without images."""
        return self.session.request(ref, entry=entry, parameters=parameters)

    def seen(self, request: Request) -> Seen | None:
        """What an executor says of itself; None when it cannot be read without fetching it."""
        try:
            if request.ref.kind is refs.RepoKind.PATH and request.ref.rev is None:
                # A folder is read as it stands: a snapshot of it would be made for every look.
                return self._of(request, dialects.load(Path(request.ref.repo) / request.ref.subdir))
            with self.session.offline(request) as loaded:
                return self._of(request, loaded)
        except SegserveError:
            return None

    def _of(self, request: Request, loaded: project.Project) -> Seen:
        try:
            entry = project.select(loaded, request.ref.entry)
        except UnknownEntryPoint:
            return Seen(loaded.manifest, None, ready=False)
        spec = environments.detect(loaded, request.build)
        return Seen(loaded.manifest, entry, environments.is_built(self.session.ctx.home, spec))
