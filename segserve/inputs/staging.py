"""A plan → a folder of PNGs and inputs.json. In threads, in bounded memory, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from segserve.errors import DiskFull
from segserve.findings import Finding
from segserve.inputs import kinds, mapfile, png, pngcopy, scaling, selection
from segserve.inputs.base import Array, Planes, Series, Source, Unusable
from segserve.inputs.copiers import Copiers
from segserve.inputs.pixels import changed
from segserve.inputs.pixels import image as image_of
from segserve.inputs.planning import InputPlan, refuse
from segserve.inputs.pngcopy import Order
from segserve.inputs.scaling import Scale
from segserve.inputs.selection import Request
from segserve.model import StagedImage

Progress = Callable[[int, int], None]

_IN_FLIGHT = 256 * 2**20  # bytes of decoded planes (or PNG files) that are worked on at once; one larger one goes alone
_BATCH_FILES, _BATCH_BYTES = 64, 16 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)

_Done = list[tuple[int, "StagedImage | Finding"]]
_Task = tuple[Callable[[], _Done], int]


def _silent(done: int, total: int) -> None:
    """Progress that nobody wants to see."""


def stage(plan: InputPlan, folder: Path, map_file: Path, *, progress: Progress = _silent) -> tuple[StagedImage, ...]:
    """Write every image of the plan to `folder` (`00000.png` …) and what they are to `map_file`.

    The folder appears at once, when all images are in it, and the map after it: where the map is, all is. `folder` must
    not exist, or be empty. `progress(done, total)` is called from this thread.

    Raises:
        UnreadableImage: with a finding for every file whose pixels cannot be decoded, or that has changed since.
        DiskFull: no space is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.partial")
    if beside.exists():
        shutil.rmtree(beside)  # of an attempt that was killed
    beside.mkdir()
    try:
        images = _Stager(plan, beside, progress, plan.names).run()
        beside.replace(folder)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise DiskFull(
                f"No space is left for the staged images in {folder.parent}.",
                hint="Free some, or point SEGSERVE_HOME to a larger disk.",
            ) from error
        raise
    mapfile.write_map(map_file, images)
    return images


