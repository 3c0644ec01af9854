"""Nikon ND2 through `nd2`. Positions are series."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from segserve.inputs.base import Array, File, Plane, Series, Unusable, check_count, check_size
from segserve.inputs.readers.extra import library


def series(file: File) -> tuple[Series, ...]:
    """One series per position."""
    with library("nd2", "ND2").ND2File(file.path) as nd:
        return _series(nd)


@dataclass(frozen=True, slots=True)
class _Nd2:
    file: Any
    frames: Mapping[tuple[int, int, int], int]  # (position, t, z) → number of the frame

    def read(self, series: int, plane: Plane) -> Array:
        t, z, c = plane
        if (series, t, z) not in self.frames:
            raise Unusable("image-truncated", f"lacks the frame of t={t}, z={z} (an acquisition that was stopped)")
        attributes = self.file.attributes
        parts = self.file.components_per_channel
        # (channels, rows, columns, components), also where `read_frame` squeezed it.
        frame = np.asarray(self.file.read_frame(self.frames[series, t, z])).reshape(
            attributes.channelCount or 1, attributes.heightPx, attributes.widthPx, parts
        )
        # A copy: the frame lies in a memory map that is closed with the file.
        return np.array(frame[c] if parts == 3 else frame[c // parts, :, :, c % parts])


@contextmanager
def open(path: str) -> Iterator[_Nd2]:
    """Open; frames are read one by one."""
    with library("nd2", "ND2").ND2File(path) as file:
        loops: Sequence[Mapping[str, int]] = file.loop_indices or ({},)
        # Beyond the recorded ones, nd2 gives zeros.
        recorded = list(loops)[: file.attributes.sequenceCount]
        frames = {(at.get("P", 0), at.get("T", 0), at.get("Z", 0)): number for number, at in enumerate(recorded)}
        yield _Nd2(file, frames)


def _series(file: Any) -> tuple[Series, ...]:
    sizes = dict(file.sizes)
    strange = {axis: length for axis, length in sizes.items() if axis not in "PTZCYXS" and length > 1}
    if strange:
        raise Unusable(
            "image-axes", f"has axes other than P, T, Z, C: {strange}", "Export it as OME-TIFF with T, Z and C."
        )
    shape, samples = (file.attributes.heightPx, file.attributes.widthPx or 0), sizes.get("S", 1)
    check_size(shape, file.dtype.name, samples)
    kept = {axis: sizes[axis] for axis in "TZC" if axis in sizes}
    check_count(math.prod(kept.values()) * sizes.get("P", 1))
    names = tuple(channel.channel.name for channel in file.metadata.channels or [])
    described: Series = Series(
        shape=shape,
        dtype=file.dtype.name,
        sizes=kept,
        samples=samples,
        channel_names=("R", "G", "B") if samples == 3 else names if len(names) == kept.get("C", 1) else (),
        pixel_size_um=_pixel_size(file.metadata.channels or []),
    )
    return (described,) * int(sizes.get("P", 1))


def _pixel_size(channels: Sequence[Any]) -> tuple[float, float] | None:
    """Without a calibration nd2 says 1 µm."""
    if not channels or not all(channels[0].volume.axesCalibrated[:2]):
        return None
    x, y = channels[0].volume.axesCalibration[:2]
    return (x, y) if x > 0 and y > 0 else None
