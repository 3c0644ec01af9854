"""What a document means, as flat arrays: every version of the format is read into this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.findings import Finding

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

COORDINATE_LIMIT = 2.0**31  # beyond this no pixel lies, and sums of products stay exact enough below it


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Polygons of `n_images` images, in the order of the staged images.

    `coordinates` is (n, 2): x to the right, y down, in pixels, integer values are pixel *centres*. Ring i is
    `coordinates[offsets[i]:offsets[i + 1]]`, not closed. `scores` has NaN where the document gives none. `image_index`
    ascends. `version` is that of the text; `exact` says that the text already is a faultless 0.2 document. `notes` is
    what reading it found worth saying. `form` turns image and position into a JSON path of the text.
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
    form: str = "$.segmentation_data[{image}][{position}]"

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
        return self.form.format(image=image, position=number - first)

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
        )


@dataclass(frozen=True, slots=True)
class Info:
    """What an `info` entry point writes: who the executor is. `extra` has every further key (`gpu`)."""

    name: str
    git_url: str
    git_hash: str
    extra: Mapping[str, Any] = field(default_factory=dict)


class Builder:
    """Gathers objects image by image into flat arrays."""

    def __init__(self) -> None:
        self._coordinates: list[Floats] = []
        self._lengths: list[Integers] = []
        self._labels: list[str] = []
        self._scores: list[Floats] = []
        self._images: list[int] = []

    def add_image(
        self,
        rings: Sequence[Sequence[tuple[float, float]]],
        labels: Sequence[str],
        scores: Sequence[float],
    ) -> Floats:
        """Append one image's objects and return their coordinates (n, 2)."""
        lengths = np.fromiter(map(len, rings), np.int64, len(rings))
        flat = chain.from_iterable(chain.from_iterable(rings))
        coordinates = np.fromiter(flat, np.float64, int(lengths.sum()) * 2).reshape(-1, 2)
        self._coordinates.append(coordinates)
        self._lengths.append(lengths)
        self._labels.extend(labels)
        self._scores.append(np.fromiter(scores, np.float64, len(scores)))
        self._images.append(len(rings))
        return coordinates

    def build(
        self, model: str, version: str, *, notes: Sequence[Finding] = (), exact: bool = True, form: str = ""
    ) -> Document:
        """The document of everything added."""
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        return Document(
            model=model,
            version=version,
            coordinates=np.concatenate([np.empty((0, 2)), *self._coordinates]),
            offsets=np.cumsum(lengths, dtype=np.int64),
            labels=tuple(self._labels),
            scores=np.concatenate([np.empty(0), *self._scores]),
            image_index=np.repeat(np.arange(len(self._images), dtype=np.int64), self._images),
            n_images=len(self._images),
            notes=tuple(notes),
            exact=exact,
            form=form or "$.segmentation_data[{image}][{position}]",
        )
