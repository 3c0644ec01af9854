"""What a document means, as flat arrays: every version of the format is read into this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from segserve.findings import Finding

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FORM = "$.segmentation_data[{image}][{position}]"
POINT_LIMIT = 1 << 20  # of one ring
COORDINATE_LIMIT = 2.0**31  # beyond this no pixel lies, and sums of products stay exact enough below it


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Polygons of `n_images` images, in the order of the staged images.

    `coordinates` is (n, 2): x to the right, y down, in pixels, integer values are pixel *centres*. Ring i is
    `coordinates[offsets[i]:offsets[i + 1]]`, not closed. `scores` has NaN where the document gives none. `image_index`
    ascends. `version` is that of the text; `exact` says that the text already is a faultless 0.2 document. `notes` is
    what reading it found worth saying. `form` turns image and position into a JSON path of the text, in which these
    images are those from `first_image` on.
    """

    model: str
    version: str
    coordinates: Floats
    offsets: Integers
    labels: tuple[str, ...]
    scores: Floats
    image_index: Integers
    n_images: int
    notes: tuple[Finding, ...] = ()
    exact: bool = True
    form: str = FORM
    first_image: int = 0

    def __len__(self) -> int:
        """The number of objects."""
        return len(self.labels)

    def ring(self, number: int) -> Floats:
        """(points, 2) of one object."""
        return self.coordinates[self.offsets[number] : self.offsets[number + 1]]

    def counts(self) -> Integers:
        """(n_images,) objects per image."""
        return np.bincount(self.image_index, minlength=self.n_images).astype(np.int64)

    def starts(self) -> Integers:
        """(n_images + 1,) number of each image's first object."""
        return np.searchsorted(self.image_index, np.arange(self.n_images + 1)).astype(np.int64)

    def json_path(self, number: int) -> str:
        """Where object `number` (counted through all images) stands in the text."""
        image = int(self.image_index[number])
        first = int(np.searchsorted(self.image_index, image))
        return self.form.format(image=image + self.first_image, position=number - first)

    def image(self, index: int) -> Document:
        """The objects of one image, as views: a document of a single image."""
        first, last = (int(i) for i in np.searchsorted(self.image_index, (index, index + 1)))
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        return Document(
            self.model,
            self.version,
            self.coordinates[begin:end],
            self.offsets[first : last + 1] - begin,
            self.labels[first:last],
            self.scores[first:last],
            np.zeros(last - first, np.int64),
            1,
            form=self.form,
            first_image=self.first_image + index,
        )


@dataclass(frozen=True, slots=True)
class Info:
    """What an `info` entry point writes: who the executor is. `extra` has every further key (`gpu`)."""

    name: str
    git_url: str
    git_hash: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some objects that follow each other in a text.

    `coordinates` (n, 2), `lengths` (k,) points per ring, `labels`, `scores` (k,), `image_index` (k,) ascending.
    `sound` (k,) is false where an object has a mistake, so that its ring means nothing; None: all are sound. The images
    before number `complete` have no further objects.
    """

    coordinates: Floats
    lengths: Integers
    labels: list[str]
    scores: Floats
    image_index: Integers
    complete: int
    sound: npt.NDArray[np.bool_] | None = None
    form: str = FORM


@dataclass(frozen=True, slots=True)
class Summary:
    """What a text says around its objects; the fields are those of `Document`."""

    model: str
    version: str
    n_images: int
    exact: bool = True
    form: str = FORM


class Sink(Protocol):
    """What takes the batches of a text, in order."""

    def add(self, batch: Batch) -> None:
        """Take a batch."""


_PAIR = np.dtype([("array", "u1"), ("float x", "u1"), ("x", ">f8"), ("float y", "u1"), ("y", ">f8")])
_pack = msgspec.msgpack.Encoder()


def flatten(rings: Sequence[Sequence[tuple[float, float]]], points: int) -> Floats:
    """(points, 2) of rings of pairs of floats.

    numpy walks nested tuples slowly. MessagePack writes each pair in exactly 19 bytes (array of two, float64, float64:
    https://github.com/msgpack/msgpack/blob/master/spec.md), of which numpy takes the numbers out, five times as fast.
    """
    packed = _pack.encode(list(chain.from_iterable(rings)))
    table = np.frombuffer(packed, _PAIR, points, len(packed) - points * _PAIR.itemsize)
    coordinates = np.empty((points, 2))
    coordinates[:, 0] = table["x"]
    coordinates[:, 1] = table["y"]
    return coordinates


class _Growing:
    """A one- or two-dimensional array that grows in place: the kernel moves pages, nothing is copied."""

    def __init__(self, dtype: npt.DTypeLike, *row: int) -> None:
        self._array: npt.NDArray[Any] = np.empty((0, *row), dtype)
        self._row = row
        self._length = 0

    def extend(self, values: npt.NDArray[Any]) -> None:
        end = self._length + len(values)
        if end > len(self._array):
            self._array.resize((max(end, len(self._array) * 9 // 8), *self._row), refcheck=False)
        self._array[self._length : end] = values
        self._length = end

    def take(self) -> npt.NDArray[Any]:
        """The array; this object is empty afterwards."""
        array, length = self._array, self._length
        self._array, self._length = np.empty((0, *self._row), array.dtype), 0
        array.resize((length, *self._row), refcheck=False)
        return array


class Builder:
    """Gathers objects into flat arrays, image by image or batch by batch. It is a sink."""

    def __init__(self) -> None:
        self._labels: list[str] = []
        self._known: dict[str, str] = {}  # one string per class, not one per object
        self._coordinates = _Growing(np.float64, 2)
        self._lengths = _Growing(np.int64)
        self._scores = _Growing(np.float64)
        self._index = _Growing(np.int64)
        self._images = 0
        self.points = 0

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        self._coordinates.extend(batch.coordinates)
        self._lengths.extend(batch.lengths)
        self._scores.extend(batch.scores)
        self._index.extend(batch.image_index)
        known = self._known
        self._labels.extend([known.setdefault(label, label) for label in batch.labels])
        self._images = batch.complete
        self.points += len(batch.coordinates)

    def add_image(
        self,
        rings: Sequence[Sequence[tuple[float, float]]],
        labels: Sequence[str],
        scores: Sequence[float],
    ) -> None:
        """Append one image's objects."""
        flat = np.array([point for ring in rings for point in ring], np.float64).reshape(-1, 2)
        lengths = np.fromiter(map(len, rings), np.int64, len(rings))
        index = np.full(len(rings), self._images)
        self.add(Batch(flat, lengths, list(labels), np.array(scores, np.float64), index, self._images + 1))

    def build(
        self,
        model: str,
        version: str,
        *,
        notes: Sequence[Finding] = (),
        exact: bool = True,
        form: str = "",
        first_image: int = 0,
    ) -> Document:
        """The document of everything added, from image `first_image` on; the builder is empty afterwards."""
        offsets = np.zeros(len(self._labels) + 1, np.int64)
        np.cumsum(self._lengths.take(), out=offsets[1:])
        labels, self._labels = tuple(self._labels), []
        self.points = 0
        return Document(
            model=model,
            version=version,
            coordinates=self._coordinates.take(),
            offsets=offsets,
            labels=labels,
            scores=self._scores.take(),
            image_index=self._index.take() - first_image,
            n_images=self._images - first_image,
            notes=tuple(notes),
            exact=exact,
            form=form or FORM,
            first_image=first_image,
        )
