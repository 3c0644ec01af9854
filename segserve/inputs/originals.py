"""Back to the originals: every channel of the plane that a staged image was made of, in the values of the file.

What was staged is one channel, shifted or scaled into a PNG. Intensities are measured on what the microscope wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from segserve.inputs import kinds, pixels
from segserve.inputs.base import Array, Planes, Series, Source
from segserve.inputs.selection import Request, channel_list
from segserve.model import StagedImage

MAX_CHANNELS = 64  # of one plane; a spectrum of hundreds of bands is no table for people
_COLOURS = ("R", "G", "B")


@dataclass(frozen=True, slots=True)
class Original:
    """The open source of staged images."""

    source: Source
    planes: Planes

    def channels(self, image: StagedImage) -> Iterator[tuple[int, str, Array]]:
        """(index, name, pixels) of each channel of an image's plane, one after the other.

        `name` is "" where the file gives none, r, g, b for colours. `pixels` are (rows, columns) in the type of the
        source. Of a file that holds a part of its image only (one of an OME set), the channels that it holds.

        Raises:
            Unusable: the pixels cannot be decoded, or are not those of this image.
        """
        number = image.series or 0
        if number >= len(self.source.series) or self.source.series[number].shape != image.shape:
            raise pixels.changed()
        series = self.source.series[number]
        names, per_plane = _names(series), max(series.samples - series.alpha, 1)
        for c in range(series.sizes.get("C", 1)):
            index = c * per_plane
            if index >= MAX_CHANNELS:
                return
            if series.planes is not None and (image.t or 0, _depth(image), c) not in series.planes:
                continue
            request = Request(0, number, image.t, image.z, c if "C" in series.sizes else None)
            plane = pixels.samples(self.planes, request, series)
            for sample in range(per_plane):
                yield index + sample, names[index + sample], plane if plane.ndim == 2 else plane[..., sample]


def _depth(image: StagedImage) -> int:
    return image.z if isinstance(image.z, int) else 0


def _names(series: Series) -> tuple[str, ...]:
    """One per channel and sample."""
    if series.rgb:
        several = [
            f"{name or c} " if series.sizes.get("C", 1) > 1 else "" for c, name in enumerate(channel_list(series))
        ]
        return tuple(f"{name}{colour}" for name in several for colour in "rgb")
    return tuple(name.lower() if name in _COLOURS else name for name in channel_list(series))


@contextmanager
def opened(path: str, modified: int) -> Iterator[Original]:
    """A source file as it was when it was staged (`StagedImage.modified`).

    Raises:
        Unusable: it is gone, cannot be read, or has been written to since.
    """
    source = kinds.inspect(path, path)
    if modified and source.modified != modified:
        raise pixels.changed()
    with kinds.opened(source) as planes:
        yield Original(source, planes)
