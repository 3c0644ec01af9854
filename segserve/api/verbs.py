"""What all verbs stand on: where a session works, and a look at a repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segserve import dialects, project
from segserve.pipeline import Context, Request
from segserve.store import Resolution


@dataclass
class Verbs:
    """The base of `Session`; each module beside this one adds the verbs of one topic.

    `config` is the config.toml that was named, None for the default one.
    """

    ctx: Context
    config: Path | None = None

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
