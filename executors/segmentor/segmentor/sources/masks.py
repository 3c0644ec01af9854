"""Annotations that are images: CVAT's colour masks, masks of class numbers, masks of object numbers."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from segmentor.annotation import Annotation, compact, from_classes
from segmentor.sources.base import Item, Source, SourceError, folder_of, image_files, read_file, require_shape

_MASK_SUFFIX = re.compile(r"[_-](?:masks?|labels?|seg)$")
Colour = tuple[int, int, int]


def read_cvat(source: Path, names: Sequence[str]) -> Source:
    """CVAT's "Segmentation mask 1.1": labelmap.txt, SegmentationClass, SegmentationObject (optional) and the images.

    Every colour of labelmap.txt but `background` is a class, in its order, or in the order of `names`.
    """
    colours = read_labelmap(source / "labelmap.txt")
    listed = [name for name in dict.fromkeys(colours.values()) if name != "background"]
    if names and set(names) - set(listed):
        missing = ", ".join(sorted(set(names) - set(listed)))
        raise SourceError(source / "labelmap.txt", f"does not name {missing}")
    classes = list(names) or listed
    values = {colour: classes.index(name) + 1 for colour, name in colours.items() if name in classes}
    values |= {colour: 0 for colour, name in colours.items() if name not in classes}
    objects = source / "SegmentationObject"

    def load(mask: Path, shape: tuple[int, int]) -> Annotation:
        class_map = _classes_of(mask, values, shape)
        outlined = objects / mask.relative_to(source / "SegmentationClass")
        return _split_by_colour(outlined, class_map) if outlined.is_file() else from_classes(class_map)

    images = folder_of(source, "JPEGImages", "images", "Images")
    return _paired(images, source / "SegmentationClass", classes, load)


def read_classes(source: Path, names: Sequence[str]) -> Source:
    """`images/` and `masks/` of class numbers: 0 = background. Objects are the connected parts.

    Names come from `names` or classes.txt (one a line; class 1 first). Without names every value is a class.
    """
    masks = folder_of(source, "masks", "labels")
    listed = list(names) or _names_file(source)
    known = {0: 0, **{value: value for value in range(1, len(listed) + 1)}}
    if len(listed) == 1:
        known[255] = 1  # binary masks
    if not listed:
        values = sorted({int(v) for path in image_files(masks).values() for v in np.unique(_grey(path))} - {0})
        known |= {value: index for index, value in enumerate(values, 1)}
        listed = ["object"] if len(values) == 1 else [f"class_{value}" for value in values]

    def load(mask: Path, shape: tuple[int, int]) -> Annotation:
        found = _grey(mask)
        require_shape(mask, found.shape, shape)
        unknown = np.setdiff1d(found, list(known))
        if len(unknown):
            named = ", ".join(f"{number} {name}" for number, name in enumerate(listed, 1))
            raise SourceError(mask, f"has the value {unknown[0]}; known are 0 background, {named}")
        table = np.zeros(max(known) + 1, np.int64)
        table[list(known)] = list(known.values())
        return from_classes(table[found])

    return _paired(folder_of(source, "images"), masks, listed, load)


def read_instances(source: Path, names: Sequence[str]) -> Source:
    """`images/` and `masks/` of object numbers, 0 = background; all of one class."""
    if len(names) > 1:
        raise SourceError(source, "instance masks say no classes: give one name")

    def load(mask: Path, shape: tuple[int, int]) -> Annotation:
        found = _grey(mask)
        require_shape(mask, found.shape, shape)
        return compact(found.astype(np.int32), np.ones(int(found.max(initial=0)), np.int64))

    classes = list(names) or _names_file(source) or ["object"]
    return _paired(folder_of(source, "images"), folder_of(source, "masks", "labels"), classes, load)


def read_labelmap(path: Path) -> dict[Colour, str]:
    """Colour → name from CVAT's labelmap.txt: `name:r,g,b:parts:actions`, comments with '#'.

    Raises:
        SourceError: it is not there, or a line is not of that form.
    """
    if not path.is_file():
        raise SourceError(path, "is not there; CVAT's export 'Segmentation mask 1.1' has it")
    colours: dict[Colour, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"([^:]+):(\d{1,3}),(\d{1,3}),(\d{1,3})(:.*)?", line.strip())
        if found is None:
            raise SourceError(path, f"line {number} is not of the form name:r,g,b:parts:actions")
        red, green, blue = (int(value) for value in found.group(2, 3, 4))
        if colours.setdefault((red, green, blue), found[1]) != found[1]:
            raise SourceError(path, f"line {number} gives the colour {red},{green},{blue} to two classes")
    return colours


def _classes_of(mask: Path, values: dict[Colour, int], shape: tuple[int, int]) -> np.ndarray:
    codes = _codes(mask)
    require_shape(mask, codes.shape, shape)
    class_map = np.full(codes.shape, -1, np.int64)
    for (red, green, blue), value in values.items():
        class_map[codes == (red << 16 | green << 8 | blue)] = value
    if (class_map < 0).any():
        row, column = np.argwhere(class_map < 0)[0].tolist()
        code = int(codes[row, column])
        colour = f"{code >> 16},{code >> 8 & 255},{code & 255}"
        raise SourceError(mask, f"has the colour {colour} in row {row}, column {column}, unknown to labelmap.txt")
    return class_map


def _split_by_colour(outlined: Path, class_map: np.ndarray) -> Annotation:
    """SegmentationObject has a colour of its own for every object."""
    codes = _codes(outlined)
    require_shape(outlined, codes.shape, class_map.shape)
    both = np.where(class_map > 0, codes * 256 + class_map, 0)
    values, inverse = np.unique(np.append(both.ravel(), 0), return_inverse=True)
    return Annotation(inverse[:-1].reshape(both.shape).astype(np.int32), values[1:] % 256)


def _codes(path: Path) -> np.ndarray:
    image = read_file(path)
    if image.dtype != np.uint8:
        raise SourceError(path, f"has {image.dtype} pixels; a colour mask has 8 bit")
    colours = (image if image.ndim == 3 else np.dstack([image] * 3)).astype(np.int64)
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _grey(path: Path) -> np.ndarray:
    image = read_file(path)
    if image.ndim == 3:
        if (image[..., :1] != image[..., :3]).any():
            raise SourceError(path, "is a colour image; a mask has one number per pixel")
        image = image[..., 0]
    return image


def _names_file(source: Path) -> list[str]:
    path = source / "classes.txt"
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()] if path.is_file() else []


def _paired(
    images: Path, masks: Path, classes: list[str], load: Callable[[Path, tuple[int, int]], Annotation]
) -> Source:
    found = image_files(images)
    annotated = {_MASK_SUFFIX.sub("", name): path for name, path in image_files(masks).items()}
    problems = [SourceError(found[name], f"has no mask in {masks.name}/") for name in sorted(found.keys() - annotated)]
    problems += [
        SourceError(annotated[name], f"has no image in {images.name}/") for name in sorted(annotated.keys() - found)
    ]
    items = [
        Item(name, path, partial(load, annotated[name])) for name, path in sorted(found.items()) if name in annotated
    ]
    return Source(classes, items, problems)
