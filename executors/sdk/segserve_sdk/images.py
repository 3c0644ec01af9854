"""The images that an executor is given, in the order in which its results have to be."""

from pathlib import Path
from typing import List, Union

import cv2
import numpy as np


def paths(where: Union[str, Path]) -> List[Path]:
    """The PNG files of a folder in sorted order; a single file is a list of one.

    segserve stages every image as PNG with a zero-padded name, so that sorted order is the order of the input.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder without PNG files.
    """
    where = Path(where)
    if where.is_file():
        return [where]
    found = sorted(path for path in where.glob("*.png") if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"no images found: '{where}' holds no PNG file")
    return found


def read(path: Union[str, Path]) -> np.ndarray:
    """An image as it was staged: (rows, columns) or (rows, columns, 3 or 4), uint8 or uint16, colours as RGB(A).

    Raises:
        ValueError: the file is no image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"cannot read image '{path}'")
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]  # cv2 reads BGR
    return image
