"""Multipart bodies go to the disk as they come: what is held in memory does not depend on what is sent.

Names of files are hostile: only their last part is kept, and of that what is fit for a file name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from segserve.errors import TooLarge, UsageError

MAX_FIELD_BYTES = 1 << 20
MAX_FIELDS = 100
MAX_HEAD_BYTES = 16 << 10  # of one part
_BATCH_BYTES = 1 << 20  # so much is parsed and written by one visit to a thread
_UNFIT = re.compile(r"[^\w.\- ()+\[\]@=,]+")
_MAX_NAME = 150


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may hold."""

    body_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has come: where it lies, the name that the client gave it, its bytes, SHA-256 (hex) of them."""

    path: Path
    name: str
    sha256: str
    size: int


@dataclass
class Form:
    """A whole body. `files` are in the order of the body, whatever their fields are called."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[Upload] = field(default_factory=list)


async def receive(stream: AsyncIterator[bytes], content_type: str, folder: Path, limits: Limits) -> Form:
    """Read a multipart/form-data body; its files appear in `folder`, which is made when the first one comes.

    Raises:
        UsageError: it is no such body, or a malformed one.
        TooLarge: it is over a limit.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise UsageError("The body is no multipart/form-data with a boundary.", hint="curl -F does it.")
    reader = _Reader(options[b"boundary"], folder, limits)
    batch = bytearray()
    try:
        async for chunk in stream:
            batch += chunk
            if len(batch) >= _BATCH_BYTES:
                await run_in_threadpool(reader.take, bytes(batch))
                batch.clear()
        await run_in_threadpool(reader.take, bytes(batch))
        return reader.finish()
    finally:
        reader.close()


class _Reader:
    def __init__(self, boundary: bytes, folder: Path, limits: Limits) -> None:
        self._folder, self._limits = folder, limits
        self._form = Form()
        self._taken: set[str] = set()
        self._size = self._parts = 0
        self._ended = False
        self._file: BinaryIO | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )

    def take(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limits.body_bytes:
            raise TooLarge(f"The body is over {self._limits.body_bytes // 2**20} MiB.", hint="Send fewer images.")
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise UsageError(f"The body is malformed: {error}.") from None

    def finish(self) -> Form:
        if not self._ended:
            raise UsageError("The body ends in the middle.", hint="Send it again.")
        return self._form

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    # -- called by the parser, in the order of the body ---------------------------------------------------------------

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > self._limits.files + MAX_FIELDS:
            raise TooLarge("The form has too many parts.", hint="Send fewer images at a time.")
        self._head = 0
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._field = ""
        self._text = bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count_head(end - start)
        self._value += data[start:end]

    def _count_head(self, size: int) -> None:
        self._head += size
        if self._head > MAX_HEAD_BYTES:
            raise TooLarge("The head of a part of the form is too large.")

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if b"filename" not in options:
            return
        if len(self._form.files) >= self._limits.files:
            raise TooLarge(f"More than {self._limits.files} files.", hint="Send fewer at a time.")
        self._original = options[b"filename"].decode("utf-8", "replace")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = self._folder / self._free_name(self._original)
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = data[start:end]
        if self._file is not None:
            self._file.write(part)
            self._hash.update(part)
            return
        self._text += part
        if len(self._text) > MAX_FIELD_BYTES or len(self._form.fields) >= MAX_FIELDS:
            raise TooLarge("The fields of the form are too large, or too many.")

    def _end(self) -> None:
        if self._file is None:
            self._form.fields[self._field] = self._text.decode("utf-8", "replace")
            return
        size = self._file.tell()
        self._file.close()
        self._file = None
        self._form.files.append(Upload(self._path, self._original, self._hash.hexdigest(), size))

    def _all(self) -> None:
        self._ended = True

    def _free_name(self, original: str) -> str:
        name = safe_name(original)
        stem, dot, suffix = name.rpartition(".")
        number, free = 1, name
        while free.lower() in self._taken:
            number += 1
            free = f"{stem}-{number}.{suffix}" if dot else f"{name}-{number}"
        self._taken.add(free.lower())
        return free


def safe_name(original: str) -> str:
    """The last part of what a client calls a file, fit for a file name: never hidden, never a path, never too long."""
    last = re.split(r"[/\\]", original)[-1]
    name = _UNFIT.sub("_", last).strip(" .")
    stem, dot, suffix = name.rpartition(".")
    if len(name) > _MAX_NAME:
        name = f"{stem[: _MAX_NAME - 20]}.{suffix[:15]}" if dot else name[:_MAX_NAME]
    return name.lstrip("-") or "image"
