"""Outlines on the images, for looking at. Coordinates are pixel centres, which is OpenCV's own convention."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from segserve.format import Document
from segserve.model import StagedImage

LARGEST = 2048  # px; larger images are drawn smaller
SMALLEST = 400  # px; smaller images are drawn larger, by a whole factor
THICK_FROM = 1000  # px of the longer side from which lines are two pixels wide
THUMBNAIL = 480  # px
DRAWABLE = 1 << 29  # pixels; beyond that an overlay is not drawn
LOW, HIGH = 0.01, 0.998  # quantiles that become black and white
SHIFT = 4  # bits behind the point in OpenCV's fixed-point coordinates

WHITE = 215  # the brightest grey; coloured lines need something left above it

# Saturated and far apart in hue, neighbours in the list most of all; (B, G, R).
COLOURS = (
    (60, 60, 255),
    (255, 200, 0),
    (0, 220, 255),
    (70, 230, 60),
    (255, 70, 220),
    (0, 140, 255),
    (230, 240, 30),
    (255, 110, 130),
    (160, 60, 255),
    (30, 255, 190),
    (255, 120, 50),
    (190, 120, 255),
)

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Overlay:
    """A drawn overlay: its file, its size in pixels (width, height), a small JPEG of it ("" when not asked for)."""

    path: Path
    size: tuple[int, int]
    thumbnail: bytes


def draw_all(
    folder: Path,
    document: Document,
    images: Sequence[StagedImage],
    inputs_folder: Path,
    first: int | None,
    *,
    thumbnails: int = 24,
) -> tuple[Overlay | None, ...]:
    """Overlays of the first images (None: of all), in input order; None for each image that gets none."""
    wanted = len(images) if first is None else min(first, len(images))
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
    width = max(3, len(str(len(images))))

    def one(index: int) -> Overlay | None:
        image = images[index]
        if math.prod(image.shape) > DRAWABLE:
            return None
        path = folder / f"{index + 1:0{width}d}-{_stem(image)}.png"
        return _draw_file(path, inputs_folder / image.name, document.image(index), thumbnail=index < thumbnails)

    # OpenCV lets go of the interpreter's lock; large images one at a time, for the sake of memory.
    largest = max((math.prod(image.shape) for image in images[:wanted]), default=0)
    workers = 1 if largest > 1 << 26 else min(os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers) as pool:
        drawn = list(pool.map(one, range(wanted)))
    return (*drawn, *[None] * (len(images) - wanted))


def _stem(image: StagedImage) -> str:
    """Part of a file name from the original's name: plain characters only, with series, t and z where they exist."""
    stem = re.sub(r"[^\w.-]+", "_", PurePath(image.source.replace("\\", "/")).stem, flags=re.ASCII).strip("._-")[:60]
    axes = (("s", image.series), ("t", image.t), ("z", image.z))
    suffix = "".join(f"-{letter}{value}" for letter, value in axes if value is not None)
    return re.sub(r"[^\w.-]+", "_", (stem or "image") + suffix, flags=re.ASCII)


def _draw_file(path: Path, source: Path, document: Document, *, thumbnail: bool) -> Overlay:
    import cv2

    grey = cv2.imdecode(np.fromfile(source, np.uint8), cv2.IMREAD_UNCHANGED)
    if grey is None:
        raise ValueError(f"the staged image {source.name} cannot be read back")
    drawn = draw(grey, document)
    path.write_bytes(_encoded(".png", drawn, [cv2.IMWRITE_PNG_COMPRESSION, 1]))
    rows, columns = drawn.shape[:2]
    small = b""
    if thumbnail:
        scale = min(1.0, THUMBNAIL / max(rows, columns))
        size = (max(round(columns * scale), 1), max(round(rows * scale), 1))
        resized = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
        small = _encoded(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, 84])
    return Overlay(path, (columns, rows), small)


def _encoded(suffix: str, image: Image, options: list[int]) -> bytes:
    import cv2

    done, buffer = cv2.imencode(suffix, image, options)
    if not done:
        raise ValueError(f"OpenCV cannot write {suffix}")
    return bytes(buffer.tobytes())


def draw(image: npt.NDArray[Any], document: Document) -> Image:
    """An RGB (B, G, R order) picture of one image with the outlines of its objects.

    `image` is (rows, columns[, channels]) of 8 or 16 bits; grey values are stretched between two quantiles. The result
    is at most 2048 px long; images below 400 px are enlarged by a whole factor.
    """
    import cv2

    canvas, scale = _canvas(image)
    rows, columns = canvas.shape[:2]
    thickness = 2 if max(rows, columns) >= THICK_FROM else 1
    reach = 2.0 * max(rows, columns) + 64  # far-off points are pulled in: 32-bit fixed point ends at 2^27
    scaled = np.clip((document.coordinates + 0.5) * scale - 0.5, -reach, reach)
    points = np.rint(scaled * (1 << SHIFT)).astype(np.int32)
    rings = [ring for ring in np.split(points, document.offsets[1:-1]) if len(ring)]
    for number, colour in enumerate(COLOURS):
        if part := rings[number :: len(COLOURS)]:
            cv2.polylines(canvas, part, True, colour, thickness, cv2.LINE_AA, SHIFT)
    return canvas


def _canvas(image: npt.NDArray[Any]) -> tuple[Image, float]:
    """The stretched image as B, G, R at the size in which it is shown, and the scale of that size."""
    import cv2

    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] in (1, 2) else image[..., :3]
    table = stretch(image)
    rows, columns = image.shape[:2]
    longest = max(rows, columns)
    scale = 1.0
    if longest > LARGEST:
        scale = LARGEST / longest
        size = (max(round(columns * scale), 1), max(round(rows * scale), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    shown: Image = table[image]
    if longest < SMALLEST:
        scale = float(max(min(8, 2 * SMALLEST // longest), 1))
        shown = np.repeat(np.repeat(shown, int(scale), axis=0), int(scale), axis=1)
    canvas: Image = cv2.cvtColor(shown, cv2.COLOR_GRAY2BGR) if shown.ndim == 2 else np.ascontiguousarray(shown)
    return canvas, scale


def stretch(image: npt.NDArray[Any], white: int = WHITE) -> Image:
    """A table from grey level to 0…`white`, so that 1 % of the pixels are black and 0.2 % white; all channels alike."""
    levels = 256 if image.dtype == np.uint8 else 65536
    stride = max(int(math.sqrt(image.shape[0] * image.shape[1] / 1e6)), 1)
    counts = np.cumsum(np.bincount(image[::stride, ::stride].ravel(), minlength=levels))
    low, high = (int(np.searchsorted(counts, share * counts[-1])) for share in (LOW, HIGH))
    if high <= low:
        low, high = max(low - 1, 0), low + 1
    values = (np.arange(levels) - low) * (white / (high - low))
    table: Image = np.clip(np.rint(values), 0, white).astype(np.uint8)
    return table
