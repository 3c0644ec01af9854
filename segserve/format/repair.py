"""What can be put right in a document without guessing, and a finding `repaired` for everything that was.

Rings that enclose nothing become the outlines of the pixels that they run over, objects without a point and objects
that occur twice with the same label go. Rings that cross themselves, lie outside or have swapped axes stay: only their
author knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from segserve.format import geometry, pairs
from segserve.format.document import Document, Floats
from segserve.format.rings import FEW, FLAT, classify

Note = Callable[[str, str], None]  # message, JSON path
LARGEST = 1 << 22  # pixels of the box of a ring that is outlined


def repair(part: Document, note: Note) -> Document:
    """The part as it should be; `note` is called for every change."""
    kinds = classify(part.coordinates, part.offsets)
    same = pairs.duplicates(part, geometry.boxes(part.coordinates, part.offsets))
    gone = np.array(
        [earlier >= 0 and part.labels[earlier] == part.labels[n] for n, earlier in enumerate(same.tolist())], np.bool_
    )
    for number in np.flatnonzero(gone).tolist():
        note("The object occurs twice in its image; this one was left out.", part.json_path(number))
    rings: dict[int, Floats] = {}
    for number in np.flatnonzero(((kinds == FEW) | (kinds == FLAT)) & ~gone).tolist():
        ring = part.ring(number)
        if not len(ring):
            gone[number] = True
            note("The object has no point; it was left out.", part.json_path(number))
        elif (outline := outlined(ring)) is not None:
            rings[number] = outline
            note("The ring encloses nothing; it became the outline of the pixels on it.", part.json_path(number))
    return _changed(part, ~gone, rings)


def outlined(ring: Floats) -> Floats | None:
    """The outline, in half-integers, of the pixels on a ring that encloses nothing: (k, 2). None for absurdly large.

    Points between pixel centres are moved to the nearest one before.
    """
    centres = np.floor(ring + 0.5)
    if float(np.prod(np.ptp(centres, axis=0) + 1)) > LARGEST:
        return None
    return geometry.corner_outline(centres)[0] - 0.5  # from the corners' convention to that of the centres


def _changed(part: Document, kept: geometry.Booleans, rings: dict[int, Floats]) -> Document:
    if kept.all() and not rings:
        return part
    numbers = np.flatnonzero(kept)
    parts = [rings.get(number, part.ring(number)) for number in numbers.tolist()]
    offsets = np.zeros(len(parts) + 1, np.int64)
    offsets[1:] = np.cumsum([len(ring) for ring in parts])
    return replace(
        part,
        coordinates=np.concatenate([np.empty((0, 2)), *parts]),
        offsets=offsets,
        labels=tuple(part.labels[number] for number in numbers.tolist()),
        scores=part.scores[numbers],
        image_index=part.image_index[numbers],
    )
