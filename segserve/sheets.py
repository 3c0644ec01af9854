"""Sheets: which staged planes are one source image, their places in its stack, and names for both.

Results go back in the shape of the originals, and corrections made elsewhere find their plane by the same names.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from segserve.errors import TooLarge
from segserve.model import StagedImage

MAX_PLANES = 1_000_000  # of one stack; a hostile index must not become a billion blank planes
_UNSAFE = re.compile(r"[^\w.+-]+")
Key = tuple[str, int | None]  # source and series


@dataclass(frozen=True, slots=True)
class Sheet:
    """One source image (one series of one file) and its planes that were segmented.

    `name` is unique and safe as the beginning of a file name. `indices` number the images of the result and `planes`
    are these images. `axes` are the axes of the stack with their lengths, in the order T, Z, C: those that the source
    has and that were told apart. `shape` is (rows, columns). `alone` says that no other source has the same file name.
    """

    name: str
    source: str
    series: int | None
    indices: tuple[int, ...]
    planes: tuple[StagedImage, ...]
    axes: Mapping[str, int]
    alone: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.planes[0].shape

    @property
    def pixel_size_um(self) -> tuple[float, float] | None:
        """(x, y) micrometres per pixel, if known."""
        return self.planes[0].pixel_size_um

    def place(self, image: StagedImage) -> tuple[int, ...]:
        """The position of a plane in the stack, one number from 0 per axis of `axes`."""
        at = {"T": image.t, "Z": image.z, "C": image.c}
        return tuple(value if isinstance(value := at[axis], int) else 0 for axis in self.axes)

    def plane_name(self, image: StagedImage) -> str:
        """A name for one plane, for programs that know two-dimensional images only: `cells_t004_z01`."""
        if len(self.indices) == 1:
            return self.name
        widths = [len(str(length - 1)) for length in self.axes.values()]
        places = zip(self.axes, self.place(image), widths, strict=True)
        return self.name + "".join(f"_{axis.lower()}{place:0{width}d}" for axis, place, width in places)

    def flat_name(self, image: StagedImage) -> str:
        """A file name for one plane: the original's own name where that is one plane, else `plane_name` as PNG."""
        if len(self.indices) == 1 and not self.axes and self.alone:
            return PurePath(self.source).name
        return f"{self.plane_name(image)}.png"


def group(images: Sequence[StagedImage]) -> tuple[Sheet, ...]:
    """The source images in the order of their first planes.

    Raises:
        TooLarge: a stack would have more than `MAX_PLANES` planes.
    """
    groups: dict[Key, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.source, image.series), []).append(index)
    names = _unique_names(list(groups))
    files = Counter(PurePath(source).name.casefold() for source, _ in groups)
    return tuple(
        Sheet(
            name,
            *key,
            tuple(indices),
            tuple(images[index] for index in indices),
            _axes([images[index] for index in indices]),
            files[PurePath(key[0]).name.casefold()] == 1,
        )
        for (key, indices), name in zip(groups.items(), names, strict=True)
    )


def _axes(images: Sequence[StagedImage]) -> dict[str, int]:
    """As long as the source says that they are, also where its last planes were not segmented."""
    axes, known = {}, images[0].sizes
    for axis, places in (
        ("T", {image.t for image in images}),
        ("Z", {image.z for image in images}),
        ("C", {image.c for image in images}),
    ):
        numbers = [place for place in places if isinstance(place, int)]
        # One channel of several was segmented: its labels are an image of one channel.
        if numbers and (axis != "C" or len(numbers) > 1):
            axes[axis] = max(max(numbers) + 1, known.get(axis, 0))
    if math.prod(axes.values()) > MAX_PLANES:
        raise TooLarge(f"{images[0].source} would become a stack of more than {MAX_PLANES} planes.")
    return axes


def safe_name(text: str, most: int = 80) -> str:
    """A text as part of a file name: letters, digits, `_ . + -`; never hidden, never empty."""
    return _UNSAFE.sub("_", text)[:most].strip("._ ") or "image"


def stem(source: str) -> str:
    """The name of a file without what tells its kind: `cells` of `/data/cells.ome.tif`."""
    return re.sub(r"\.ome$", "", PurePath(source).stem, flags=re.IGNORECASE)


def _unique_names(keys: Sequence[Key]) -> list[str]:
    """A name per source and series: its stem; with folder and suffix where two would be the same."""
    forms = [_forms(PurePath(source), series) for source, series in keys]
    names = [form[0] for form in forms]
    for level in range(1, len(forms[0]) if forms else 0):
        counts = Counter(name.casefold() for name in names)
        names = [form[level] if counts[name.casefold()] > 1 else name for name, form in zip(names, forms, strict=True)]
    taken: set[str] = set()
    for position, name in enumerate(names):
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        names[position] = unique
    return names


def _forms(source: PurePath, series: int | None) -> tuple[str, ...]:
    end = "" if series is None else f"_s{series}"
    short = stem(str(source))
    parents = "_".join(part for part in source.parts[-3:-1] if part != source.anchor)
    candidates = (short, source.name, f"{source.parent.name}_{short}", f"{parents}_{source.name}")
    return tuple(safe_name(name) + end for name in candidates)
