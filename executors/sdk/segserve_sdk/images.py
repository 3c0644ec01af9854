"""The images that an executor is given, in the order in which its results have to be."""

import glob
import os
from typing import List

import cv2
import numpy as np


def paths(where: str) -> List[str]:
    """The PNG files of a folder in sorted order; a single file is a list of one.

    segserve stages every image as PNG with a zero-padded name, so that sorted order is the order of the input.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder without PNG files.
    """
    if os.path.isfile(where):
        return [where]
    found = sorted(glob.glob(os.path.join(glob.escape(where), "*.png")))
    if not found:
        raise FileNotFoundError(f"no images found: '{where}' holds no PNG file")
    return found


def read(path: str) -> np.ndarray:
    """An image as it was staged: (rows, columns) or (rows, columns, 3 or 4), uint8 or uint16, colours as RGB(A).

    Raises:
        ValueError: the file is no image.
    """
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"cannot read image '{path}'")
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]  # cv2 reads BGR
    return image
