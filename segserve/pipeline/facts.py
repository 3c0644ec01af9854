"""facts.json: what becomes known while a job is driven, so that any later command can finish it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from segserve.layout import JobDir
from segserve.model import write_atomically


@dataclass(frozen=True)
class Facts:
    """Everything that a result needs and that `Job` cannot know yet."""

    tracking_uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    run_url: str = ""
    artifact_uri: str = ""
    defaults: Mapping[str, str] = field(default_factory=dict)  # of the entry point's parameters
    about: Mapping[str, str] = field(default_factory=dict)  # texts of the executor's manifest
    environment: Mapping[str, Any] = field(default_factory=dict)
    inputs_digest: str = ""
    reuse_key: str = ""  # of the request, if its result may be that of others
    reused: str = ""  # the job whose output this one has
    parameter_digests: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def timed(self, **seconds: float) -> Facts:
        """With further phases."""
        return replace(self, seconds={**self.seconds, **seconds})

    def write(self, job: JobDir) -> None:
        """Put it where `read` finds it."""
        write_atomically(job.facts, json.dumps(asdict(self), indent=2, ensure_ascii=False))


def read(job: JobDir) -> Facts:
    """The facts of a job; one that was killed early has none."""
    if not job.facts.exists():
        return Facts()
    data = json.loads(job.facts.read_text(encoding="utf-8"))
    return Facts(**{**data, "warnings": tuple(data["warnings"])})
