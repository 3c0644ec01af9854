"""What a run leaves, per algorithm type: a writer takes the posted results of one call after the other.

Image2Segmentation  output.json (format 0.2), masks/NAME.tif
Image2Image         images/NAME.tif, previews/NAME.png
Image2Alignment     alignment.json, alignment.csv, previews/NAME-000.png
Image2Embedding     embeddings/NAME.npz and .h5
Generic             outputs/NAME.h5
"""

import csv
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Type

import cv2
import h5py
import numpy as np
import tifffile
from segserve_sdk import output

from segserve_modules.datasets import Call, Plane, read
from segserve_modules.session import ModuleError

Results = Sequence[Mapping[str, Any]]
LABEL = "Object"
MAX_PREVIEWS = 24
_PREVIEW_SIDE = 1024
# What ImageJ can hold, and with it axes and pixel sizes that Fiji reads.
_IMAGEJ = ("uint8", "uint16", "float32")


class Writer:
    """Takes the results of one call after the other; `close` writes what can only be known at the end."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        self.facts = facts

    def add(self, call: Call, results: Results) -> str:
        """Write the results of one call; returns what to say about it."""
        raise NotImplementedError

    def close(self) -> None:
        """Everything has been added, or nothing more will be."""

    def place(self, folder: str, name: str) -> Path:
        """A file below the output folder."""
        path = self.folder / folder
        path.mkdir(parents=True, exist_ok=True)
        return path / name


# ------------------------------------------------------------------------------------------------------ segmentation


class Segmentation(Writer):
    """Masks → polygons, one list per image."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, facts)
        self._found: Dict[str, List[Dict[str, Any]]] = {}
        self._staged = True  # then the names sort in input order; the planes of two sources may come in turns

    def add(self, call: Call, results: Results) -> str:
        """Posted masks, one per plane or as stacks."""
        masks = _per_plane(call, [result["mask"] for result in results], "mask")
        labels = [_labels(mask, plane, call.name) for mask, plane in zip(masks, call.planes)]
        for plane, label in zip(call.planes, labels):
            self._found[plane.identifier] = output.objects(label, label=LABEL)
            self._staged = self._staged and bool(plane.about)
        _write_stack(self.place("masks", f"{call.name}.tif"), [_compact(label) for label in labels], call)
        return f"{sum(len(self._found[plane.identifier]) for plane in call.planes)} objects"

    def close(self) -> None:
        """output.json: one list per image, in input order."""
        names = sorted(self._found) if self._staged else list(self._found)
        per_image = [self._found[name] for name in names]
        output.write_output(self.folder / "output.json", output.provenance(), per_image)


def _per_plane(call: Call, arrays: Sequence[Any], what: str) -> List[np.ndarray]:
    """The arrays as one per plane, whether they were posted one by one or as a stack."""
    found = [np.asarray(array) for array in arrays]
    count = len(call.planes)
    if len(found) == 1 and count > 1 and found[0].ndim > 2 and len(found[0]) == count:
        found = list(found[0])
    if len(found) == 1 == count and found[0].ndim in (3, 4) and len(found[0]) == 1:
        found = [found[0][0]]
    if len(found) != count:
        raise ModuleError(f"{call.name}: {len(found)} results ({what}) were posted for {count} images.")
    return found


def _labels(mask: np.ndarray, plane: Plane, name: str) -> np.ndarray:
    """A label mask of (rows, columns): of a binary mask its 8-connected components, of labels what they are."""
    rows, columns = read(plane)["image"].shape[-2:]
    if mask.ndim == 3 and mask.shape[0] == 3 and mask.shape[1:] == (rows, columns):
        mask = _over_channels(mask, name)
    if mask.shape != (rows, columns):
        shape = " × ".join(map(str, mask.shape))
        raise ModuleError(f"{name}: the mask is {shape}, the image {rows} × {columns} (rows × columns).")
    if mask.dtype == bool:
        return _components(mask)
    if not np.issubdtype(mask.dtype, np.integer):
        whole = np.isfinite(mask).all() and (mask == np.round(mask)).all()
        if not whole:
            raise ModuleError(f"{name}: the mask holds fractions. Return booleans or labels: threshold it first.")
        mask = mask.astype(np.int64)
    if mask.size and mask.min() < 0:
        raise ModuleError(f"{name}: the mask has the label {mask.min()}; labels begin at 1, 0 is the background.")
    # One value beside the background says foreground, not object: 1, 255 or whatever the method writes.
    values = np.unique(mask[mask > 0])
    return _components(mask > 0) if len(values) == 1 else mask


