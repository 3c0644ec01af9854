"""Batches of a text → documents of whole images, so that rules which need a whole image can be applied in a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from segserve.format.document import Batch, Builder, Document
from segserve.format.geometry import Booleans

ENOUGH = 1 << 17  # points; many small images are worth only one call


class Groups:
    """A sink that calls `take(part, sound)` with all objects of some images, in order; `finish` gives the rest."""

    def __init__(self, take: Callable[[Document, Booleans], None]) -> None:
        self._take = take
        self._builder = Builder()
        self._sound: list[Booleans] = []
        self._first = 0  # image that the builder begins with
        self._last = -1  # and of its last object
        self._objects = 0
        self._form = ""

    def add(self, batch: Batch) -> None:
        """Gather a batch."""
        cut = int(np.searchsorted(batch.image_index, batch.complete))
        whole, rest = _split(batch, cut)
        self._gather(whole)
        if self._builder.points + self._objects >= ENOUGH and self._last < batch.complete:
            self.finish()
        if len(rest.labels):
            self._gather(rest)

    def finish(self) -> None:
        """Hand over what has been gathered."""
        part = self._builder.build("", "", form=self._form, first_image=self._first)
        sound = np.concatenate([np.empty(0, np.bool_), *self._sound])
        self._first += part.n_images
        self._objects, self._sound = 0, []
        self._take(part, sound)

    def _gather(self, batch: Batch) -> None:
        self._builder.add(batch)
        if len(batch.labels):
            self._last = int(batch.image_index[-1])
        self._objects += len(batch.labels)
        self._sound.append(np.ones(len(batch.labels), np.bool_) if batch.sound is None else batch.sound)
        self._form = batch.form


def _split(batch: Batch, cut: int) -> tuple[Batch, Batch]:
    """The first `cut` objects of a batch, and the others."""
    points = int(batch.lengths[:cut].sum())
    if cut == len(batch.labels):
        none = np.empty(0, np.int64)
        return batch, replace(batch, coordinates=np.empty((0, 2)), lengths=none, labels=[], scores=np.empty(0))
    sound = batch.sound

    def some(objects: slice, rows: slice) -> Batch:
        return replace(
            batch,
            coordinates=batch.coordinates[rows],
            lengths=batch.lengths[objects],
            labels=batch.labels[objects],
            scores=batch.scores[objects],
            image_index=batch.image_index[objects],
            sound=None if sound is None else sound[objects],
        )

    return some(slice(cut), slice(points)), some(slice(cut, None), slice(points, None))
