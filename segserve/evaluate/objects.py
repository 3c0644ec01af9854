"""One side of a comparison: the objects of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.errors import UsageError
from segserve.evaluate import runs as rows
from segserve.evaluate.runs import Runs, Shape
from segserve.format.document import Document, Floats, Integers

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Flat rings as in `Document`; `owner` (m,) is the position of the object that each ring belongs to."""

    coordinates: Floats
    offsets: Integers
    owner: Integers


@dataclass(frozen=True, eq=False)
class Objects:
    """`ids` (m,): label values, or positions from 1. `names` (m,): classes, "" = unknown. `scores` (m,), NaN = none.

    `form` is how they are given: a label image (rows, columns) of `ids`, rings, or runs. `shape` is None where nobody
    said how large the image is.
    """

    ids: Integers
    names: tuple[str, ...]
    scores: Floats
    form: Labels | Rings | Runs
    shape: Shape | None = None

    def __len__(self) -> int:
        """How many objects."""
        return len(self.ids)

    @classmethod
    def from_labels(cls, labels: npt.ArrayLike) -> Objects:
        """A label image (rows, columns): one object per value, 0 is background.

        Raises:
            UsageError: not a 2-D array of integers, or negative values.
        """
        array = np.asarray(labels)
        if array.dtype == bool:
            array = array.astype(np.uint8)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise UsageError(f"A label image has two dimensions and integers, not {array.ndim} and {array.dtype}.")
        if array.dtype == np.uint64:
            if array.size and int(array.max()) >= 1 << 63:
                raise UsageError("A label image has no values of 2⁶³ or more.")
            array = array.astype(np.int64)
        ids = _values(array)
        if len(ids) and ids[0] < 0:
            raise UsageError("A label image has no negative values.")
        positive: Integers = ids[ids > 0].astype(np.int64)
        rows_, columns = array.shape
        return cls(positive, ("",) * len(positive), np.full(len(positive), np.nan), array, (rows_, columns))

    @classmethod
    def from_document(cls, document: Document, shape: Shape | None = None) -> Objects:
        """The objects of a document of one image; `ids` are their positions from 1."""
        count = len(document)
        form = Rings(document.coordinates, document.offsets, np.arange(count, dtype=np.int64))
        return cls(np.arange(1, count + 1, dtype=np.int64), document.labels, document.scores, form, shape)

    @classmethod
    def from_runs(
        cls,
        runs: Runs,
        count: int,
        *,
        names: Sequence[str] = (),
        scores: Floats | None = None,
        ids: Integers | None = None,
        shape: Shape | None = None,
    ) -> Objects:
        """`count` objects given by their pixels."""
        return cls(
            np.arange(1, count + 1, dtype=np.int64) if ids is None else ids,
            tuple(names) or ("",) * count,
            np.full(count, np.nan) if scores is None else scores,
            runs,
            shape,
        )

    @cached_property
    def runs(self) -> Runs:
        """The pixels of every object, also those outside the image."""
        if isinstance(self.form, Runs):
            return self.form
        if isinstance(self.form, Rings):
            return rows.of_rings(self.form.coordinates, self.form.offsets, self.form.owner)
        return rows.of_mask(ranks(self.form, self.ids))

    def mask(self, shape: Shape) -> Labels:
        """A label image of positions from 1; where objects overlap, the last one wins."""
        if isinstance(self.form, np.ndarray):
            return ranks(self.form, self.ids)
        return rows.painted(self.runs, shape)


def ranks(labels: Labels, ids: Integers) -> Labels:
    """The label image with positions (from 1) in place of values."""
    if len(ids) and ids[-1] > 4 * labels.size + 65536:
        found = np.searchsorted(ids, labels.ravel())
        return np.where(labels.ravel() > 0, found + 1, 0).reshape(labels.shape)
    table = np.zeros(int(ids[-1]) + 1 if len(ids) else 1, np.int32)
    table[ids] = np.arange(1, len(ids) + 1)
    found_ranks: Labels = table[labels]
    return found_ranks


def _values(labels: Labels) -> Labels:
    """The distinct values, ascending: sorted over runs, which are far fewer than pixels."""
    flat = labels.ravel()
    if not flat.size:
        return flat
    values: Labels = np.unique(flat[np.append(True, flat[1:] != flat[:-1])])
    return values