@dataclass(slots=True)
class _Stager:
    plan: InputPlan
    folder: Path
    progress: Progress
    names: tuple[str, ...]
    images: dict[int, StagedImage] = field(default_factory=dict)
    findings: dict[int, Finding] = field(default_factory=dict)
    pending: dict[Future[_Done], int] = field(default_factory=dict)

    def run(self) -> tuple[StagedImage, ...]:
        workers = max(2, min(8, len(os.sched_getaffinity(0))))
        files = sum(self.plan.sources[request.source].kind == "png" for request in self.plan.requests)
        with Copiers(self.folder, workers, files) as copiers, ThreadPoolExecutor(workers) as pool:
            try:
                for work, size in self._tasks(copiers):
                    while len(self.pending) > 2 * workers or (self.pending and self._in_flight() + size > _IN_FLIGHT):
                        self._collect()
                    self.pending[pool.submit(work)] = size
                while self.pending:
                    self._collect()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        refuse([self.findings[index] for index in sorted(self.findings)], self.plan.count)
        return tuple(self.images[index] for index in range(self.plan.count))

    def _in_flight(self) -> int:
        return sum(self.pending.values())

    def _collect(self) -> None:
        done, _ = wait(self.pending, return_when=FIRST_COMPLETED)
        for future in done:
            del self.pending[future]
            self._take(future.result())

    def _take(self, results: _Done) -> None:
        for index, result in results:
            if isinstance(result, Finding):
                self.findings[index] = result
            else:
                self.images[index] = result
        self.progress(len(self.images) + len(self.findings), self.plan.count)

    def _tasks(self, copiers: Copiers) -> Iterator[_Task]:
        """Work for the threads, with the bytes that it needs, in the order of the images.

        PNGs are copied in batches. A file with one image is decoded by the thread. Of a file with many, this thread
        reads the planes, one after the other as they lie on the disk, and the others compress them.
        """
        batch: list[tuple[int, Request]] = []
        size = 0
        for number, group in groupby(enumerate(self.plan.requests), key=lambda item: item[1].source):
            items, source = list(group), self.plan.sources[number]
            if self._is_direct(source, items[0][1]):
                batch += items
                size += source.bytes
                if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
                    yield _bind(self._copy_all, copiers, batch), size
                    batch, size = [], 0
            elif len(items) == 1:
                yield _bind(self._convert_one, items), _weight(source, items[0][1])
            else:
                yield from self._convert_many(source, items)
        if batch:
            yield _bind(self._copy_all, copiers, batch), size

    def _is_direct(self, source: Source, request: Request) -> bool:
        series = source.series[request.series]
        kept = self.plan.selection.depth != 8 or series.dtype == "uint8"
        return series.direct and request.sample is None and kept

    # --- PNGs as they are ---

    def _copy_all(self, copiers: Copiers, items: Sequence[tuple[int, Request]]) -> _Done:
        answers = copiers.copy([self._order(index, request) for index, request in items])
        return [
            (index, self._copied(index, request, *answer))
            for (index, request), answer in zip(items, answers, strict=True)
        ]

    def _order(self, index: int, request: Request) -> Order:
        source = self.plan.sources[request.source]
        return Order(source.path, self.names[index], source.bytes, *source.series[request.series].shape)

    def _copied(self, index: int, request: Request, word: str, text: str) -> StagedImage | Finding:
        source = self.plan.sources[request.source]
        series = source.series[request.series]
        if word == pngcopy.COPIED:
            return self._staged(index, request, series, text, Scale(series.dtype), 3 if series.rgb else 1)
        if word == pngcopy.UNWRITABLE:
            raise OSError(int(text), os.strerror(int(text)), f"{self.folder}/{self.names[index]}")
        if word == pngcopy.UNREADABLE:
            return Unusable("image-unreadable", f"cannot be read: {os.strerror(int(text))}").finding(source.given)
        if word == pngcopy.DAMAGED:
            return Unusable("image-truncated", text, "Copy or export it again.").finding(source.given)
        return changed().finding(source.given)

    # --- everything else ---

    def _convert_one(self, items: Sequence[tuple[int, Request]]) -> _Done:
        index, request = items[0]
        return [(index, self._guarded(self._convert_alone, index, request))]

    def _convert_alone(self, index: int, request: Request) -> StagedImage:
        source = self.plan.sources[request.source]
        series = source.series[request.series]
        with kinds.opened(source) as planes:
            image = image_of(planes, request, series)
            depth = self.plan.selection.depth
            scale = scaling.fixed(series.dtype, depth) or _fit([image], series.dtype, depth)
            return self._write(index, request, series, image, scale)

    def _convert_many(self, source: Source, items: Sequence[tuple[int, Request]]) -> Iterator[_Task]:
        try:
            with kinds.opened(source) as planes:
                scales = self._scales(source, planes, items)
                for index, request in items:
                    image = image_of(planes, request, source.series[request.series])
                    scale = scales[source.series[request.series].dtype]
                    yield _bind(self._write_guarded, index, request, image, scale), _weight(source, request)
        except Unusable as problem:
            self._take([(items[0][0], problem.finding(source.given))])

    def _scales(self, source: Source, planes: Planes, items: Sequence[tuple[int, Request]]) -> dict[str, Scale]:
        """One scale for the file (for each pixel type in it): measuring takes a pass of its own over its planes."""

        def type_of(item: tuple[int, Request]) -> str:
            return source.series[item[1].series].dtype

        scales: dict[str, Scale] = {}
        depth = self.plan.selection.depth
        for dtype, group in groupby(sorted(items, key=type_of), key=type_of):
            images = (image_of(planes, request, source.series[request.series]) for _, request in group)
            scales[dtype] = scaling.fixed(dtype, depth) or _fit(images, dtype, depth)
        return scales

    def _write_guarded(self, index: int, request: Request, image: Array, scale: Scale) -> _Done:
        series = self.plan.sources[request.source].series[request.series]
        return [(index, self._write(index, request, series, image, scale))]

    def _write(self, index: int, request: Request, series: Series, image: Array, scale: Scale) -> StagedImage:
        data = png.encode(scaling.apply(image, scale))
        target = pngcopy.create(f"{self.folder}/{self.names[index]}")
        try:
            pngcopy.write(target, data)
        finally:
            os.close(target)
        digest = hashlib.sha256(data).hexdigest()
        return self._staged(index, request, series, digest, scale, 3 if image.ndim == 3 else 1)

    def _guarded(
        self, work: Callable[[int, Request], StagedImage], index: int, request: Request
    ) -> StagedImage | Finding:
        try:
            return work(index, request)
        except Unusable as problem:
            return problem.finding(self.plan.sources[request.source].given)

    def _staged(
        self, index: int, request: Request, series: Series, digest: str, scale: Scale, channels: int
    ) -> StagedImage:
        source = self.plan.sources[request.source]
        c = request.c
        if request.sample is not None:
            c = (request.c or 0) * (series.samples - series.alpha) + request.sample
        offset, factor = scale.offset, scale.scale
        if series.white is not None:  # what was read is `white - value`
            offset, factor = series.white - offset, -factor
        return StagedImage(
            name=self.names[index],
            source=source.path,
            shape=series.shape,
            channels=channels,
            dtype=scale.dtype,
            sha256=digest,
            series=request.series if len(source.series) > 1 else None,
            t=request.t,
            z=request.z,
            c=c,
            channel_name=selection.channel_list(series)[c] if c is not None else "",
            pixel_size_um=series.pixel_size_um,
            scale=factor,
            offset=offset,
            source_dtype=series.dtype,
            orientation=series.orientation,
            sizes=series.sizes,
            modified=source.modified,
        )


def _fit(images: Iterable[Array], dtype: str, depth: int | None) -> Scale:
    low, high = scaling.value_range(images)
    return scaling.fitted(low, high, dtype, depth)


def _bind(work: Callable[..., _Done], *values: object) -> Callable[[], _Done]:
    return partial(work, *values)


def _weight(source: Source, request: Request) -> int:
    """Bytes that one image needs while it is worked on: decoded, scaled, filtered for PNG."""
    series = source.series[request.series]
    return 3 * series.shape[0] * series.shape[1] * series.samples * np.dtype(series.dtype).itemsize
