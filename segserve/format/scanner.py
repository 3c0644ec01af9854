"""A JSON reader for diagnosis: it knows where it is, reports, and goes on. Linear in time, bounded in depth and memory.

The fast path reads good documents with msgspec. This one reads the others: it accepts nothing that JSON (RFC 8259)
forbids, but where the next value can be found after a mistake it reports the mistake and continues.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from segserve.format.catalogue import Collector
from segserve.format.feed import Feed

MAX_DEPTH = 64  # format 0.2 needs six
LONGEST = 1 << 26  # bytes of one string, of one contour's text, of all keys of one object
MAX_KEYS = 1000  # of one object
AHEAD = 1 << 16  # bytes that a token may have before it is worth another look
SHOWN = 40  # characters of a bad token that are quoted

_SPACE = re.compile(rb"[ \t\n\r]*+")
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+)"')
_LOOSE_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?=[ \t\n\r,\]}]|\Z)")
_TOKEN = re.compile(rb"[^\s,\[\]{}\":]++")
_LITERALS = {b"true": "a boolean", b"false": "a boolean", b"null": "null"}
_KINDS = {b"{": "an object", b"[": "an array", b'"': "a string"}


class Stop(Exception):
    """Nothing can be read behind this place; the finding is already there."""


class Scanner:
    """A place in a text and the means to read the value that stands there.

    `data` is the part of the text that is in memory, `position` the place in it; what lies before is given up.
    """

    def __init__(self, feed: Feed, collector: Collector) -> None:
        self.data = b""
        self.position = 0
        self.collector = collector
        self.depth = 0
        self._feed = feed
        self._dropped = 0  # bytes before `data`
        self._lines = 0  # ends of lines among them
        self._line_start = 0  # where the last of these lines begins in the whole text
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._encoded = True  # no byte was found that is not UTF-8
        self.grow()

    @property
    def place(self) -> int:
        """The position in the whole text."""
        return self._dropped + self.position

    @property
    def complete(self) -> bool:
        """`data` reaches to the end of the text."""
        return self._feed.ended

    def grow(self) -> None:
        """Forget what has been read, and read on until at least twice as much as what is left is in memory."""
        self._lines += self.data.count(b"\n", 0, self.position)
        last = self.data.rfind(b"\n", 0, self.position)
        self._line_start = self._dropped + last + 1 if last >= 0 else self._line_start
        self._dropped += self.position
        parts = [self.data[self.position :]]
        size, wanted = 0, max(len(parts[0]), 1)
        self.position = 0
        while size < wanted and not self.complete:
            parts.append(self._feed.read())
            self._check_encoding(parts[-1], self._dropped + len(parts[0]) + size)
            size += len(parts[-1])
        self.data = b"".join(parts)

    def _check_encoding(self, part: bytes, place: int) -> None:
        if not self._encoded or (part.isascii() and not self._utf8.getstate()[0]):
            return
        kept = len(self._utf8.getstate()[0])
        try:
            self._utf8.decode(part, final=self.complete)
        except UnicodeDecodeError as error:
            self._encoded = False
            byte = place - kept + error.start
            found = error.object[error.start : error.start + 1].hex()
            self.collector.add("encoding", f"Byte {byte} is not UTF-8 ({found}).", "$")

    def match(self, pattern: re.Pattern[bytes], path: str) -> re.Match[bytes] | None:
        """Match at the position, with as much of the text as that needs."""
        while True:
            found = pattern.match(self.data, self.position)
            left = len(self.data) - self.position
            decided = left >= AHEAD if found is None else found.end() < len(self.data)
            if decided or self.complete:
                return found
            if left > LONGEST:
                raise self.too_large(path, f"One value has more than {LONGEST >> 20} MiB")
            self.grow()

    def too_large(self, path: str, message: str) -> Stop:
        """Report something beyond the limits, which ends the reading."""
        self.collector.add("too-large", f"{message} at {self.where()}.", path)
        return Stop()

    def where(self) -> str:
        """`line 3, column 14` of the position, for messages."""
        line = self._lines + self.data.count(b"\n", 0, self.position) + 1
        last = self.data.rfind(b"\n", 0, self.position)
        start = self._dropped + last + 1 if last >= 0 else self._line_start
        return f"line {line}, column {self.place - start + 1}"

    def stop(self, path: str, message: str) -> Stop:
        """Report an error that ends the reading."""
        if self.position >= len(self.data):
            self.collector.add("truncated", f"The text ends at {self.where()} within this value.", path)
        else:
            self.collector.add("syntax", f"{message} at {self.where()}.", path)
        return Stop()

    def _blanks(self) -> None:
        """Go to the next character that is no blank."""
        while found := _SPACE.match(self.data, self.position):
            self.position = found.end()
            if self.position < len(self.data) or self.complete:
                return
            self.grow()

    def peek(self, path: str) -> bytes:
        """The first character of the next value, as one byte."""
        if len(self.data) - self.position < AHEAD and not self.complete:
            self.grow()
        self._blanks()
        if self.position >= len(self.data):
            raise self.stop(path, "A value is missing")
        return self.data[self.position : self.position + 1]

    def kind(self, path: str) -> str:
        """What stands here: `an object`, `an array`, `a string`, `a number`, `a boolean`, `null` or `no JSON`."""
        first = self.peek(path)
        if first in _KINDS:
            return _KINDS[first]
        if self._number(path):
            return "a number"
        token = _TOKEN.match(self.data, self.position)
        return _LITERALS.get(token.group(), "no JSON") if token else "no JSON"

    def members(self, path: str) -> Iterator[tuple[str, str]]:
        """(key, path) of each member of the object that stands here; the caller reads each value."""
        seen: set[str] = set()
        size = 0
        for _ in self._items(path, b"{", b"}"):
            if self.peek(path) != b'"':
                raise self.stop(path, "A key in double quotes is expected")
            key = self.string(path)
            member = f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]"
            if key in seen:
                self.collector.add("duplicate-key", f"The key '{key[:SHOWN]}' stands here a second time.", member)
            seen.add(key)
            size += len(key)
            if len(seen) > MAX_KEYS or size > LONGEST:
                raise self.too_large(path, f"An object has more than {MAX_KEYS} keys, or too long ones,")
            if self.peek(member) != b":":
                raise self.stop(member, "A colon is expected")
            self.position += 1
            yield key, member

    def elements(self, path: str) -> Iterator[int]:
        """The index of each element of the array that stands here; the caller reads each value."""
        return self._items(path, b"[", b"]")

    def _items(self, path: str, opening: bytes, closing: bytes) -> Iterator[int]:
        if self.peek(path) != opening:
            raise self.stop(path, f"{opening.decode()} is expected")
        self.position += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.collector.add("too-deep", f"More than {MAX_DEPTH} levels at {self.where()}.", path)
            raise Stop
        index = 0
        while self.peek(path) != closing:
            yield index
            index += 1
            separator = self.peek(path)
            if separator == b",":
                self.position += 1
                if self.peek(path) == closing:
                    self.collector.add("syntax", f"A comma without a value behind it at {self.where()}.", path)
            elif separator != closing:
                raise self.stop(path, "A comma or the end of the list is expected")
        self.position += 1
        self.depth -= 1

    def string(self, path: str) -> str:
        """The string that stands here. A broken one is reported and returned as far as it can be read."""
        found = self.match(_STRING, path)
        if found:
            self.position = found.end()
            return self._decoded(found.group(1), path)
        while (loose := self.match(_LOOSE_STRING, path)) is None and not self.complete:
            if len(self.data) - self.position > LONGEST:
                raise self.too_large(path, f"A string has more than {LONGEST >> 20} MiB")
            self.grow()
        if loose is None:
            self.position = len(self.data)
            raise self.stop(path, "A string has no end")
        if found := _STRING.match(self.data, self.position):  # it was only longer than what was in memory
            self.position = found.end()
            return self._decoded(found.group(1), path)
        self.collector.add(
            "syntax", f"A string with a raw control character or an unknown escape at {self.where()}.", path
        )
        self.position = loose.end()
        return ""

    def _decoded(self, body: bytes, path: str) -> str:
        text = body.decode("utf-8", errors="replace")  # the whole text was checked for UTF-8 before
        if b"\\" not in body:
            return text
        value = str(json.loads(f'"{text}"'))
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.collector.add(
                "encoding", "The string has half of a surrogate pair; no character is meant by it.", path
            )
        return value

    def _number(self, path: str) -> re.Match[bytes] | None:
        self.match(_TOKEN, path)  # so that all of it is in memory
        return _NUMBER.match(self.data, self.position)

    def number(self, path: str, limit: float) -> float | None:
        """The number that stands here; anything else is reported as `bad-number`, skipped, and None."""
        kind = self.kind(path)
        if kind != "a number":
            self._no_number(path, kind)
            return None
        found = self._number(path)
        if found is None:  # `kind` has just matched it
            return None
        self.position = found.end()
        value = float(found.group())  # an integer of any length becomes a float or infinity, never a huge int
        if abs(value) > limit:
            shown = found.group()[:SHOWN].decode()
            bound = "a 64-bit float" if limit > 1e300 else f"±{limit:.0f}"
            self.collector.add("bad-number", f"{shown} is outside the range of {bound}.", path)
            return None
        return value

    def _no_number(self, path: str, kind: str) -> None:
        if kind == "no JSON":
            self.skip(path, rule="bad-number", expected="a finite number")
            return
        shown = self.skipped(path, SHOWN).decode("utf-8", errors="replace")
        self.collector.add("bad-number", f"A number is expected, not {kind} ({shown}).", path)

    def wrong(self, path: str, expected: str) -> None:
        """Report a value of the wrong type and skip it."""
        kind = self.kind(path)
        if kind != "no JSON":
            self.collector.add("wrong-type", f"{expected[0].upper()}{expected[1:]} is expected, not {kind}.", path)
        self.skip(path, expected=expected)

    def skip(self, path: str, *, rule: str = "syntax", expected: str = "a value") -> None:
        """Read over any value; what is wrong inside it is reported too."""
        first = self.peek(path)
        if first == b"{":
            for _, member in self.members(path):
                self.skip(member)
        elif first == b"[":
            for index in self.elements(path):
                self.skip(f"{path}[{index}]")
        elif first == b'"':
            self.string(path)
        else:
            self._skip_token(path, rule, expected)

    def skipped(self, path: str, limit: int) -> bytes:
        """Read over any value and return the first `limit` bytes of it; at most `AHEAD`."""
        self.peek(path)
        start, begin = self.place, self.data[self.position : self.position + limit]
        self.skip(path)
        return begin[: self.place - start]

    def _skip_token(self, path: str, rule: str, expected: str) -> None:
        token = self.match(_TOKEN, path)
        if token is None:
            raise self.stop(path, f"{expected[0].upper()}{expected[1:]} is expected")
        if token.group() not in _LITERALS and not _NUMBER.fullmatch(token.group()):
            shown = token.group()[:SHOWN].decode("utf-8", errors="replace")
            self.collector.add(rule, f"JSON has no {shown} ({self.where()}); {expected} is expected.", path)
        self.position = token.end()

    def end(self) -> None:
        """Nothing but blanks may follow."""
        self._blanks()
        if self.position < len(self.data):
            raise self.stop("$", "There is more text behind the end of the document")
