"""COCO: instances (`{"images", "annotations", …}`) and results (`[{"image_id", …}]`).

COCO's polygons lie in pixel corners: half a pixel is taken off, then a pixel belongs to the object when its centre lies
in one of its rings. Run-length encodings are taken pixel by pixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated

import msgspec
import numpy as np

from segserve.errors import UsageError
from segserve.evaluate import Objects, Runs, runs
from segserve.format.document import COORDINATE_LIMIT, Integers
from segserve.sides.base import Side, SideImage

MAX_PIXELS = 1 << 28  # of one image's run-length encodings


Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class _Rle(msgspec.Struct):
    counts: list[int] | str
    size: tuple[Length, Length]


class _Annotation(msgspec.Struct):
    image_id: int
    segmentation: list[list[float]] | _Rle
    category_id: int = 0
    score: float | None = None
    iscrowd: bool | int = 0


class _Image(msgspec.Struct):
    id: int
    file_name: str = ""
    width: Length = 0
    height: Length = 0


class _Category(msgspec.Struct):
    id: int
    name: str = ""


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


class _LooksLikeInstances(msgspec.Struct):
    images: msgspec.Raw
    annotations: msgspec.Raw


class _LooksLikeResult(msgspec.Struct):
    image_id: msgspec.Raw


Instances = _Instances | list[_Annotation]


def recognised(data: bytes) -> Instances | None:
    """The contents, or None when this is no COCO.

    Raises:
        UsageError: it is COCO, but not as it should be.
    """
    listed = data.lstrip()[:1] == b"["
    try:
        if listed:
            msgspec.json.decode(data, type=list[_LooksLikeResult])
        else:
            msgspec.json.decode(data, type=_LooksLikeInstances)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    try:
        if listed:
            return msgspec.json.decode(data, type=list[_Annotation])
        return msgspec.json.decode(data, type=_Instances)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"This COCO file is not as it should be: {error}.") from error


def read(path: Path, instances: Instances) -> Side:
    """One `SideImage` per image, in the order of their ids. Crowds are left out, with a note."""
    found = instances if isinstance(instances, list) else instances.annotations
    images = [] if isinstance(instances, list) else sorted(instances.images, key=lambda image: image.id)
    names = {} if isinstance(instances, list) else {kind.id: kind.name for kind in instances.categories}
    by_image: dict[int, list[_Annotation]] = defaultdict(list)
    for annotation in found:
        by_image[annotation.image_id].append(annotation)
    known = {image.id for image in images}
    if isinstance(instances, list):
        images = [_Image(number) for number in sorted(by_image)]
    elif strangers := sorted(set(by_image) - known):
        raise UsageError(f"{path}: annotations belong to an image that is not listed: id {strangers[0]}.")
    elif len(known) < len(images):
        raise UsageError(f"{path}: two images have the same id.")
    crowds = sum(bool(annotation.iscrowd) for annotation in found)
    return Side(
        path,
        "COCO",
        tuple(
            SideImage(
                PurePath(image.file_name.replace("\\", "/")).stem,
                partial(_objects, path, image, by_image[image.id], names),
                image.id,
            )
            for image in images
        ),
        (f"{path}: {crowds} crowd region(s) are left out",) if crowds else (),
        listed=not isinstance(instances, list),
    )


def _objects(path: Path, image: _Image, found: Sequence[_Annotation], names: dict[int, str]) -> Objects:
    kept = [annotation for annotation in found if not annotation.iscrowd]
    shape = (image.height, image.width) if image.height > 0 and image.width > 0 else None
    rings: list[tuple[int, list[float]]] = []
    coded: list[tuple[int, _Rle]] = []
    for number, annotation in enumerate(kept):
        if isinstance(annotation.segmentation, _Rle):
            coded.append((number, annotation.segmentation))
        else:
            rings += [(number, ring) for ring in annotation.segmentation if ring]
    try:
        parts = [_of_rings(rings), *_of_codes(coded)]
    except ValueError as error:
        raise UsageError(f"{path}, image {image.file_name or image.id}: {error}.") from error
    scores = [np.nan if annotation.score is None else annotation.score for annotation in kept]
    return Objects.from_runs(
        runs.joined(parts),
        len(kept),
        names=[names.get(annotation.category_id, str(annotation.category_id)) for annotation in kept],
        scores=np.array(scores, np.float64),
        shape=shape,
    )


def _of_rings(rings: Sequence[tuple[int, list[float]]]) -> Runs:
    if any(len(ring) % 2 for _, ring in rings):
        raise ValueError("a polygon has an odd number of values")
    lengths = np.array([len(ring) // 2 for _, ring in rings], np.int64)
    values = np.array([value for _, ring in rings for value in ring], np.float64).reshape(-1, 2)
    if not (np.abs(values) < COORDINATE_LIMIT).all():
        raise ValueError("a coordinate is no number that a pixel can have")
    owner = np.array([number for number, _ in rings], np.int64)
    # A ring in corners holds the centres strictly within it; on its line lie none, unless it has half-integers.
    return runs.of_rings(values - 0.5, np.append(0, np.cumsum(lengths)), owner)


def _of_codes(coded: Sequence[tuple[int, _Rle]]) -> list[Runs]:
    owners, rows, columns, total = [], [], [], 0
    for number, code in coded:
        counts = _counts(code.counts)
        height, width = code.size
        if (counts < 0).any() or int(counts.sum()) != height * width:
            raise ValueError("a run-length encoding does not fit its size")
        ends = np.cumsum(counts)
        begin, length = ends[1::2] - counts[1::2], counts[1::2]
        total += int(length.sum())
        if total > MAX_PIXELS:
            raise ValueError(f"its run-length encodings hold more than {MAX_PIXELS} pixels")
        at = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length) + np.repeat(begin, length)
        owners.append(np.full(len(at), number))
        rows.append(at % max(height, 1))  # column by column
        columns.append(at // max(height, 1))
    if not owners:
        return []
    return [runs.of_pixels(np.concatenate(owners), np.concatenate(rows), np.concatenate(columns))]


def _counts(counts: list[int] | str) -> Integers:
    """Lengths of background, object, background, …; a text is COCO's own compression: 5 bits and a flag per letter.

    https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c, rleFrString
    """
    if isinstance(counts, list):
        if any(abs(count) >= 1 << 40 for count in counts):
            raise ValueError("a run-length encoding does not fit its size")
        return np.array(counts, np.int64)
    found: list[int] = []
    value = shift = 0
    for letter in counts.encode("ascii", "replace"):
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("a compressed run-length encoding is damaged")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4) if bits & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("a compressed run-length encoding is damaged")
    return np.array(found, np.int64)
