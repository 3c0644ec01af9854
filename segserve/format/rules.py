"""The rules about rings, coordinates and images: what is well-formed JSON and still not a good result.

All checks are vectorised over flat arrays (numpy, shapely 2); only what is kept as a finding is formatted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segserve.findings import Finding
from segserve.format import geometry, pairs
from segserve.format.catalogue import Collector
from segserve.format.document import Document, Floats
from segserve.format.geometry import Booleans
from segserve.format.rings import CROSSED, FEW, FLAT, KEYHOLE, SIMPLE, TOUCHING, classify, odd_rings

__all__ = ["CROSSED", "FEW", "FLAT", "KEYHOLE", "SIMPLE", "TOUCHING", "Checker", "check", "classify", "odd_rings"]

SLACK = 1e-6  # pixels; a coordinate that was computed may miss the image's edge by rounding
MESSAGES = {
    FEW: ("too-few-points", "The ring has fewer than three distinct points."),
    FLAT: ("zero-area", "All points lie on one line or retrace it: the ring encloses nothing."),
    CROSSED: ("self-intersection", "The ring crosses itself."),
    KEYHOLE: ("keyhole", "A hole is said by one keyhole ring."),
    TOUCHING: ("touches-itself", "The ring touches itself; it is filled as one object."),
}


def check(
    document: Document,
    shapes: Sequence[tuple[int, int]] | None = None,
    *,
    names: Sequence[str] | None = None,
    strict: bool = True,
    pairs: bool = False,
) -> list[Finding]:
    """Everything that the rules have to say about a document.

    `shapes` are (rows, columns) and `names` what the images are called, in the order of the document. With `strict` the
    severities are those of the specification, else those of a run (`catalogue`). `pairs` also compares objects with
    each other (`overlapping-objects`, `hole-as-object`).
    """
    collector = Collector(strict=strict)
    checker = Checker(collector, shapes, names=names, pairs=pairs)
    checker.add(document)
    checker.finish(document.n_images)
    return collector.findings()


class Checker:
    """The rules for a document that comes in parts. Each part has all objects of some images, in order."""

    def __init__(
        self,
        collector: Collector,
        shapes: Sequence[tuple[int, int]] | None = None,
        *,
        names: Sequence[str] | None = None,
        pairs: bool = False,
    ) -> None:
        self._collector = collector
        self._shapes = None if shapes is None else np.asarray(shapes, np.float64).reshape(-1, 2)
        self._names = names
        self._pairs = pairs
        self._objects = 0
        self._bounds = collector.empty()  # kept aside: they mean nothing if results and images cannot be matched

    def add(self, part: Document, sound: Booleans | None = None) -> None:
        """Check a part. Objects that are not `sound` (m,) have been reported already and are passed over."""
        self._objects += len(part)
        if not len(part):
            return
        rings = _Rings(part, self._names or (), sound)
        kinds = classify(part.coordinates, part.offsets)
        for kind, (rule, message) in MESSAGES.items():
            rings.report(self._collector, rule, kinds == kind, message)
        box = geometry.boxes(part.coordinates, part.offsets)
        again = pairs.duplicates(part, box, ~rings.sound) >= 0
        rings.report(self._collector, "duplicate-object", again, "The image has the same object before.")
        if self._pairs:
            skipped = np.isin(kinds, (FEW, FLAT, CROSSED)) | again | ~rings.sound
            self._compare(part, box, kinds != SIMPLE, skipped)
        if self._shapes is not None:
            self._inside(rings, box, self._shapes)

    def finish(self, n_images: int) -> None:
        """Check what can only be said about the whole."""
        if self._shapes is not None and len(self._shapes) != n_images:
            message = f"{n_images} results for {len(self._shapes)} images."
            self._collector.add("image-count-mismatch", message, "$")
        else:
            self._collector.merge(self._bounds)
        if n_images and not self._objects:
            what = "The image has" if n_images == 1 else f"None of {n_images} images has"
            self._collector.add("suspicious-emptiness", f"{what} no object at all.", "$")

    def _compare(self, part: Document, box: Floats, odd: Booleans, skipped: Booleans) -> None:
        found = pairs.compare(part, box, odd, skipped)
        names = self._names or ()

        def describe(number: int) -> tuple[str, str, str]:
            one, other = int(found.first[number]), int(found.second[number])
            text = pairs.TEXTS[int(found.relation[number])].format(part.json_path(one))
            return text, part.json_path(other), _name(part, other, names)

        for image in found.crowded:
            path = part.form.split("[{position}]")[0].format(image=part.first_image + image)
            text = "So many objects lie in the same place that not all of them were compared."
            self._collector.add("overlapping-objects", text, path)
        holes = found.relation == pairs.HOLE
        self._collector.add_all("hole-as-object", np.flatnonzero(holes).tolist(), describe)
        self._collector.add_all("overlapping-objects", np.flatnonzero(~holes).tolist(), describe)

    def _inside(self, rings: _Rings, box: Floats, shapes: Floats) -> None:
        """Points outside [-0.5, width - 0.5] × [-0.5, height - 0.5], and whether swapping x and y would help."""
        document = rings.document
        number = document.image_index + document.first_image
        known = (number < len(shapes)) & ~np.isnan(box[:, 0]) & rings.sound
        limits = shapes[np.minimum(number, len(shapes) - 1)][:, ::-1] - 0.5 if len(shapes) else np.zeros((len(box), 2))
        low, high = box[:, :2], box[:, 2:]
        outside = ~_within(low, high, limits) & known
        if not outside.any():
            return
        away = ((low > limits) | (high < -0.5)).any(axis=1) & known
        stuck = ~_within(low[:, ::-1], high[:, ::-1], limits) & known
        swapped = np.zeros(document.n_images, np.bool_)
        # One object that lies wholly outside is needed: a box that overlaps the edge a little proves nothing.
        swapped[document.image_index[away]] = True
        swapped[document.image_index[stuck]] = False
        for image in np.flatnonzero(swapped).tolist():
            rows, columns = (int(side) for side in shapes[image + document.first_image])
            text = f"Objects lie outside the image ({columns} × {rows}), and all fit when x and y are swapped."
            path = document.form.split("[{position}]")[0].format(image=image + document.first_image)
            name = rings.names[image + document.first_image] if rings.names else ""
            self._bounds.add("swapped-axes", text, path, image=name)
        stray = outside & ~swapped[document.image_index]
        rings.report(self._bounds, "outside-image", stray, "Points lie outside the image.")


class _Rings:
    """The objects of a part, and how to report them."""

    def __init__(self, document: Document, names: Sequence[str], sound: Booleans | None) -> None:
        self.document = document
        self.names = names
        self.sound = np.ones(len(document), np.bool_) if sound is None else sound

    def report(self, collector: Collector, rule: str, objects: Booleans, message: str) -> None:
        """One finding per object that is marked."""

        def describe(number: int) -> tuple[str, str, str]:
            return message, self.document.json_path(number), _name(self.document, number, self.names)

        collector.add_all(rule, np.flatnonzero(objects & self.sound).tolist(), describe)


def _name(document: Document, number: int, names: Sequence[str]) -> str:
    image = int(document.image_index[number]) + document.first_image
    return names[image] if image < len(names) else ""


def _within(low: Floats, high: Floats, limits: Floats) -> Booleans:
    inside: Booleans = np.all((low >= -0.5 - SLACK) & (high <= limits + SLACK), axis=1)
    return inside
