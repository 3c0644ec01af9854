"""Make the example images from the samples that ship with scikit-image (pip install scikit-image tifffile).

Real images, free to use; `README.md` has sources and licences. Run: python examples/make_images.py
"""

from pathlib import Path

import cv2
import numpy as np
import tifffile
from skimage import data
from skimage.color import rgb2hed

FOLDER = Path(__file__).parent / "images"


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    _png("coins.png", data.coins())
    _png("cell.png", data.cell()[180:560, 170:])
    tissue = data.immunohistochemistry()[262:504, 164:250]
    _png("tissue.png", tissue[..., ::-1])
    haematoxylin = rgb2hed(tissue)[..., 0]
    low, high = np.percentile(haematoxylin, (0.1, 99.9))
    grey = np.clip((haematoxylin - low) / (high - low), 0, 1) * 65535
    tifffile.imwrite(FOLDER / "tissue-nuclei.tif", grey.round().astype(np.uint16), compression="deflate", metadata=None)


def _png(name: str, image: np.ndarray) -> None:
    cv2.imwrite(str(FOLDER / name), image, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
