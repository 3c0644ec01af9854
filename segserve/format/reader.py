"""Reading what all versions of the format share: objects, and the header around them. Every mistake is reported."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from segserve.format.catalogue import Collector
from segserve.format.document import COORDINATE_LIMIT, FORM, POINT_LIMIT, Batch, Sink, flatten
from segserve.format.feed import Feed
from segserve.format.scanner import SHOWN, Scanner, Stop

POLYGON = "Polygon"
TEXTS = frozenset({"model", "model_version", "format_version", "type", "name", "git_url", "git_hash"})
LARGEST = float.fromhex("0x1.fffffffffffffp+1023")
EXTRA_LIMIT = 4096  # bytes of one further value of an info document that are kept
ONE_0_1 = "$.segmentation[{position}]"  # JSON path of an object in a 0.1 document
LISTED_0_1 = "$[{image}].segmentation[{position}]"
IMAGE_LIMIT = 1 << 24
OBJECT_AHEAD = 1 << 16  # bytes in which the end of a faultless object is looked for
_BATCH = 1 << 14  # points

_points = msgspec.json.Decoder(list[tuple[float, float]])
_RING_CHARACTERS = re.compile(rb"[\[\]0-9eE+\-., \t\r\n]*+")


@dataclass
class Header:
    """What stands around the objects: `keys` are all that occur, `texts` the values that are strings."""

    texts: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    others: dict[str, bytes] = field(default_factory=dict)  # raw values of further keys

    def extra(self) -> dict[str, Any]:
        """The further values, decoded; what is too long or broken is left out."""
        decoded = {}
        for key, raw in self.others.items():
            if len(raw) <= EXTRA_LIMIT:
                try:
                    decoded[key] = json.loads(raw)
                except ValueError:
                    continue
        return decoded


class _Object(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    label: str
    contour_coordinates: list[tuple[float, float]]
    type: Literal["Polygon"]
    score: float | msgspec.UnsetType = msgspec.UNSET


_object = msgspec.json.Decoder(_Object)
_Read = tuple[str, list[tuple[float, float]], float]


class _Pending:
    """Objects that have been read and not yet handed to the sink."""

    def __init__(self) -> None:
        self.objects: list[_Read] = []
        self.images: list[int] = []
        self.sound: list[bool] = []
        self.points = 0

    def batch(self, complete: int, form: str) -> Batch:
        lengths = np.fromiter((len(ring) for _, ring, _ in self.objects), np.int64, len(self.objects))
        return Batch(
            flatten([ring for _, ring, _ in self.objects], self.points),
            lengths,
            [label for label, _, _ in self.objects],
            np.fromiter((score for _, _, score in self.objects), np.float64, len(self.objects)),
            np.array(self.images, np.int64),
            complete,
            np.array(self.sound, np.bool_),
            form,
        )


class Reader:
    """Reads headers from a feed, and hands the objects to a sink. `images` counts the images that were read."""

    def __init__(self, feed: Feed, collector: Collector, sink: Sink) -> None:
        self.collector = collector
        self.scanner = Scanner(feed, collector)
        self.images = 0
        self._sink = sink
        self._form = FORM
        self._pending = _Pending()

    def flush(self) -> None:
        """Hand over what is pending."""
        pending, self._pending = self._pending, _Pending()
        self._sink.add(pending.batch(self.images, self._form))

    def readable(self) -> bool:
        """Report what makes a text unreadable as a whole: nothing in it, another encoding."""
        start = self.scanner.data
        if self.scanner.complete and not start.strip(b" \t\r\n"):
            self.collector.add("truncated", "The file is empty.", "$")
            return False
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start[:3] == b"\xef\xbb\xbf":
            self.collector.add("encoding", "The file begins with a byte order mark; JSON is UTF-8 without one.", "$")
            return False
        return True

    def header(self, path: str) -> Header:
        """The object that stands here: texts are kept, `segmentation_data` and `segmentation` go to the sink."""
        header = Header()
        for key, member in self.scanner.members(path):
            header.keys.add(key)
            if key == "segmentation_data":
                self._images(member)
            elif key == "segmentation":
                self._form = ONE_0_1 if path == "$" else LISTED_0_1
                self._image(member)
            elif key in TEXTS:
                text = self._text(member)
                if text is not None:
                    header.texts[key] = text
            else:
                header.others[key] = self._raw(member)
        return header

    def _raw(self, path: str) -> bytes:
        return self.scanner.skipped(path, EXTRA_LIMIT + 1)

    def _text(self, path: str) -> str | None:
        if self.scanner.peek(path) == b'"':
            return self.scanner.string(path)
        self.scanner.wrong(path, "a string")
        return None

    def _images(self, path: str) -> None:
        if self.scanner.peek(path) != b"[":
            self.scanner.wrong(path, "an array with one array of objects per image")
            return
        for index in self.scanner.elements(path):
            self._image(f"{path}[{index}]")

    def _image(self, path: str) -> None:
        number = self.images
        if self.scanner.peek(path) != b"[":
            self.scanner.wrong(path, "an array of objects")
        else:
            for index in self.scanner.elements(path):
                self._add(f"{path}[{index}]", number)
        self.images += 1
        if self.images > IMAGE_LIMIT:
            raise self.scanner.too_large(path, f"More than {IMAGE_LIMIT} images")

    def _add(self, path: str, image: int) -> None:
        pending = self._pending
        mistakes = self.collector.mistakes
        found = self._fast_object(path) or self._object(path)
        pending.objects.append(found)
        pending.images.append(image)
        pending.sound.append(self.collector.mistakes == mistakes)
        pending.points += len(found[1])
        if pending.points + len(pending.objects) > _BATCH:
            self.flush()

    def _fast_object(self, path: str) -> _Read | None:
        """The object if nothing at all is wrong with it, else None and nothing is read."""
        scanner = self.scanner
        scanner.peek(path)
        end = scanner.data.find(b"}", scanner.position, scanner.position + OBJECT_AHEAD) + 1
        try:
            found = _object.decode(scanner.data[scanner.position : end]) if end else None
        except (msgspec.DecodeError, UnicodeDecodeError):  # the first includes ValidationError
            return None
        if found is None:
            return None
        score = math.nan if found.score is msgspec.UNSET else found.score
        strings = 5 if math.isnan(score) else 6
        # Without a duplicate key and without an escaped quote, there are just so many quotes.
        if scanner.data.count(b'"', scanner.position, end) != 2 * strings or not _in_limits(found.contour_coordinates):
            return None
        scanner.position = end
        return found.label, found.contour_coordinates, score

    def _object(self, path: str) -> _Read:
        label, ring, score = "", list[tuple[float, float]](), math.nan
        if self.scanner.peek(path) != b"{":
            self.scanner.wrong(path, "an object with label, contour_coordinates and type")
            return label, ring, score
        missing = {"label", "contour_coordinates", "type"}
        for key, member in self.scanner.members(path):
            missing.discard(key)
            if key == "label":
                label = self._text(member) or ""
            elif key == "contour_coordinates":
                ring = self._ring(member)
            elif key == "type":
                self._kind(member)
            elif key == "score":
                number = self.scanner.number(member, LARGEST)
                score = math.nan if number is None else number
            else:
                self.collector.add("unknown-key", f"Objects have no '{key[:SHOWN]}'; it is ignored.", member)
                self.scanner.skip(member)
        for key in sorted(missing):
            self.collector.add("missing-key", f"The object has no '{key}'.", path)
        return label, ring, score

    def _kind(self, path: str) -> None:
        if self.scanner.peek(path) != b'"':
            self.scanner.wrong(path, 'the string "Polygon"')
            return
        kind = self.scanner.string(path)
        if kind != POLYGON:
            self.collector.add("not-a-polygon", f"The type is '{kind[:SHOWN]}'; only 'Polygon' exists.", path)

    def _ring(self, path: str) -> list[tuple[float, float]]:
        if self.scanner.peek(path) != b"[":
            self.scanner.wrong(path, "an array of points")
            return []
        ring = self._fast_ring(path)
        return self._slow_ring(path) if ring is None else ring

    def _fast_ring(self, path: str) -> list[tuple[float, float]] | None:
        """The ring if nothing at all is wrong with it, else None and nothing is read."""
        found = self.scanner.match(_RING_CHARACTERS, path)
        text = found.group().rstrip(b", \t\r\n") if found else b""
        try:
            ring = _points.decode(text)
        except msgspec.DecodeError:  # includes ValidationError
            return None
        if len(ring) > POINT_LIMIT:
            raise self.scanner.too_large(path, f"A ring has more than {POINT_LIMIT} points")
        if not _in_limits(ring):
            return None
        self.scanner.position += len(text)
        return ring

    def _slow_ring(self, path: str) -> list[tuple[float, float]]:
        ring: list[tuple[float, float]] = []
        bare: list[float | None] = []
        for index in self.scanner.elements(path):
            place = f"{path}[{index}]"
            if index >= POINT_LIMIT:
                raise self.scanner.too_large(path, f"A ring has more than {POINT_LIMIT} points")
            if self.scanner.peek(place) == b"[":
                point = self._point(place)
                if point is not None:
                    ring.append(point)
            elif self.scanner.kind(place) == "a number":
                bare.append(self.scanner.number(place, COORDINATE_LIMIT))
            else:
                self.scanner.wrong(place, "a point [x, y]")
        return self._with_bare(ring, bare, path)

    def _with_bare(
        self, ring: list[tuple[float, float]], bare: Sequence[float | None], path: str
    ) -> list[tuple[float, float]]:
        """Numbers that stand where points should: two alone are one point (np.squeeze of a one-pixel contour)."""
        if not bare:
            return ring
        if len(bare) == 2 and not ring and None not in bare:
            x, y = (number for number in bare if number is not None)
            self.collector.add("flat-point", "One point as [x, y]; read as [[x, y]].", path)
            return [(x, y)]
        fix = "Write [[x1, y1], [x2, y2], …]."
        self.collector.add("bad-point", f"{len(bare)} numbers stand where points [x, y] should.", path, fix=fix)
        return ring

    def _point(self, path: str) -> tuple[float, float] | None:
        numbers: list[float | None] = []
        for index in self.scanner.elements(path):
            place = f"{path}[{index}]"
            if self.scanner.peek(place) == b"[":
                self.collector.add("bad-point", "A point [x, y] must not hold a list: one level too many.", place)
                self.scanner.skip(place)
                numbers.append(None)
            else:
                numbers.append(self.scanner.number(place, COORDINATE_LIMIT))
        if None in numbers:
            return None
        if len(numbers) != 2:
            self.collector.add("bad-point", f"A point has x and y, not {len(numbers)} numbers.", path)
            return None
        x, y = (number for number in numbers if number is not None)
        return x, y


def _in_limits(ring: list[tuple[float, float]]) -> bool:
    far = any(abs(x) > COORDINATE_LIMIT or abs(y) > COORDINATE_LIMIT for x, y in ring)
    return not far and len(ring) <= POINT_LIMIT


__all__ = ["Header", "Reader", "Stop"]
