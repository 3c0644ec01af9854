"""Which kind of file is it, and its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from segserve import format as polygons
from segserve import inputs
from segserve.errors import NotFound, UnreadableImage, UsageError
from segserve.evaluate import Objects
from segserve.inputs import kinds, pixels
from segserve.inputs.base import Unusable
from segserve.inputs.discover import natural
from segserve.inputs.planning import InputPlan, refuse
from segserve.sides import coco
from segserve.sides.base import Side, SideImage

MASK_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_seg")


class _Described(msgspec.Struct):
    """An image in results.json."""

    file: str = ""
    series: int | None = None
    t: int | None = None
    z: int | str | None = None
    width: coco.Length = 0
    height: coco.Length = 0


class _Results(msgspec.Struct):
    images: list[_Described]


def read(path: Path) -> Side:
    """Read one side. Objects of label images are read when they are asked for.

    Raises:
        NotFound: there is no such file.
        OutputInvalid: a polygon document with mistakes.
        UsageError: anything else that cannot be read; the message says what it is.
    """
    if not path.exists():
        raise NotFound(f"{path} does not exist.")
    if path.is_dir() and (path / "output.json").is_file():
        return _polygons(path / "output.json", path / "results.json")
    if path.is_dir() or path.suffix.lower() != ".json":
        return _label_images(path)
    data = path.read_bytes()
    instances = coco.recognised(data)
    if instances is not None:
        return coco.read(path, instances)
    return _polygons(path, path.with_name("results.json"), data)


def read_images(path: Path) -> list[Callable[[], npt.NDArray[Any]]]:
    """How to get the pixels of each image of a file or folder, in the order in which `segserve run` takes them."""
    plan = inputs.plan([path])
    return [partial(_pixels, plan, number) for number in range(plan.count)]


# ------------------------------------------------------------------------------------------------------ polygons


def _polygons(path: Path, results: Path, data: bytes | None = None) -> Side:
    document = polygons.decode(path.read_bytes() if data is None else data)
    if not isinstance(document, polygons.Document):
        raise UsageError(f"{path} describes an executor (info) and has no objects to compare.")
    described = _described(results, document.n_images)
    return Side(
        path,
        "output.json",
        tuple(
            SideImage(_name(image), partial(Objects.from_document, document.image(index), _shape(image)))
            for index, image in enumerate(described)
        ),
    )


def _described(path: Path, count: int) -> list[_Described]:
    """The images as results.json names them; nameless ones where there is none that fits."""
    nameless = [_Described() for _ in range(count)]
    if not path.is_file():
        return nameless
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Results).images
    except (msgspec.DecodeError, UnicodeDecodeError):
        return nameless
    return found if len(found) == count else nameless


def _shape(image: _Described) -> tuple[int, int] | None:
    return (image.height, image.width) if image.height > 0 and image.width > 0 else None


def _name(image: _Described) -> str:
    stem = PurePath(image.file.replace("\\", "/")).stem
    axes = (("s", image.series), ("t", image.t), ("z", image.z))
    return stem + "".join(f" {axis}={value}" for axis, value in axes if value is not None) if stem else ""


# -------------------------------------------------------------------------------------------------- label images


def _label_images(path: Path) -> Side:
    wanted, notes = _masks_in(path) if path.is_dir() else ([path], [])
    plan = inputs.plan(wanted or [path], inputs.Selection(series="all"))
    per_file = Counter(request.source for request in plan.requests)
    images = []
    for number, request in enumerate(plan.requests):
        series = plan.sources[request.source].series[request.series]
        if np.dtype(series.dtype).kind not in "bui" or series.samples != 1 or request.sample is not None:
            raise UnreadableImage(
                f"{plan.sources[request.source].given} is no label image: {_pixel_type(series)}.",
                hint="A label image has one integer per pixel, 0 is background. Give the masks, not the images.",
            )
        stem = _without_ending(PurePath(plan.sources[request.source].path).stem)
        axes = (("s", request.series if len(plan.sources[request.source].series) > 1 else None), ("t", request.t))
        suffix = "".join(f" {axis}={value}" for axis, value in (*axes, ("z", request.z)) if value is not None)
        name = stem + (suffix if per_file[request.source] > 1 else "")
        images.append(SideImage(name, partial(_labels, plan, number)))
    kind = "folder of label images" if path.is_dir() else "label image"
    return Side(path, kind, tuple(images), (*notes, *plan.notes))


def _masks_in(folder: Path) -> tuple[list[Path], list[str]]:
    """In a folder of images with masks beside them (Cellpose's habit): the masks."""
    files = [file for file in folder.iterdir() if not file.name.startswith(".") and file.suffix.lower() != ".json"]
    masks = [file for file in files if file.stem.endswith(MASK_ENDINGS[:3]) and file.suffix.lower() != ".txt"]
    if not masks or len(masks) == len(files):
        return [], []
    return sorted(masks, key=lambda file: natural(file.stem)), [
        f"of {len(files)} files in {folder} only the {len(masks)} masks are read"
    ]


def _without_ending(stem: str) -> str:
    for ending in MASK_ENDINGS:
        if stem.endswith(ending) and stem != ending:
            return stem.removesuffix(ending)
    return stem


def _pixel_type(series: inputs.Series) -> str:
    return "it is a colour image" if series.samples > 1 else f"its pixels are of type {series.dtype}"


def _labels(plan: InputPlan, number: int) -> Objects:
    return Objects.from_labels(_pixels(plan, number))


def _pixels(plan: InputPlan, number: int) -> npt.NDArray[Any]:
    request = plan.requests[number]
    source = plan.sources[request.source]
    with _refused(source.given), kinds.opened(source) as planes:
        return pixels.image(planes, request, source.series[request.series])


@contextmanager
def _refused(given: str) -> Iterator[None]:
    try:
        yield
    except Unusable as problem:
        refuse([problem.finding(given)], 1)