def _over_channels(mask: np.ndarray, name: str) -> np.ndarray:
    """A mask per colour channel as one: they agree, or they are binary (a pixel counts if it does in any)."""
    if (mask == mask[0]).all():
        return mask[0]
    if len(np.unique(mask)) > 2:
        raise ModuleError(f"{name}: one label mask per colour channel cannot become one mask.")
    return mask.astype(bool).any(axis=0)


def _components(mask: np.ndarray) -> np.ndarray:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]


def _compact(labels: np.ndarray) -> np.ndarray:
    largest = int(labels.max()) if labels.size else 0
    return labels.astype(np.uint16 if largest < 2**16 else np.uint32)


# ------------------------------------------------------------------------------------------------------------ images


class Images(Writer):
    """Images of the names of their sources, and small pictures of them."""

    def add(self, call: Call, results: Results) -> str:
        """Posted images, one per plane or as stacks."""
        planes = _per_plane(call, [result["image"] for result in results], "image")
        _write_stack(self.place("images", f"{call.name}.tif"), planes, call)
        middle = planes[len(planes) // 2]
        cv2.imwrite(str(self.place("previews", f"{call.name}.png")), _small(_stretched(middle)))
        return f"{len(planes)} image{'s' if len(planes) > 1 else ''} of {_size(middle)}"


def _size(image: np.ndarray) -> str:
    return f"{image.shape[-1]} × {image.shape[-2]} {image.dtype}" if image.ndim > 1 else str(image.dtype)


def _write_stack(path: Path, planes: Sequence[np.ndarray], call: Call) -> None:
    """A TIFF of one page per plane, with the axis and the pixel size of the source; channels stay before the rows."""
    if len({plane.shape for plane in planes}) > 1:
        raise ModuleError(f"{call.name}: the images of one stack differ in size.")
    stack = np.stack(planes) if len(planes) > 1 else np.asarray(planes[0])
    if stack.dtype == bool:
        stack = stack.astype(np.uint8)
    inner = {2: "YX", 3: "CYX"}.get(planes[0].ndim)
    if inner is None:
        raise ModuleError(f"{call.name}: a result of {planes[0].ndim} dimensions is no image.")
    axes = (call.axes() if len(planes) > 1 else "") + inner
    imagej = str(stack.dtype) in _IMAGEJ and "Q" not in axes
    options: Dict[str, Any] = {"imagej": True} if imagej else {}
    size = call.planes[0].about.get("pixel_size_um")
    metadata: Dict[str, Any] = {"axes": axes}
    if size and imagej:
        options["resolution"] = (1 / size[0], 1 / size[1])
        metadata["unit"] = "um"
    tifffile.imwrite(path, stack, metadata=metadata, photometric="minisblack", **options)


def _stretched(image: np.ndarray) -> np.ndarray:
    """8 bit, between the 0.1 and 99.9 percentiles; (rows, columns), or colours as (rows, columns, 3) in BGR."""
    image = np.nan_to_num(np.asarray(image, np.float64))
    low, high = np.percentile(image, (0.1, 99.9))
    stretched = np.clip((image - low) / ((high - low) or 1.0) * 255, 0, 255).astype(np.uint8)
    if stretched.ndim == 3:
        stretched = stretched[[2, 1, 0]] if len(stretched) == 3 else stretched[:1]
        stretched = np.ascontiguousarray(np.moveaxis(stretched, 0, -1))
    return stretched


def _small(picture: np.ndarray) -> np.ndarray:
    """At most 1024 pixels wide or high."""
    factor = _PREVIEW_SIDE / max(picture.shape[:2])
    return picture if factor >= 1 else cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


# --------------------------------------------------------------------------------------------------------- alignment


class Alignment(Writer):
    """One matrix per pair of neighbours. It maps points (x, y, 1) of the second image onto the first."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(folder, facts)
        self._pairs: List[Dict[str, Any]] = []

    def add(self, call: Call, results: Results) -> str:
        """n - 1 results for n images."""
        count = len(call.planes)
        if count < 2:
            raise ModuleError(f"{call.name}: an alignment needs at least two images.")
        if len(results) != count - 1:
            raise ModuleError(f"{call.name}: {len(results)} matrices were posted for {count} images, not {count - 1}.")
        for number, result in enumerate(results):
            first, second = call.planes[number : number + 2]
            matrix = _matrix(result, f"{call.name}, pair {number}")
            pair = {"sequence": call.name, "first": _label(first), "second": _label(second)}
            more = {key: _listed(value) for key, value in result.items() if key != "transform_matrix"}
            pair["transform_matrix"] = matrix.tolist()
            self._pairs.append({**pair, **{key: value for key, value in more.items() if value is not None}})
            if len(self._pairs) <= MAX_PREVIEWS:
                preview = self.place("previews", f"{call.name}-{number:03d}.png")
                cv2.imwrite(str(preview), _overlay(_grey(first), _grey(second), matrix))
        return f"{len(results)} matrices"

    def close(self) -> None:
        """The matrices as JSON and CSV."""
        text = json.dumps({"maps": "second onto first, (x, y, 1), pixel centres", "pairs": self._pairs}, indent=1)
        (self.folder / "alignment.json").write_text(text, encoding="utf-8")
        with (self.folder / "alignment.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(
                ["sequence", "first", "second", *(f"m{row}{column}" for row in range(3) for column in range(3))]
            )
            for pair in self._pairs:
                values = [value for row in pair["transform_matrix"] for value in row]
                table.writerow([pair["sequence"], pair["first"], pair["second"], *values])


def _matrix(result: Mapping[str, Any], what: str) -> np.ndarray:
    given = result.get("transform_matrix")
    if given is None:
        given = result.get("translation_matrix")
    matrix = np.asarray(given, np.float64) if given is not None else np.empty(0)
    if matrix.shape == (2, 3):
        matrix = np.vstack([matrix, [0.0, 0.0, 1.0]])
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ModuleError(f"{what}: a matrix has 3 × 3 finite numbers (2 × 3 are an affine one).")
    return matrix


def _label(plane: Plane) -> str:
    source = plane.about.get("source")
    if source is None:
        return plane.identifier
    places = [f"{axis}{plane.about[axis]}" for axis in ("t", "z", "c") if plane.about.get(axis) is not None]
    return " ".join([Path(source).name, *places])


def _listed(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _grey(plane: Plane) -> np.ndarray:
    image = read(plane)["image"]
    return image.mean(axis=0) if image.ndim == 3 else image


def _overlay(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The first image in magenta, the second one, moved by the matrix, in green: where they agree it is grey."""
    rows, columns = first.shape
    moved = cv2.warpPerspective(_stretched(second), matrix, (columns, rows))
    still = _stretched(first)
    return _small(np.dstack([still, moved, still]))


# ----------------------------------------------------------------------------------------------- embeddings, generic


class Fields(Writer):
    """Data sets as they were posted: HDF5."""

    into = "outputs"

    def add(self, call: Call, results: Results) -> str:
        """One file per posted data set."""
        for number, result in enumerate(results):
            name = call.name if len(results) == 1 else f"{call.name}-{number:04d}"
            self.write(name, result)
        return f"{len(results)} data set{'s' if len(results) != 1 else ''}"

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """One data set: an HDF5 dataset per field; texts and what else is no array become attributes."""
        with h5py.File(self.place(self.into, f"{name}.h5"), "w") as file:
            for key, value in (("module", self.facts["name"]), ("module_version", self.facts["version"])):
                file.attrs[f"segserve_{key}"] = value
            for key, value in result.items():
                if value is None:
                    continue
                try:
                    if isinstance(value, np.ndarray):
                        file.create_dataset(key, data=value, compression="gzip" if value.ndim else None)
                    else:
                        file.attrs[key] = value
                except (TypeError, ValueError) as error:
                    raise ModuleError(f"{name}: the field '{key}' cannot be written to HDF5: {error}.") from error


class Embeddings(Fields):
    """The same, and NPZ beside it."""

    into = "embeddings"

    def write(self, name: str, result: Mapping[str, Any]) -> None:
        """One image's features."""
        super().write(name, result)
        np.savez_compressed(
            self.place(self.into, f"{name}.npz"), **{key: np.asarray(value) for key, value in result.items()}
        )


WRITERS: Dict[str, Type[Writer]] = {
    "Image2Segmentation": Segmentation,
    "Image2Image": Images,
    "Image2Alignment": Alignment,
    "Image2Embedding": Embeddings,
    "Generic": Fields,
}
