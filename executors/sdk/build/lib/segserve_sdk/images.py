"""The images that an executor is given, in the order in which its results have to be.

segserve stages every image as PNG with a zero-padded name and says in the file that `SEGSERVE_INPUTS` names where each
came from. Under plain `mlflow run` there is no such file: then an image's own name is all that is known of it.
"""

import json
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import cv2
import numpy as np

INPUTS = "SEGSERVE_INPUTS"


class Image(NamedTuple):
    """One image. `source` is the original file; `series`, `t`, `z`, `c` count from 0, None when there is no such axis.

    `z` may also name a projection ("max"). `pixel_size_um` is (x, y) micrometres per pixel, None if it is not known.
    """

    path: Path
    source: str
    series: Optional[int] = None
    t: Optional[int] = None
    z: Union[int, str, None] = None
    c: Optional[int] = None
    channel_name: str = ""
    pixel_size_um: Optional[Tuple[float, float]] = None

    @property
    def name(self) -> str:
        """What people call it: the original file's name, with the axes that tell it from its siblings."""
        axes = [f"{axis}{getattr(self, axis)}" for axis in ("t", "z", "c") if getattr(self, axis) is not None]
        return " ".join([Path(self.source).name, *axes])

    def read(self) -> np.ndarray:
        """Its pixels, see `read`."""
        return read(self.path)


def load(where: Union[str, Path]) -> List[Image]:
    """The images of a folder (or one file) in the order of the results, with their original names.

    Raises:
        FileNotFoundError: there is nothing of that name, or a folder without PNG files.
    """
    origins = _origins()
    return [origins.get(path.name, Image(path, path.name))._replace(path=path) for path in paths(where)]


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


def _origins() -> Dict[str, Image]:
    """Staged name → image, as segserve wrote it down; empty when nobody did."""
    file = os.environ.get(INPUTS)
    if not file:
        return {}
    document: Dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    found = {}
    for item in document["images"]:
        known = {name: item[name] for name in Image._fields if item.get(name) is not None}
        if "pixel_size_um" in known:
            known["pixel_size_um"] = tuple(known["pixel_size_um"])
        found[item["name"]] = Image(path=Path(item["name"]), **known)
    return found
