"""Pictures of staged images to look at: grey values stretched between two quantiles, 8 bits, not too large."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segserve.errors import NotFound, TooLarge
from segserve.report.overlays import DRAWABLE, Image, stretch

JPEG_FROM = 1 << 20  # pixels; smaller ones are PNG, in which every pixel is right
_QUALITY = 90
LEAST, MOST = 64, 4096  # px of the longer side that can be asked for

Region = tuple[int, int, int, int]  # left, top, width, height in pixels of the image; pixel corners


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture of an image, or of a region of it.

    `scale` is pixels of the picture per pixel of the image (at most 1). `media_type` is image/png or image/jpeg.
    """

    content: bytes
    media_type: str
    scale: float


def preview(path: Path, largest: int, region: Region | None = None) -> Preview:
    """Draw the staged image at `path`; its longer side (that of the region) becomes `largest` pixels at most.

    The stretch is that of the whole image, so that regions fit together.

    Raises:
        NotFound: the image is not there any more. TooLarge: it has too many pixels to be drawn.
    """
    import cv2

    if not path.is_file():
        raise NotFound(
            "The image is not kept any more.", hint="The result is; its overlays may show what you look for."
        )
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise NotFound("The staged image cannot be read back.", hint="Submit the job again.")
    if math.prod(image.shape[:2]) > DRAWABLE:
        raise TooLarge(f"The image has more than {DRAWABLE >> 20} million pixels and is not drawn.")
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] in (1, 2) else image[..., :3]
    table = stretch(image, white=255)
    if region is not None:
        left, top, width, height = region
        image = image[top : top + height, left : left + width]
        if not image.size:
            raise NotFound("The region lies outside of the image.")
    longest = max(image.shape[:2])
    scale = min(1.0, largest / longest)
    if scale < 1:
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _encoded(table[image], scale)


def _encoded(shown: Image, scale: float) -> Preview:
    import cv2

    small = math.prod(shown.shape[:2]) < JPEG_FROM
    suffix, options = (
        (".png", [cv2.IMWRITE_PNG_COMPRESSION, 3]) if small else (".jpg", [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    )
    _, buffer = cv2.imencode(suffix, shown, options)
    return Preview(bytes(buffer.tobytes()), "image/png" if small else "image/jpeg", scale)
