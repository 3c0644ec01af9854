"""Which planes of a file become images: series, channel, frames, z. What has no default is refused with the list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeVar

from segserve.errors import InvalidParameters, did_you_mean
from segserve.inputs.base import Plane, Series, Source, Unusable

PROJECTIONS = ("max", "mean")
_Item = TypeVar("_Item")
_COLOURS = ("R", "G", "B", "A")


@dataclass(frozen=True, slots=True)
class Selection:
    """The user's choices; None = no choice. All numbers are 0-based.

    `channel`: index or name. `z`: 'each' (the default), 'max', 'mean' or an index. `series`: index, name or 'all'.
    `frames`: 'a:b' (half-open, like a Python slice), 'a:b:step' or one index. `depth`: 8 scales to 8 bit, 16 and None
    keep what there is. `first`: only so many images, spread evenly over the input.
    """

    channel: str | int | None = None
    z: str | None = None
    series: str | None = None
    frames: str | None = None
    depth: int | None = None
    first: int | None = None

    def given(self) -> dict[str, str | int]:
        """The choices that were made, by name: `Selection(**given)` is the same again."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self) -> None:
        """Raise `InvalidParameters` when a choice makes no sense for any file."""
        problems = []
        if self.z is not None and self.z not in ("each", *PROJECTIONS) and not self.z.isdecimal():
            problems.append(f"--z {self.z}: must be each, max, mean or a 0-based index.")
        if self.frames is not None and _FRAMES.fullmatch(self.frames) is None:
            problems.append(f"--frames {self.frames}: must be a:b (0-based, b excluded), a:b:step or one index.")
        if self.depth not in (None, 8, 16):
            problems.append(f"--depth {self.depth}: must be 8 or 16.")
        if self.first is not None and self.first < 1:
            problems.append(f"--first {self.first}: must be at least 1.")
        if problems:
            raise InvalidParameters(" ".join(problems), hint="`segserve images FILE` lists what a file holds.")


_FRAMES = re.compile(r"(?P<one>\d+)|(?P<start>\d*):(?P<stop>\d*)(?::(?P<step>[1-9]\d*))?")


class Request(NamedTuple):
    """One image to stage. `source` indexes the plan's sources; `t`, `z`, `c` are None where the axis is absent.

    `z` may be a projection ('max', 'mean'). `sample` picks one interleaved sample (R of RGB) of the plane.
    """

    source: int
    series: int
    t: int | None = None
    z: int | str | None = None
    c: int | None = None
    sample: int | None = None


def choose(source: Source, selection: Selection) -> list[Request]:
    """The images that a file contributes, in the order series, t, z, of source 0.

    Raises `Unusable` when a choice is missing.
    """
    requests = []
    for number in _series(source, selection.series):
        series = source.series[number]
        c, sample = _channel(series, selection.channel)
        held = {(t, z) for t, z, own in series.planes if own == (c or 0)} if series.planes is not None else None
        frames = _frames(series, selection.frames)
        for t in frames:
            for z in _slices(series, selection.z, complete=held is None):
                if held is None or (t or 0, z or 0) in held:
                    requests.append(Request(0, number, t, z, c, sample))
    if not requests:
        raise Unusable("image-selection", "holds none of the chosen planes")
    return requests


def planes(request: Request, series: Series) -> list[Plane]:
    """The stored planes that one image is made of: several for a projection."""
    t, c = request.t or 0, request.c if "C" in series.sizes else 0
    depth = range(series.sizes["Z"]) if isinstance(request.z, str) else (request.z or 0,)
    return [(t, z, c or 0) for z in depth]


def spread(items: Sequence[_Item], count: int | None) -> Sequence[_Item]:
    """`count` of the items, evenly spread, first and last included; always the same ones."""
    if count is None or count >= len(items):
        return items
    if count == 1:
        return items[:1]
    return [items[round(step * (len(items) - 1) / (count - 1))] for step in range(count)]


def channel_list(series: Series) -> tuple[str, ...]:
    """A name for each channel that can be chosen; '' when it has none. One per sample of RGB."""
    if series.rgb and series.sizes.get("C", 1) == 1:
        return _COLOURS[: series.samples]
    names = series.channel_names[: series.channels]
    return names + ("",) * (series.channels - len(names))


def _series(source: Source, wanted: str | None) -> Sequence[int]:
    count = len(source.series)
    if wanted == "all" or (wanted is None and count == 1):
        return range(count)
    names = [series.name for series in source.series]
    listed = _listed(names)
    if wanted is None:
        raise Unusable("image-series", f"holds {count} series: {listed}", "Choose with --series N, or --series all.")
    number = _position(wanted, names)
    if number is None:
        guess = did_you_mean(wanted, filter(None, names))
        raise Unusable("image-series", f"has no series {wanted}; it has {listed}", guess)
    return (number,)


def _channel(series: Series, wanted: str | int | None) -> tuple[int | None, int | None]:
    """(index on axis C, index of the sample) of the chosen channel."""
    names = channel_list(series)
    if wanted is None:
        if series.channels > 1:
            raise Unusable(
                "image-channels", f"has {len(names)} channels: {_listed(names)}", "Choose one with --channel N or NAME."
            )
        return (0 if "C" in series.sizes else None), None
    number = _position(str(wanted), names)
    if number is None:
        raise Unusable("image-channels", f"has no channel {wanted}; it has {_listed(names)}")
    if series.samples == 1:
        return (number if "C" in series.sizes else None), None
    if series.rgb and "C" in series.sizes and series.sizes["C"] > 1:
        return number, None
    samples = len(names) // series.sizes.get("C", 1)
    return (number // samples if "C" in series.sizes else None), number % samples


def _position(wanted: str, names: Sequence[str]) -> int | None:
    """By exact name, by index, by name without regard to case."""
    if wanted in names and wanted:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    folded = [name.casefold() for name in names]
    return folded.index(wanted.casefold()) if wanted and folded.count(wanted.casefold()) == 1 else None


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = [f"{index} '{name}'" if name else str(index) for index, name in enumerate(names[:most])]
    return ", ".join(shown) + (f" … {len(names) - 1}" if len(names) > most else "")


def _frames(series: Series, wanted: str | None) -> Sequence[int | None]:
    count = series.sizes.get("T", 1)
    chosen: Sequence[int] = range(count)
    if wanted is not None and (match := _FRAMES.fullmatch(wanted)) is not None:
        if match["one"]:
            chosen = [int(match["one"])] if int(match["one"]) < count else []
        else:
            start, stop, step = (int(match[name]) if match[name] else None for name in ("start", "stop", "step"))
            chosen = range(count)[start:stop:step]
    if not chosen:
        raise Unusable("image-selection", f"has {count} time points; --frames {wanted} chooses none of them")
    return chosen if "T" in series.sizes else [None]


def _slices(series: Series, wanted: str | None, *, complete: bool) -> Sequence[int | str | None]:
    count = series.sizes.get("Z")
    if wanted is not None and wanted.isdecimal():
        if int(wanted) >= (count or 1):
            raise Unusable("image-selection", f"has {count or 1} z planes; there is no --z {wanted}")
        return [int(wanted) if count else None]
    if count is None:
        return [None]
    if wanted in PROJECTIONS:
        if not complete:
            raise Unusable(
                "image-selection", f"holds only a part of its image; --z {wanted} needs all z planes in one file"
            )
        return [wanted]
    return range(count)
