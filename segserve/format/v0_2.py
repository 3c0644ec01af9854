"""Format 0.2: strict and fast reading, writing.

A faultless document takes the fast path: windows of the text are decoded by msgspec into typed structs and flattened,
so that only one window's Python objects exist at a time. Anything else makes it give up, and the reader of `reader.py`
says what is wrong.
"""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
import numpy as np

from segserve.format import geometry
from segserve.format.catalogue import Collector
from segserve.format.document import (
    COORDINATE_LIMIT,
    POINT_LIMIT,
    Batch,
    Document,
    Floats,
    Integers,
    Sink,
    Summary,
    flatten,
)
from segserve.format.feed import Feed
from segserve.format.reader import IMAGE_LIMIT, Header
from segserve.format.scanner import LONGEST

VERSION = "0.2"


class _Object(msgspec.Struct, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    label: str
    contour_coordinates: list[tuple[float, float]]
    type: Literal["Polygon"]
    score: float | msgspec.UnsetType = msgspec.UNSET


class _Around(msgspec.Struct, forbid_unknown_fields=True):
    segmentation_data: list[list[_Object]]
    model: str | msgspec.UnsetType = msgspec.UNSET
    format_version: Literal["0.2"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def keys(self) -> set[str]:
        return {key for key in ("model", "format_version") if getattr(self, key) is not msgspec.UNSET}


class _Written(msgspec.Struct, gc=False, omit_defaults=True):
    label: str
    contour_coordinates: list[list[int]] | list[list[float]]
    type: str
    score: float | msgspec.UnsetType = msgspec.UNSET


_around = msgspec.json.Decoder(_Around)
_lists = msgspec.json.Decoder(list[list[_Object]])
_HEAD = re.compile(rb'"segmentation_data"[ \t\r\n]*+:[ \t\r\n]*+\[')
_END_OR_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[}"]', re.DOTALL)
_TAIL = b'{"segmentation_data":'
_RESUME = b'[[{"label":"","contour_coordinates":[],"type":"Polygon"}'  # stands for the objects that have been read
_encoder = msgspec.json.Encoder()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of tuples that hold no cycle: the garbage collector would only walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_faultless(feed: Feed, sink: Sink) -> Summary | None:
    """Read a text into a sink if nothing at all is wrong with it; None as soon as something is."""
    try:
        with _collector_paused():
            return _Fast(feed, sink).read()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _Fast:
    """Reads window by window. Where a window is cut does not matter to what is accepted.

    A window is cut behind the last `}` in it, which ends an object if it does not stand in a string, and then is
    decoded as what it is: the inner part of a list of lists of objects. JSON values end where they end, whatever
    follows, so that a cut at a wrong place can only fail to decode.
    """

    def __init__(self, feed: Feed, sink: Sink) -> None:
        self._feed = feed
        self._sink = sink
        self._image = 0  # the one that is being read
        self._prefix = b"["

    def read(self) -> Summary | None:
        text = self._feed.read()
        start = _HEAD.search(text)
        if start is None:
            return None
        head = _around.decode(text[: start.end()] + b"]}")
        if text.count(b'"', 0, start.end()) != 2 + 4 * len(head.keys):
            return None
        text = text[start.end() :]
        while not self._feed.ended:
            rest = self._window(text)
            if rest is None:
                return None
            text = rest + self._feed.read()
        return self._last(text, head)

    def _window(self, text: bytes) -> bytes | None:
        """Read the complete objects of a text that goes on; what is left of it, or None if something is wrong."""
        end = text.rfind(b"}") + 1
        if not end:
            return text if len(text) <= LONGEST else None
        try:
            images = _lists.decode(self._prefix + text[:end] + b"]]")
        except msgspec.DecodeError:
            end = _last_end(text)
            if not end:
                return None
            images = _lists.decode(self._prefix + text[:end] + b"]]")
        good = self._take(images, text.count(b'"', 0, end), more=True)
        self._prefix = _RESUME
        return text[end:] if good else None

    def _last(self, text: bytes, head: _Around) -> Summary | None:
        tail = _around.decode(_TAIL + self._prefix + text)
        quotes = text.count(b'"') - 4 * len(tail.keys)
        if head.keys & tail.keys or len(head.keys | tail.keys) < 2:
            return None
        if not self._take(tail.segmentation_data, quotes, more=False):
            return None
        model = head.model if isinstance(head.model, str) else tail.model
        return Summary(str(model), VERSION, self._image)

    def _take(self, images: list[list[_Object]], quotes: int, *, more: bool) -> bool:
        """Hand these objects to the sink; false if something is wrong with them."""
        if self._prefix is _RESUME:
            del images[0][0]
        objects = [found for image in images for found in image]
        rings = [found.contour_coordinates for found in objects]
        lengths = np.fromiter(map(len, rings), np.int64, len(rings))
        coordinates = flatten(rings, int(lengths.sum()))
        scores = [math.nan if found.score is msgspec.UNSET else found.score for found in objects]
        given = sum(score == score for score in scores)  # not NaN, and much quicker than math.isnan
        # A duplicate key is invisible to msgspec, but its quotes are there. No key is unknown and each required one is
        # present, so the quotes count out if and only if nothing occurs twice. An escaped quote in a label only sends
        # us to the slow reader.
        if quotes != 2 * (5 * len(objects) + given) or not _in_limits(coordinates, lengths):
            return False
        counts = [len(image) for image in images]
        index = np.repeat(np.arange(self._image, self._image + len(images)), counts)
        self._image += len(images) - more
        labels = [found.label for found in objects]
        self._sink.add(Batch(coordinates, lengths, labels, np.array(scores, np.float64), index, self._image))
        return self._image <= IMAGE_LIMIT


def _in_limits(coordinates: Floats, lengths: Integers) -> bool:
    if not coordinates.size:
        return True
    far = coordinates.max() > COORDINATE_LIMIT or coordinates.min() < -COORDINATE_LIMIT
    return not far and int(lengths.max()) <= POINT_LIMIT


def _last_end(text: bytes) -> int:
    """The position behind the last `}` that stands in no string, 0 if there is none."""
    end = 0
    for found in _END_OR_STRING.finditer(text):
        if found.group() == b'"':
            break  # a string that the window cuts
        if found.group() == b"}":
            end = found.end()
    return end


def finish(header: Header, images: int, collector: Collector) -> Summary:
    """Check the header of a 0.2 document that the slow reader has read."""
    for key in ("model", "format_version", "segmentation_data"):
        if key not in header.keys:
            collector.add("missing-key", f"The document has no '{key}'.", "$")
    version = header.texts.get("format_version", VERSION)
    if version != VERSION:
        collector.add(
            "wrong-version", f"Format '{version[:40]}' is unknown; there is 0.2 (and 0.1).", "$.format_version"
        )
    known = {"model", "format_version", "segmentation_data"}
    for key in sorted(header.keys - known):
        collector.add("unknown-key", f"Format 0.2 has no '{key[:40]}'; it is ignored.", "$")
    return Summary(header.texts.get("model", ""), VERSION, images, exact=not collector.counts["flat-point"])


def encode_chunks(document: Document) -> Iterator[bytes]:
    """The document as format 0.2, one chunk per image: compact, a ring of integral coordinates as integers."""
    yield encode_start(document.model)
    yield from encode_images(document, first=True)
    yield b"]}"


def encode_start(model: str) -> bytes:
    """The text before the first image."""
    return b'{"model":' + _encoder.encode(model) + b',"format_version":"0.2","segmentation_data":['


def encode_images(part: Document, *, first: bool) -> Iterator[bytes]:
    """One chunk per image of a part of a document; the `first` part begins without a comma."""
    for index in range(part.n_images):
        yield (b"" if first and not index else b",") + _encode_image(part.image(index))


def _encode_image(document: Document) -> bytes:
    objects = [
        _Written(label, ring, "Polygon", msgspec.UNSET if math.isnan(score) else score)
        for label, ring, score in zip(document.labels, plain_rings(document), document.scores.tolist(), strict=True)
    ]
    return _encoder.encode(objects)


def plain_rings(document: Document) -> list[list[list[int]] | list[list[float]]]:
    """Each ring as lists for JSON: of integers where all its coordinates are integral, else of floats."""
    whole = geometry.integral(document.coordinates, document.offsets)
    integers = document.coordinates.astype(np.int64).tolist() if whole.any() else []
    floats = document.coordinates.tolist() if not whole.all() else []
    ends = document.offsets.tolist()
    return [
        (integers if integral else floats)[begin:end]
        for integral, begin, end in zip(whole.tolist(), ends[:-1], ends[1:], strict=True)
    ]
