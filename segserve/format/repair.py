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
LARGEST = 1 << 20  # pixels of the box of a ring that is outlined


def repair(part: Document, note: Note) -> Document:
    """The part as it should be; `note` is called for every change."""
    kinds = classify(part.coordinates, part.offsets)
    rings: dict[int, Floats] = {}
    for number in np.flatnonzero((kinds == FEW) | (kinds == FLAT)).tolist():
        ring = part.ring(number)
        if len(ring) and (outline := outlined(ring)) is not None:
            rings[number] = outline
            note("The ring encloses nothing; it became the outline of the pixels on it.", part.json_path(number))
    part = _with_rings(part, rings)
    kept = geometry.lengths(part.offsets) > 0
    for number in np.flatnonzero(~kept).tolist():
        note("The object has no point; it was left out.", part.json_path(number))
    same = pairs.duplicates(part, geometry.boxes(part.coordinates, part.offsets), ~kept)
    for number in np.flatnonzero(same >= 0).tolist():
        if part.labels[same[number]] == part.labels[number]:
            kept[number] = False
            note("The object occurs twice in its image; this one was left out.", part.json_path(number))
    return _only(part, kept)


def outlined(ring: Floats) -> Floats | None:
    """The outline, in half-integers, of the pixels on a ring that encloses nothing: (k, 2). None for absurdly large.

    Points between pixel centres are moved to the nearest one before.
    """
    centres = np.floor(ring + 0.5)
    if float(np.prod(np.ptp(centres, axis=0) + 1)) > LARGEST:
        return None
    return geometry.corner_outline(centres)[0] - 0.5  # from the corners' convention to that of the centres


def _with_rings(part: Document, rings: dict[int, Floats]) -> Document:
    if not rings:
        return part
    every = [rings[number] if number in rings else part.ring(number) for number in range(len(part))]
    offsets = np.zeros(len(every) + 1, np.int64)
    offsets[1:] = np.cumsum([len(ring) for ring in every])
    return replace(part, coordinates=np.concatenate(every), offsets=offsets)


def _only(part: Document, kept: geometry.Booleans) -> Document:
    if kept.all():
        return part
    counts = geometry.lengths(part.offsets)
    return replace(
        part,
        coordinates=part.coordinates[np.repeat(kept, counts)],
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[kept])]),
        labels=tuple(label for label, keep in zip(part.labels, kept.tolist(), strict=True) if keep),
        scores=part.scores[kept],
        image_index=part.image_index[kept],
    )
