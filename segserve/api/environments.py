"""Verbs that look after built environments."""

from __future__ import annotations

import shutil
from typing import Any

from segserve import environments
from segserve.api.verbs import Verbs
from segserve.environments import docker
from segserve.errors import BackendError
from segserve.pipeline import Request, building, settle


class Environments(Verbs):
    """Environments: list, build, remove."""

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
        """Build (or find) the environment of an executor, shut in as a job of this request would be."""
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
                walls=building.walls(self.ctx.settings.sandbox, loaded, others=request.others),
                phase=self.ctx.reporter.phase,
            )
        return {
            "key": built.spec.key,
            "kind": built.spec.kind,
            "location": built.location,
            "packages": list(built.packages),
        }

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
