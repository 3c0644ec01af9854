"""What a result says about the executor. Pure: documents and probe sets in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from segserve.check.probes import rules
from segserve.check.probes.pictures import Picture
from segserve.findings import Finding
from segserve.format import Document

MB_PER_IMAGE = 1.0  # more than this is kept of every image of 48 × 48 pixels
_MIRRORED = 0.9
_NEAR = 4.0  # pixels


def centres(document: Document) -> list[NDArray[np.float64]]:
    """Per image (objects, 2): the mean of each ring's points, (x, y) in pixels, pixel centres are integers."""
    found: list[list[NDArray[np.float64]]] = [[] for _ in range(document.n_images)]
    for ring, image in enumerate(document.image_index):
        points = document.coordinates[document.offsets[ring] : document.offsets[ring + 1]]
        found[int(image)].append(points.mean(axis=0))
    return [np.array(one).reshape(-1, 2) for one in found]


def order(document: Document, pictures: Sequence[Picture]) -> list[Finding]:
    """Whether every result belongs to its image: objects lie in the discs of that image and of no other order."""
    results = centres(document)
    if not any(len(one) for one in results):
        return [rules.NOTHING.at(f"No object in {len(pictures)} image(s) with discs.")]
    if len(pictures) < 2:
        return []
    orders = list(permutations(range(len(pictures)))) if len(pictures) <= 4 else _likely(len(pictures))
    hits = {one: sum(_hits(results[place], pictures[image]) for place, image in enumerate(one)) for one in orders}
    best = max(orders, key=lambda one: (hits[one], one == orders[0]))
    if hits[best] <= hits[orders[0]]:
        return []
    shown = ", ".join(str(image + 1) for image in best[:12])
    return [rules.ORDER.at(f"The results fit the images in the order {shown}{'…' if len(best) > 12 else ''}.")]


def _likely(count: int) -> list[tuple[int, ...]]:
    """As they should be; as names without zeros sort (1, 10, 100, 1000, 101); backwards; shifted by one."""
    plain = tuple(range(count))
    return [plain, tuple(sorted(plain, key=str)), plain[::-1], (*plain[1:], 0), (plain[-1], *plain[:-1])]


def _hits(found: NDArray[np.float64], picture: Picture) -> int:
    """How many discs have an object, less how many objects lie in no disc."""
    if not len(found) or not picture.discs:
        return -len(found)
    discs = np.array(picture.discs, float)
    inside = np.hypot(*(found[:, None, :] - discs[None, :, :2]).transpose(2, 0, 1)) <= discs[:, 2]
    return int(inside.any(axis=0).sum()) - int((~inside.any(axis=1)).sum())


def blank(document: Document) -> list[Finding]:
    """Nothing may be found where nothing is."""
    count = len(document)
    return [rules.BLANK.at(f"{count} object(s) on an image of one grey value.")] if count else []


def upside_down(upright: Document, turned: Document, rows: int) -> list[Finding]:
    """How many objects are found again at the mirrored place."""
    one, other = centres(upright)[0], centres(turned)[0]
    total = len(one) + len(other)
    if not total:
        return []
    mirrored = np.column_stack([one[:, 0], rows - 1 - one[:, 1]])
    distances = np.hypot(*(mirrored[:, None, :] - other[None, :, :]).transpose(2, 0, 1))
    again = int((distances.min(axis=1) <= _NEAR).sum()) if len(one) and len(other) else 0
    share = 2 * again / total
    if share >= _MIRRORED:
        return []
    return [rules.UPSIDE_DOWN.at(f"{len(one)} objects upright, {len(other)} upside down, {again} of them the same.")]


def growth(few_bytes: int, many_bytes: int, images: int) -> list[Finding]:
    """Memory of a run with one image against that of a run with many small ones."""
    per_image = (many_bytes - few_bytes) / max(images, 1) / 1e6
    if few_bytes <= 0 or per_image <= MB_PER_IMAGE:
        return []
    message = f"{few_bytes / 1e6:.0f} MB with one image, {many_bytes / 1e6:.0f} MB with {images} of 48 × 48 pixels."
    return [rules.GROWTH.at(message)]
