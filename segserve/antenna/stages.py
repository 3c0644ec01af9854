"""An executor as a stage: a job like any other, which stays and answers, or one job per batch if it cannot stay.

A stage's job is driven in a thread of the resident process, attached to it: it ends with us, whatever ends us. It
stands in the journal (`segserve ps` shows it), has a log and an MLflow run, and cannot tell that it is a stage but by
one variable. Stages share the GPUs of their pipeline.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from segserve import devices, dialects, environments, project
from segserve.antenna.line import Answer, Line, Listener, StageDown, StageFailed
from segserve.backends import local
from segserve.environments import docker
from segserve.errors import BackendError, InvalidProject, SegserveError
from segserve.inputs import png
from segserve.journal import new_job_id
from segserve.pipeline import Context, Drive, Hold, Request, Result
from segserve.store import Resolution

Array = NDArray[Any]
SERVE = "SEGSERVE_SERVE"  # tells a Runner of segserve_sdk which socket to connect to
_END_SECONDS = 20.0
_MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Look:
    """What has to be known of an executor before it is a stage."""

    resolution: Resolution
    images_parameter: str
    resident: bool


def look(ctx: Context, request: Request) -> Look:
    """Look at the executor of a request.

    Raises:
        SegserveError: there is none, or it takes no images.
    """
    folder = Path(tempfile.mkdtemp(dir=ctx.home.temporary))
    try:
        resolution = ctx.store.resolve(
            request.ref, offline=request.offline, allow_unreachable=request.allow_unreachable, on_note=ctx.reporter.note
        )
        ctx.store.checkout(resolution, folder / "checkout", on_note=ctx.reporter.note)
        loaded = dialects.load(folder / "checkout" / resolution.pin.subdir)
        entry = project.select(loaded, request.ref.entry)
        if entry.images_parameter is None:
            raise InvalidProject(f"Entry point '{entry.name}' takes no images, so it is no stage of a pipeline.")
        kind = environments.detect(loaded, request.build).kind
        return Look(resolution, entry.images_parameter, loaded.manifest.run.resident and kind != docker.kind)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Stage:
    """An executor that answers batches. It is started when it is first asked, and again after it has gone."""

    def __init__(self, ctx: Context, request: Request, lease: devices.Lease, tags: Mapping[str, str]) -> None:
        self._ctx, self._lease = ctx, lease
        self._request = replace(request, attached=True, overlays=0, tags={**request.tags, **tags})
        self._look: Look | None = None
        self._running: _Running | None = None

    def ask(self, images: Sequence[Array], names: Sequence[str], values: Mapping[str, str], **more: Any) -> Answer:
        """The answer to a batch.

        Raises:
            StageFailed: it has none; the message says why.
            StageDown: it has gone over this batch.
            SegserveError: it cannot be started.
        """
        known = self._known()
        if not known.resident:
            return self._once(known, images, values)
        if self._running is None:
            self._running = _Running(self._ctx, self._request, known, self._lease)
        try:
            return self._running.line.ask(images, names, values, **more)
        except StageDown as gone:
            running, self._running = self._running, None
            raise StageDown(running.why(str(gone))) from None

    def start(self) -> None:
        """Have it loaded, if it can stay.

        Raises:
            StageDown: it has ended while it was loaded.
            SegserveError: it cannot be started.
        """
        known = self._known()
        if known.resident and self._running is None:
            self._running = _Running(self._ctx, self._request, known, self._lease)

    def batch(self, wanted: int) -> int:
        """How many images it gets at once: those that cannot stay are started for each batch, so that it is large."""
        return wanted if self._known().resident else max(wanted, _MOST_AT_ONCE)

    def close(self) -> None:
        """Let it end, and wait for that."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _known(self) -> Look:
        if self._look is None:
            self._look = look(self._ctx, self._request)
        return self._look

    def _once(self, known: Look, images: Sequence[Array], values: Mapping[str, str]) -> Answer:
        """The same as a job of its own: slower, but every executor can."""
        job_id = new_job_id()
        folder = self._ctx.home.job(job_id)
        folder.uploads.mkdir(mode=0o700, parents=True)
        for number, image in enumerate(images):
            with (folder.uploads / f"{number:05d}.png").open("wb") as stream:
                stream.write(png.encode(image))
        request = replace(
            self._request,
            pinned=known.resolution,
            images=tuple(str(path) for path in sorted(folder.uploads.iterdir())),
            parameters={**self._request.parameters, **values},
            output=folder.result,
        )
        try:
            result = Drive(self._ctx, request, Hold(job_id, 1, folder, 1), shared=self._lease).go()
        except BackendError:
            raise
        except SegserveError as failure:
            raise StageFailed(failure.message) from None
        assert isinstance(result, Result)  # it is attached
        found = result.document
        if found is None:
            raise StageFailed("it left no polygons")
        return Answer(found, (), result.seconds.get("executor", 0.0))


class _Running:
    """The process of a stage that stays."""

    def __init__(self, ctx: Context, request: Request, known: Look, lease: devices.Lease) -> None:
        job_id = new_job_id()
        self._folder = ctx.home.job(job_id)
        self._hold = Hold(job_id, 1, self._folder, 1)
        self._failure: BaseException | None = None
        listener = Listener(self._folder.serve)
        request = replace(
            request,
            pinned=known.resolution,
            parameters={**request.parameters, known.images_parameter: str(self._folder.serve.parent)},
            variables={**request.variables, SERVE: str(self._folder.serve)},
            output=self._folder.result,
        )
        self._line: Line | None = None
        self._drive = Drive(ctx, request, self._hold, shared=lease)
        self._thread = threading.Thread(target=self._go, name=f"stage {request.ref.name}", daemon=True)
        self._thread.start()
        try:
            self._line = listener.accept(self._thread.is_alive)
        except StageDown as gone:
            self._thread.join(_END_SECONDS)
            if isinstance(self._failure, SegserveError):
                raise self._failure from None
            raise StageDown(self.why(str(gone))) from None
        except BaseException:
            local.cancel(self._hold.attempt)
            raise
        finally:
            listener.close()

    def why(self, otherwise: str) -> str:
        """What its job says of its end."""
        self._close_line()
        self._thread.join(_END_SECONDS)
        if isinstance(self._failure, SegserveError):
            return self._failure.message
        return otherwise if self._failure is None else f"{type(self._failure).__name__}: {self._failure}"

    def close(self) -> None:
        """Let it end; one that does not is ended."""
        self._close_line()
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            local.cancel(self._hold.attempt, wait=True)
            self._thread.join(_END_SECONDS)

    @property
    def line(self) -> Line:
        """The connection to it."""
        assert self._line is not None  # else it was not started
        return self._line

    def _close_line(self) -> None:
        if self._line is not None:
            self._line.close()

    def _go(self) -> None:
        try:
            self._drive.go()
        except BaseException as failure:  # whoever asks the stage next is told
            self._failure = failure
