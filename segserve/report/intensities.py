"""How bright every object is in every channel of its original: streamed plane by plane, in threads."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np

from segserve.evaluate.runs import Runs
from segserve.findings import Finding, Place, Severity
from segserve.format import Document
from segserve.format.document import Floats
from segserve.inputs import originals
from segserve.inputs.base import Array, Unusable
from segserve.inputs.originals import Original
from segserve.model import StagedImage
from segserve.report.measures import pixels_of

CHUNK = 1 << 22  # pixels of objects that are looked up at once
LARGE = 1 << 26  # pixels of a plane; from here on one file at a time
MOST_COLUMNS = 64  # different channels in one table
MOST_FINDINGS = 20
ONLY = "intensity"  # what the only channel is called that has no name


@dataclass(frozen=True, slots=True)
class Intensities:
    """`channels` are k names; `means` and `sums` (m, k) are in the values of the original, NaN where not measured."""

    channels: tuple[str, ...]
    means: Floats
    sums: Floats

    @classmethod
    def none(cls, count: int) -> Intensities:
        """Nothing was measured."""
        return cls((), np.empty((count, 0)), np.empty((count, 0)))


@dataclass(frozen=True, slots=True)
class _Column:
    """One channel of one image; `means` and `sums` of its objects, the first of which is number `first`."""

    channel: str
    first: int
    means: Floats
    sums: Floats


def measure(
    document: Document, images: Sequence[StagedImage], files: Sequence[str]
) -> tuple[Intensities, list[Finding]]:
    """Measure the objects of all images; `files` has where the original of each image lies.

    An original that is gone, or has changed since it was staged, is a finding and costs the numbers of its objects.
    """
    counts = document.counts()
    filled = [index for index in range(len(images)) if counts[index]]
    groups = [list(group) for _, group in groupby(filled, key=files.__getitem__)]
    largest = max((math.prod(images[index].shape) for index in filled), default=0)
    starts = document.starts().tolist()

    def one(group: Sequence[int]) -> tuple[list[_Column], Finding | None]:
        columns: list[_Column] = []
        try:
            with originals.opened(files[group[0]], images[group[0]].modified) as original:
                for index in group:
                    columns += _of_image(document, images[index], starts[index], starts[index + 1], original)
        except Unusable as problem:
            return columns, _not_measured(images[group[0]], problem)
        return columns, None

    workers = 1 if largest > LARGE else min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers) as pool:
        done = list(pool.map(one, groups))
    columns = [column for found, _ in done for column in found]
    return _table(columns, len(document)), _some([finding for _, finding in done if finding is not None])


def _some(findings: list[Finding]) -> list[Finding]:
    """A whole folder that is gone need not be said file by file."""
    if len(findings) <= MOST_FINDINGS:
        return findings
    rest = f"{len(findings) - MOST_FINDINGS} more originals could not be measured."
    return [*findings[:MOST_FINDINGS], Finding("not-measured", Severity.WARNING, rest, Place())]


def _not_measured(image: StagedImage, problem: Unusable) -> Finding:
    message = f"The original {problem.message}; its objects have no intensities."
    return Finding("not-measured", Severity.WARNING, message, Place(image=image.source), problem.fix)


def _of_image(document: Document, image: StagedImage, begin: int, end: int, original: Original) -> list[_Column]:
    """Every channel of one image. Its planes are decoded one after the other."""
    few = list(islice(_batches(document, image, begin, end), 2))
    known = few if len(few) < 2 else None  # nearly always: all objects at once
    found = []
    for index, name, plane in original.channels(image):
        means, sums = np.full(end - begin, np.nan), np.full(end - begin, np.nan)
        for first, runs in _batches(document, image, begin, end) if known is None else known:
            count = int(runs.owner[-1]) + 1 if len(runs.owner) else 0
            own = slice(first - begin, first - begin + count)
            means[own], sums[own] = _of_plane(plane, runs, count)
        found.append((index, name, means, sums))
    names = _names([(index, name) for index, name, *_ in found])
    return [_Column(name, begin, means, sums) for name, (*_, means, sums) in zip(names, found, strict=True)]


def _batches(document: Document, image: StagedImage, begin: int, end: int) -> Iterator[tuple[int, Runs]]:
    return ((first, runs.clipped(image.shape)) for first, runs in pixels_of(document, begin, end))


def _of_plane(plane: Array, runs: Runs, count: int) -> tuple[Floats, Floats]:
    """(count,) mean and sum of the finite values of each object; NaN where there is none."""
    values, length = plane.reshape(-1), runs.stop - runs.start
    begin, ends = runs.row * plane.shape[1] + runs.start, np.cumsum(length)
    before = ends - length
    sums, numbers = np.zeros(count), np.zeros(count)
    first = 0
    while first < len(length):
        last = max(int(np.searchsorted(ends, before[first] + CHUNK, "right")), first + 1)
        own, edges = slice(first, last), before[first:last] - before[first]
        # The places of the pixels of these runs, run behind run.
        at = np.arange(int(ends[last - 1] - before[first])) + np.repeat(begin[own] - edges, length[own])
        here = values[at].astype(np.float64)
        known = length[own]
        if plane.dtype.kind == "f":
            finite = np.isfinite(here)
            here[~finite] = 0
            known = np.add.reduceat(finite, edges, dtype=np.int64)
        sums += np.bincount(runs.owner[own], np.add.reduceat(here, edges), count)
        numbers += np.bincount(runs.owner[own], known, count)
        first = last
    unseen = numbers == 0
    sums[unseen], numbers[unseen] = np.nan, np.nan
    return sums / numbers, sums


def _names(channels: Sequence[tuple[int, str]]) -> list[str]:
    """What the channels of one image are called in the table: by name, else by number; each name once."""
    if len(channels) == 1 and not channels[0][1].strip():
        return [ONLY]
    plain = [re.sub(r"\s+", " ", name).strip()[:60] or f"c{index}" for index, name in channels]
    return [
        f"{name} c{index}" if plain.count(name) > 1 else name for name, (index, _) in zip(plain, channels, strict=True)
    ]


def _table(columns: Sequence[_Column], count: int) -> Intensities:
    """The columns of all images side by side, in the order in which channels were met."""
    channels = tuple(dict.fromkeys(column.channel for column in columns))[:MOST_COLUMNS]
    places = {channel: place for place, channel in enumerate(channels)}
    means, sums = np.full((count, len(channels)), np.nan), np.full((count, len(channels)), np.nan)
    for column in columns:
        place = places.get(column.channel)
        if place is not None:
            own = slice(column.first, column.first + len(column.means))
            means[own, place], sums[own, place] = column.means, column.sums
    return Intensities(channels, means, sums)
