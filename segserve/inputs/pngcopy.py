"""A PNG file, copied byte for byte: checked, hashed and written from the same bytes.

Also a program of its own (`python -I -S pngcopy.py FOLDER`), of which `copiers` starts one per core for thousands of
files: threads would wait for each other's interpreter. It imports the standard library only, and starts in 15 ms.
Every line on stdin is a JSON list of `[source, target, bytes, rows, columns]`, `target` being a name in FOLDER; it is
answered by one line, a list of `[word, text]` in the same order. The program ends with its stdin.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import struct
import sys
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COPIED, UNREADABLE, DAMAGED, CHANGED, UNWRITABLE = "copied", "unreadable", "damaged", "changed", "unwritable"

_INTRO = struct.Struct(">I4s")
_SHAPE = struct.Struct(">II")
_FICLONE = 0x40049409  # <linux/fs.h>; shares the blocks of a file on btrfs, XFS, bcachefs
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MODE = 0o644  # an executor in a container may run as another user
_AT_ONCE = 2**30


class Order(NamedTuple):
    """What to copy where; `size` and shape are what the header said when the images were planned."""

    source: str
    target: str  # a name in the folder
    size: int
    rows: int
    columns: int


class Answer(NamedTuple):
    """What became of it: COPIED with the SHA-256, or why not. For UNREADABLE and UNWRITABLE `text` is the errno."""

    word: str
    text: str


class Copier:
    """Copies into one folder. One thread at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._clones = True  # until the file system says no

    def copy(self, order: Order) -> Answer:
        """Copy one file; the target is new and belongs to nobody else."""
        try:
            origin = os.open(order.source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return Answer(UNREADABLE, str(error.errno))
        try:
            return self._copy(order, origin)
        finally:
            os.close(origin)

    def _copy(self, order: Order, origin: int) -> Answer:
        data = b""
        try:
            target = create(f"{self._folder}/{order.target}")
            try:
                if self._clones and self._cloned(origin, target):
                    data = read(target, order.size)
                else:
                    try:
                        data = read(origin, order.size)
                    except OSError as error:
                        return Answer(UNREADABLE, str(error.errno))
                    write(target, data)
            finally:
                os.close(target)
        except OSError as error:
            return Answer(UNWRITABLE, str(error.errno))
        problem = defect(data)
        if problem is not None:
            return Answer(DAMAGED, problem)
        if _SHAPE.unpack_from(data, 16) != (order.columns, order.rows):
            return Answer(CHANGED, "")
        return Answer(COPIED, hashlib.sha256(data).hexdigest())

    def _cloned(self, origin: int, target: int) -> bool:
        """Share the blocks of the file instead of copying them; never a hard link, the executor may write."""
        try:
            fcntl.ioctl(target, _FICLONE, origin)
        except OSError as error:
            if error.errno in _FULL:
                raise
            self._clones = False  # EOPNOTSUPP, EXDEV, EINVAL …: copied instead, from now on
        return self._clones


def create(path: str) -> int:
    """A new file, open for writing and reading."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)


def read(descriptor: int, size: int) -> bytes:
    """What an open file holds from its position on; `size` is what it should be, and saves asking."""
    data = os.read(descriptor, min(size, _AT_ONCE) + 1)
    if len(data) == size:
        return data
    parts = [data]
    while part := os.read(descriptor, _AT_ONCE):
        parts.append(part)
    return b"".join(parts)


def write(descriptor: int, data: bytes) -> None:
    """All of it: the kernel takes at most 2 GiB at once."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def defect(data: bytes) -> str | None:
    """What is wrong with a PNG's chunks (sequence, lengths, checksums), or None. Pixels are not decoded."""
    view, position = memoryview(data), len(SIGNATURE)
    if data[:position] != SIGNATURE:
        return "is no PNG"
    pixels = False
    while position + 12 <= len(data):
        length, kind = _INTRO.unpack_from(data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return f"is damaged: the checksum of its {kind.decode('latin-1')} chunk is wrong"
        pixels = pixels or kind == b"IDAT"
        if kind == b"IEND":
            return None if pixels else "is a PNG without pixels (damaged)"
        position = end + 4
    return "is truncated: the PNG ends in the middle"


def serve(folder: str) -> None:
    """Answer line by line until stdin ends."""
    copier = Copier(folder)
    for line in sys.stdin.buffer:
        answers = [copier.copy(Order(*words)) for words in json.loads(line)]
        sys.stdout.buffer.write(json.dumps(answers).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        serve(sys.argv[1])
