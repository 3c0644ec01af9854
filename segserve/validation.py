"""Files held against the specification, in bounded memory: one image's objects at a time.

validate(path)               → Report: every finding (at most 100 per rule, then a count)
measured(folder)             → Images: what the objects are held against
repair(path, target, report) → the corrected document, and a finding for everything that was changed
"""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from segserve import format as polygons
from segserve.errors import NotFound, UsageError, writing
from segserve.findings import Finding
from segserve.format import Checker, Collector, Document, Info, Summary
from segserve.format.document import Batch
from segserve.format.geometry import Booleans
from segserve.format.groups import Groups
from segserve.format.repair import repair as repaired
from segserve.format.v0_2 import encode_images, encode_start
from segserve.inputs import foreign

_IMAGE = re.compile(r"\$(?:\.segmentation_data)?\[(\d+)\]|\$\.segmentation\[")


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a document, in its order: `shapes` (rows, columns), `names` as the user knows them."""

    shapes: tuple[tuple[int, int], ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`found` is None when the text could not be read to its end. `readable`: a run would take the document."""

    found: Summary | Info | None
    findings: tuple[Finding, ...]
    objects: int
    readable: bool


def measured(folder: Path) -> Images:
    """The images in a folder (or one file), from their headers, in the order in which a run would take them.

    Raises:
        UnreadableImage: naming each input that is no image.
    """
    from segserve import inputs

    plan = inputs.plan([folder])
    several = len(plan.requests) > len(plan.sources)
    shapes, names = [], []
    for request in plan.requests:
        source = plan.sources[request.source]
        axes = (("series", request.series), ("t", request.t), ("z", request.z))
        place = ", ".join(f"{axis} {value}" for axis, value in axes if value is not None) if several else ""
        names.append(f"{source.given} ({place})" if place else source.given)
        shapes.append(source.series[request.series].shape)
    return Images(tuple(shapes), tuple(names))


def validate(
    path: Path, images: Images | None = None, *, pairs: bool = False, skip: frozenset[str] = frozenset()
) -> Report:
    """Hold a file against the specification.

    `pairs` also compares objects with each other (`overlapping-objects`, `hole-as-object`), which takes longer than all
    the rest. The rules in `skip` are not reported.

    Raises:
        NotFound: there is no such file, or it cannot be read.
        UsageError: it is no plain file, or a picture.
    """
    collector = Collector()
    with _opened(path) as stream:
        _refuse_picture(path, stream)
        found, sink = polygons.read(stream, lambda: _Checks(images, pairs), collector)
    readable = found is not None and not collector.unforgiven
    sink.finish(found)
    collector.merge(sink.collector)
    names = images.names if images else ()
    findings = [_placed(finding, path, names) for finding in collector.findings() if finding.rule not in skip]
    return Report(found, tuple(findings), sink.objects, readable)


class _Checks:
    """The sink of `validate`: objects go through the rules and are forgotten."""

    def __init__(self, images: Images | None, pairs: bool) -> None:
        self.collector = Collector()
        self.objects = 0
        self._checker = Checker(
            self.collector,
            images.shapes if images else None,
            names=images.names if images else None,
            pairs=pairs,
        )
        self._groups = Groups(self._check)

    def add(self, batch: Batch) -> None:
        self._groups.add(batch)

    def _check(self, part: Document, sound: Booleans) -> None:
        self.objects += len(part)
        self._checker.add(part, sound)

    def finish(self, found: Summary | Info | None) -> None:
        """Check what is left; of a text that broke off, or is none, nothing is said about the whole."""
        self._groups.finish()
        if isinstance(found, Summary):
            self._checker.finish(found.n_images)


def repair(path: Path, target: Path, report: Report) -> tuple[Finding, ...]:
    """Write `path`, which gave `report`, to `target` as a document of format 0.2 with everything put right that can be.

    Returns a finding `repaired` for each change. What else is wrong stays as it is; validate `target` to know.

    Raises:
        UsageError: the document cannot be read as a whole, `target` exists or cannot be written.
    """
    summary = report.found
    if not report.readable or not isinstance(summary, Summary):
        raise UsageError(
            f"{path} cannot be repaired: it cannot be read as a whole.",
            hint="Correct the errors that are not about single objects; they have to be solved where it is written.",
        )
    if os.path.lexists(target):
        raise UsageError(f"{target} exists already.", hint="Choose another name for the corrected document.")
    with writing(target), _replacing(target) as output, _opened(path) as stream:
        start = output.write(encode_start(summary.model))
        reading = Collector(strict=False, limit=sys.maxsize)
        _, sink = polygons.read(stream, lambda: _Repairs(output, start), reading)
        sink.finish()
        output.write(b"]}")
    changes = Collector(limit=sys.maxsize)
    if summary.version != "0.2":
        changes.add("repaired", f"Format {summary.version} became 0.2.", "$")
    changes.merge(sink.changes)
    for finding in reading.findings():
        if finding.rule == "unknown-key":
            changes.add("repaired", "A key that the format does not know was left out.", finding.place.json_path)
        elif finding.rule == "flat-point":
            changes.add("repaired", "[x, y] was read as the point [[x, y]].", finding.place.json_path)
    return tuple(_placed(finding, path) for finding in changes.findings())


class _Repairs:
    """The sink of `repair`. A second one begins where the first began, since it was thrown away."""

    def __init__(self, output: BinaryIO, start: int) -> None:
        output.seek(start)
        output.truncate()
        self._output = output
        self.changes = Collector(limit=sys.maxsize)
        self._first = True
        self._groups = Groups(self._write)

    def add(self, batch: Batch) -> None:
        self._groups.add(batch)

    def _write(self, part: Document, _: Booleans) -> None:
        good = repaired(part, lambda message, place: self.changes.add("repaired", message, place))
        for chunk in encode_images(good, first=self._first):
            self._output.write(chunk)
            self._first = False

    def finish(self) -> None:
        """Write what is left."""
        self._groups.finish()


def _placed(finding: Finding, path: Path, names: Sequence[str] = ()) -> Finding:
    """With the file, and the name of the image in whose objects it lies."""
    place = finding.place
    index = _IMAGE.match(place.json_path)
    image = int(index.group(1) or 0) if index else len(names)
    name = place.image or (names[image] if image < len(names) else "")
    return replace(finding, place=replace(place, path=str(path), image=name))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is no plain file.", hint="Save it to a file first: it is read more than once.")
        stream = path.open("rb")
    except OSError as error:
        raise NotFound(f"'{path}' cannot be read: {error.strerror}.", hint="Name files like output.json.") from None
    with stream:
        yield stream


def _refuse_picture(path: Path, stream: BinaryIO) -> None:
    head = stream.read(32)
    stream.seek(0)
    if head and not foreign(head):
        raise UsageError(
            f"{path} is a picture, not an output.json.", hint="Name the output.json; its images are given by --images."
        )


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file that appears as `target` only when everything has been written."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    written = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as output:
            yield output
        written.chmod(0o666 & ~_umask())
        written.rename(target)
    finally:
        written.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


__all__ = ["Images", "Report", "measured", "repair", "validate"]
