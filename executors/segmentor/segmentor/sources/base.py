"""What every kind of annotation is read into."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segmentor import pixels
from segmentor.annotation import Annotation


class SourceError(ValueError):
    """Something that a person has to correct; the message names the file and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")


class Item(NamedTuple):
    """One annotated image. `annotation(shape)` reads what is known of it; it raises SourceError."""

    name: str
    image: Path
    annotation: Callable[[tuple[int, int]], Annotation]


class Source(NamedTuple):
    """All items of a folder, sorted by name, and the names of classes 1 … K. `problems` hold for no single item."""

    classes: list[str]
    items: list[Item]
    problems: list[SourceError]


def image_files(folder: Path) -> dict[str, Path]:
    """The images below a folder by name: the path without suffix, folders joined by '__'.

    Raises:
        SourceError: there is none, or two files have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in pixels.SUFFIXES or path.name.startswith("."):
            continue
        name = "__".join(path.relative_to(folder).with_suffix("").parts)
        if name in found:
            raise SourceError(path, f"has the same name as {found[name].name}")
        found[name] = path
    if not found:
        raise SourceError(folder, f"holds no images ({', '.join(pixels.SUFFIXES)})")
    return found


def folder_of(source: Path, *names: str) -> Path:
    """The first folder of these names that is there.

    Raises:
        SourceError: none is.
    """
    for name in names:
        if (source / name).is_dir():
            return source / name
    raise SourceError(source, f"has no folder {' or '.join(names)}")


def read_file(path: Path) -> np.ndarray:
    """`pixels.read`, with the file's name in the error."""
    try:
        return pixels.read(path)
    except ValueError as error:
        raise SourceError(path, str(error)) from None


def require_shape(path: Path, shape: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Raises SourceError when a mask does not fit its image; shapes are (rows, columns)."""
    if tuple(shape[:2]) != tuple(wanted):
        raise SourceError(
            path, f"has {shape[1]} × {shape[0]} pixels, its image {wanted[1]} × {wanted[0]} (width × height)"
        )
