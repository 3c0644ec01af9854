"""Annotated images as people have them. One reader per kind, all with the same signature and result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from segmentor.sources.base import Item, Source, SourceError
from segmentor.sources.masks import read_classes, read_cvat, read_instances
from segmentor.sources.polygons import coco_file, read_coco, read_format_0_2

__all__ = ["KINDS", "Item", "Source", "SourceError", "detect"]

# Each takes the folder and the names of the classes in order (none: as the source has them).
KINDS: Mapping[str, Callable[[Path, Sequence[str]], Source]] = {
    "cvat": read_cvat,
    "classes": read_classes,
    "instances": read_instances,
    "coco": read_coco,
    "format-0.2": read_format_0_2,
}


def detect(source: Path) -> str:
    """The kind that a folder shows by its files.

    Raises:
        SourceError: none, or masks of numbers, which may mean classes or objects.
    """
    if (source / "labelmap.txt").is_file():
        return "cvat"
    if (source / "output.json").is_file():
        return "format-0.2"
    if coco_file(source) is not None:
        return "coco"
    if (source / "masks").is_dir() or (source / "labels").is_dir():
        raise SourceError(source, "has masks: say format=classes (numbers are classes) or format=instances (objects)")
    raise SourceError(source, "is none of cvat (labelmap.txt), format-0.2 (output.json), coco (*.json), images + masks")
