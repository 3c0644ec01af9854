"""Folders of images and labels → pairs of arrays."""

from pathlib import Path
from typing import Dict, Iterable, List, NamedTuple, Tuple

import cv2
import numpy as np

KINDS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label")


class Pair(NamedTuple):
    """An image, (rows, columns) or (rows, columns, 3) as RGB, and its label mask (rows, columns) int32, 0 = ground."""

    name: str
    image: np.ndarray
    labels: np.ndarray


def read(images: Path, labels: Path) -> List[Pair]:
    """All pairs, in the order of their names: `x.tif` belongs to `x.png`, `x_masks.tif`, `x_label.png` ….

    Raises:
        ValueError: something has no partner, cannot be read, or has another shape; the message names all of them.
    """
    together = images.resolve() == labels.resolve()  # side by side, as Cellpose itself keeps them
    pictures = _named((path.stem, path) for path in _files(images) if not (together and _is_mask(path)))
    truth = _named((_of_image(path), path) for path in _files(labels) if not together or _is_mask(path))
    alone = sorted(set(pictures) ^ set(truth))
    if alone:
        raise ValueError(f"no partner in the other folder: {', '.join(alone[:10])} ({len(alone)} in all)")
    if not pictures:
        raise ValueError(f"no images found: '{images}' holds none of {', '.join(KINDS)}")
    pairs, wrong = [], []
    for stem, path in sorted(pictures.items()):
        image, mask = _pixels(path), _pixels(truth[stem])
        if image is None or mask is None:
            wrong.append(f"{stem} cannot be read")
        elif mask.ndim != 2 or image.ndim not in (2, 3) or image.shape[:2] != mask.shape:
            wrong.append(f"{stem}: image {image.shape}, labels {mask.shape}")
        else:
            pairs.append(
                Pair(stem, image, np.unique(mask, return_inverse=True)[1].reshape(mask.shape).astype(np.int32))
            )
    if wrong:
        raise ValueError("; ".join(wrong[:10]))
    return pairs


def _named(files: Iterable[Tuple[str, Path]]) -> Dict[str, Path]:
    found: Dict[str, Path] = {}
    for name, path in files:
        if name in found:
            raise ValueError(f"{found[name].name} and {path.name} are both '{name}': leave one of them out")
        found[name] = path
    return found


def _files(folder: Path) -> List[Path]:
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder")
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS and not path.name.startswith("."))


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(ENDINGS)


def _of_image(path: Path) -> str:
    """The name of the image that a label image belongs to."""
    ending = next((ending for ending in ENDINGS if path.stem.endswith(ending)), "")
    return path.stem[: len(path.stem) - len(ending)]


def _pixels(path: Path) -> "np.ndarray | None":
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is not None and image.ndim == 3:
        return image[..., 2::-1]  # cv2 reads BGR(A)
    return image
