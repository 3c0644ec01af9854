"""Image files to arrays, and arrays to the numbers that a network sees. The same code trains and predicts."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
# ITU-R BT.601, as in cv2.COLOR_RGB2GRAY.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Normalisation:
    """What becomes of pixels: `channels` 1 (grey) or 3 (RGB); per channel, two percentiles become 0 and 1, clipped."""

    channels: int = 1
    low: float = 0.5
    high: float = 99.8

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(channels, rows, columns) float32 in 0..1 from (rows, columns) or (rows, columns, 3 or 4) as RGB(A).

        An image of one value becomes zeros.
        """
        planes = self._planes(image.astype(np.float32))
        low, high = np.percentile(planes, (self.low, self.high), axis=(1, 2), keepdims=True)
        span = np.where(high > low, high - low, 1)
        return np.clip((planes - low) / span, 0, 1).astype(np.float32)

    def _planes(self, image: np.ndarray) -> np.ndarray:
        colour = image.ndim == 3
        if self.channels == 1:
            return (image[..., :3] @ _LUMA if colour else image)[None]
        return image[..., :3].transpose(2, 0, 1) if colour else np.repeat(image[None], 3, axis=0)


def read(path: Path) -> np.ndarray:
    """An image with whole numbers: (rows, columns) or (rows, columns, 3 or 4) as RGB(A), uint8 or uint16.

    Raises:
        ValueError: the file is no image, holds several pages, or numbers of another kind. The message names no file.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("is no image that can be read")
    if path.suffix.lower() in (".tif", ".tiff") and cv2.imcount(str(path)) > 1:
        raise ValueError(f"has {cv2.imcount(str(path))} pages; write one file per plane")
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"has pixels of type {image.dtype}; convert it to 8 or 16 bit")
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]  # cv2 reads BGR
    return image


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image as `read` gives it, lossless.

    Raises:
        OSError: it cannot be written.
    """
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    if not cv2.imwrite(str(path), image):
        raise OSError(f"'{path}' cannot be written")
