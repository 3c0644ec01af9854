"""The images of a job as data sets: which files there are, which planes belong together, how each is read.

One call of a runner gets the planes of one source image (a stack is several), each as a data set of its own. For an
alignment, single images that follow each other are one sequence.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import cv2
import h5py
import numpy as np
import tifffile
from segserve_sdk.images import INPUTS

from segserve_modules.session import ModuleError

SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".npz", ".h5", ".hdf5")
FIELD = "image"


class Plane(NamedTuple):
    """One data set: its identifier, its file, which part of the file, and what inputs.json says about it."""

    identifier: str
    path: Path
    part: Optional[int]
    about: Mapping[str, Any]


class Call(NamedTuple):
    """What one call of the runner gets. `name` is unique, and the beginning of the names of its output files."""

    name: str
    planes: Sequence[Plane]

    def axes(self) -> str:
        """What tells the planes apart, for metadata: T, Z or Q (something else)."""
        for axis in ("t", "z"):
            if len({plane.about.get(axis) for plane in self.planes}) == len(self.planes) > 1:
                return axis.upper()
        return "Q"


def calls(images: Path, *, sequence: bool, together: bool = False) -> List[Call]:
    """The calls for a folder (or one file) of images, in order.

    Which plane of which image a staged file is, stands in inputs.json; a file that it does not name stands for itself.
    sequence: images of one plane each are one sequence. together: all planes of all images are one call.
    """
    about = _about()
    files = [images] if images.is_file() else _listed(images)
    if not files:
        raise ModuleError(f"'{images.name}' holds no image ({', '.join(SUFFIXES)}).")
    groups: Dict[Any, List[Plane]] = {}
    for path in files:
        facts = about.get(path.name, {})
        key = (facts.get("source", str(path)), facts.get("series"))
        groups.setdefault(key, []).extend(_planes(path, facts))
    if together and len(groups) > 1:
        return [Call("all", [plane for planes in groups.values() for plane in planes])]
    if sequence and len(groups) > 1 and all(len(planes) == 1 for planes in groups.values()):
        return [Call("sequence", [planes[0] for planes in groups.values()])]
    names = _names([(str(source), series) for source, series in groups])
    return [Call(name, planes) for name, planes in zip(names, groups.values())]


def _about() -> Dict[str, Mapping[str, Any]]:
    """What segserve wrote down about each staged file: with scale and offset, which the SDK leaves out."""
    file = os.environ.get(INPUTS)
    if not file:
        return {}
    document = json.loads(Path(file).read_text(encoding="utf-8"))
    return {image["name"]: image for image in document["images"]}


def _listed(folder: Path) -> List[Path]:
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(
        found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    )


def _planes(path: Path, facts: Mapping[str, Any]) -> List[Plane]:
    if facts or path.suffix.lower() in (".png", ".npz", ".h5", ".hdf5"):
        return [Plane(path.name, path, None, facts)]
    count = _length(_array(path))
    if count is None:
        return [Plane(path.name, path, None, facts)]
    return [Plane(f"{path.name}#{part}", path, part, facts) for part in range(count)]


def _length(array: np.ndarray) -> Optional[int]:
    """How many planes an array is; None for a single one."""
    if array.ndim == 2 or (array.ndim == 3 and _is_colour(array)):
        return None
    if array.ndim in (3, 4):
        return int(array.shape[0])
    raise ModuleError(f"An array of {array.ndim} dimensions is neither an image nor a stack.")


def _is_colour(array: np.ndarray) -> bool:
    return array.shape[-1] in (3, 4) and array.dtype == np.uint8


def _names(keys: Sequence[Any]) -> List[str]:
    names: List[str] = []
    taken = set()
    for source, series in keys:
        stem = re.sub(r"\.ome$", "", Path(source).stem, flags=re.IGNORECASE)
        stem = re.sub(r"[^\w.+-]+", "_", stem)[:80].strip("._ ") or "image"
        name = stem = stem if series is None else f"{stem}_s{series}"
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def read(plane: Plane) -> Dict[str, Any]:
    """The fields of a data set; of an image file `{"image": …}`, (rows, columns) or (3, rows, columns).

    Grey levels that segserve has scaled (float images) get their own values back, as float32.
    """
    suffix = plane.path.suffix.lower()
    if suffix in (".h5", ".hdf5", ".npz"):
        return _fields(plane.path)
    array = _array(plane.path)
    if plane.part is not None:
        array = array[plane.part]
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        array = np.ascontiguousarray(np.moveaxis(array[..., :3], -1, 0))
    scale, offset = plane.about.get("scale", 1.0), plane.about.get("offset", 0.0)
    if str(plane.about.get("source_dtype", "")).startswith("float") and (scale != 1.0 or offset != 0.0):
        array = (array * scale + offset).astype(np.float32)
    return {FIELD: array}


def _array(path: Path) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix in (".tif", ".tiff"):
        return tifffile.imread(path)
    array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ModuleError(f"'{path.name}' is no image.")
    return array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]]  # cv2 reads BGR


def _fields(path: Path) -> Dict[str, Any]:
    """The arrays of an HDF5 or NPZ file by name, and the attributes of HDF5; a single array is also `image`."""
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    else:
        with h5py.File(path, "r") as file:
            found = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}
            arrays = [value for value in found.values() if isinstance(value, np.ndarray) and value.ndim > 1]
            found.update({name: value for name, value in file.attrs.items() if name not in found})
        if len(arrays) == 1:
            found.setdefault(FIELD, arrays[0])
        return found
    if len(found) == 1:
        found.setdefault(FIELD, next(iter(found.values())))
    return found
