"""Headers of all inputs → a plan of what will be staged, or one error that names every bad input."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from segserve.errors import UnreadableImage
from segserve.findings import Finding
from segserve.inputs import kinds
from segserve.inputs.base import MAX_IMAGES, Series, Source, Unusable
from segserve.inputs.discover import discover
from segserve.inputs.selection import Request, Selection, channel_list, choose, spread

_BATCH = 64  # files per task: starting a task costs as much as reading a header
_SLOW = 0.001  # seconds per file


@dataclass(frozen=True, slots=True)
class InputPlan:
    """What `stage` will write: `requests` in the order of the staged names, each into one of `sources`.

    `notes` are for people: files with a misleading suffix, subfolders that were left out, files named twice.
    """

    sources: tuple[Source, ...]
    requests: tuple[Request, ...]
    selection: Selection
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many images will be staged."""
        return len(self.requests)

    @property
    def names(self) -> tuple[str, ...]:
        """The staged names: zero-padded, so that plain sorting keeps the order, whatever their number."""
        width = max(5, len(str(self.count - 1)))
        return tuple(f"{index:0{width}d}.png" for index in range(self.count))


def describe(paths: Iterable[str | os.PathLike[str]]) -> tuple[Source, ...]:
    """What the inputs hold: one `Source` per file, with its series, sizes of T, Z, C, channel names and pixel size.

    Raises:
        UnreadableImage: with a finding for every input that cannot be read.
    """
    sources, findings, _ = _inspect(paths)
    refuse(findings, len(sources) + len(findings))
    return tuple(sources)


def structure(sources: Iterable[Source]) -> list[dict[str, Any]]:
    """What `segserve images --json` prints: plain values; sizes are 1 and names empty where a file says nothing."""
    return [
        {
            "file": source.given,
            "kind": source.kind,
            "series": [
                {
                    "index": index,
                    "name": series.name,
                    **{axis: series.sizes.get(axis, 1) for axis in "TZ"},
                    "C": series.channels,
                    "channels": list(channel_list(series)),
                    "rows": series.shape[0],
                    "columns": series.shape[1],
                    "dtype": series.dtype,
                    "colour": series.rgb,
                    "pixel_size_um": series.pixel_size_um,
                }
                for index, series in enumerate(source.series)
            ],
        }
        for source in sources
    ]


def plan(
    paths: Iterable[str | os.PathLike[str]],
    selection: Selection | None = None,
    *,
    within: Sequence[str] | None = None,
) -> InputPlan:
    """Decide what will be staged. Reads headers only: seconds for ten thousand files.

    Args:
        paths: files, OME-Zarr folders, folders (their files, not recursively), glob patterns.
        selection: the user's choices.
        within: folders (resolved) that the files have to lie in, links followed; None: anywhere.

    Raises:
        InvalidParameters: the selection makes no sense.
        UnreadableImage: with a finding for every input that is missing, foreign, damaged, too large, or that needs a
            choice (of series or channel) which `selection` does not make.
    """
    selection = selection or Selection()
    selection.check()
    sources, findings, notes = _inspect(paths, within)
    unread, requests = len(findings), list[Request]()
    previous: tuple[Series, ...] = ()
    for index, source in enumerate(sources):
        if source.series is not previous:  # frames of one kind share theirs: one choice for all of them
            try:
                chosen = choose(source, selection)
            except Unusable as problem:
                findings.append(problem.finding(source.given))
                continue
            previous = source.series
        requests += [Request(index, *request[1:]) for request in chosen]
    refuse(findings, len(sources) + unread)
    if len(requests) > MAX_IMAGES:
        raise UnreadableImage(
            f"These inputs are {len(requests)} images; the limit is {MAX_IMAGES}.", hint="Give them in several runs."
        )
    return InputPlan(tuple(sources), tuple(spread(requests, selection.first)), selection, tuple(notes))


def _inspect(
    paths: Iterable[str | os.PathLike[str]], within: Sequence[str] | None = None
) -> tuple[list[Source], list[Finding], list[str]]:
    found = discover(paths, within)
    findings, notes = list(found.findings), list(found.notes)
    if not found.files and not findings:
        raise UnreadableImage("No images were given.", hint="Name files, folders or patterns.")
    sources: list[Source] = []
    for result in _in_threads(_try, found.files):
        if isinstance(result, Finding):
            findings.append(result)
        else:
            sources.append(result)
    for source in filter(kinds.misnamed, sources):
        notes.append(f"{source.given} is {source.kind.upper()} inside, and is read as that")
    return sources, findings, notes


def _try(file: tuple[str, str]) -> Source | Finding:
    path, given = file
    try:
        return kinds.inspect(path, given)
    except Unusable as problem:
        return problem.finding(given)


def _in_threads(
    work: Callable[[tuple[str, str]], Source | Finding], items: Sequence[tuple[str, str]]
) -> Iterator[Source | Finding]:
    """In order. Threads hide the latency of network disks; on a quick disk they only fight for the interpreter."""
    start = time.perf_counter()
    yield from map(work, items[:_BATCH])
    slow = time.perf_counter() - start > _SLOW * _BATCH
    rest = items[_BATCH:]
    if not slow:
        yield from map(work, rest)
        return
    batches = [rest[at : at + _BATCH] for at in range(0, len(rest), _BATCH)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        for batch in pool.map(lambda batch: [work(item) for item in batch], batches):
            yield from batch


def refuse(findings: Sequence[Finding], total: int) -> None:
    """One error for all findings, if there are any."""
    if not findings:
        return
    fixes = Counter(finding.fix for finding in findings if finding.fix)
    first = findings[0]
    if len(findings) == 1:
        message = f"{first.place.path} {first.message}."
    else:
        message = f"{len(findings)} of {total} inputs cannot be used. The first: {first.place.path} {first.message}."
    hint = fixes.most_common(1)[0][0] if fixes else "Name only images; `segserve images FILE…` shows what can be read."
    raise UnreadableImage(message, hint=hint, findings=findings)
