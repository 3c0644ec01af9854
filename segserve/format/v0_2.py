"""Format 0.2: strict and fast reading, writing.

A faultless document takes the fast path: msgspec splits the text by images (`Raw`), decodes each image into typed
structs and flattens it, so that only one image's Python objects exist at a time. Anything else makes it give up, and
the reader of `reader.py` says what is wrong.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec
import numpy as np

from segserve.format import geometry
from segserve.format.catalogue import Collector
from segserve.format.document import COORDINATE_LIMIT, Builder, Document
from segserve.format.reader import Header

VERSION = "0.2"


class _Object(msgspec.Struct, gc=False, forbid_unknown_fields=True, omit_defaults=True):
    label: str
    contour_coordinates: list[tuple[float, float]]
    type: Literal["Polygon"]
    score: float | msgspec.UnsetType = msgspec.UNSET


class _Outer(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    format_version: Literal["0.2"]
    segmentation_data: list[msgspec.Raw]


class _Written(msgspec.Struct, gc=False, omit_defaults=True):
    label: str
    contour_coordinates: list[list[int]] | list[list[float]]
    type: str
    score: float | msgspec.UnsetType = msgspec.UNSET


_outer = msgspec.json.Decoder(_Outer)
_image = msgspec.json.Decoder(list[_Object])
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


def decode_faultless(data: bytes) -> Document | None:
    """The document if nothing at all is wrong with the text, else None."""
    try:
        with _collector_paused():
            return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _decode(data: bytes) -> Document | None:
    outer = _outer.decode(data)
    builder = Builder()
    strings = 5  # three keys and two values
    for raw in outer.segmentation_data:
        objects = _image.decode(raw)
        scores = [math.nan if o.score is msgspec.UNSET else float(o.score) for o in objects]
        coordinates = builder.add_image([o.contour_coordinates for o in objects], [o.label for o in objects], scores)
        if coordinates.size and (coordinates.max() > COORDINATE_LIMIT or coordinates.min() < -COORDINATE_LIMIT):
            return None
        strings += 5 * len(objects) + sum(not math.isnan(score) for score in scores)
    # A duplicate key is invisible to msgspec, but its quotes are there. No key is unknown and each required one is
    # present, so the quotes count out if and only if nothing occurs twice. An escaped quote in a label only sends us to
    # the slow reader.
    if data.count(b'"') != 2 * strings:
        return None
    return builder.build(outer.model, VERSION)


def finish(header: Header, builder: Builder, collector: Collector) -> Document | None:
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
    if collector.has_errors:
        return None
    exact = not collector.counts["flat-point"]
    return builder.build(header.texts["model"], VERSION, notes=collector.findings(), exact=exact)


def encode_chunks(document: Document) -> Iterator[bytes]:
    """The document as format 0.2, one chunk per image: compact, a ring of integral coordinates as integers."""
    yield b'{"model":' + _encoder.encode(document.model) + b',"format_version":"0.2","segmentation_data":['
    for index in range(document.n_images):
        yield (b"," if index else b"") + _encode_image(document.image(index))
    yield b"]}"


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
