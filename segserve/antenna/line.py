"""Our end of the socket to a stage that stays; the protocol stands in `segserve_sdk/serving.py`.

What a stage says is hostile until checked: objects are read as format 0.2 is, everything else by its types.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from segserve import format as polygons
from segserve.errors import OutputInvalid
from segserve.format import Document

Array = NDArray[Any]
VERSION = 1
_LOOK_SECONDS = 0.2
_MOST_BYTES = 256 << 20  # of one answer
_CHUNK = 1 << 20


class StageDown(Exception):
    """The process at the other end has gone, or says what nobody understands."""


class StageFailed(Exception):
    """It is there, and says that it cannot do this."""


class _Classified(msgspec.Struct):
    algorithm: str
    scores: list[float]
    seconds: float


class _Detected(msgspec.Struct):
    box: tuple[float, float, float, float]
    algorithm: str
    seconds: float
    classifications: list[_Classified]
    score: float | None = None


class Seen(msgspec.Struct):
    """What a pipeline in Python says of one image."""

    detections: list[_Detected]
    errors: list[str]


class _Said(msgspec.Struct):
    serve: int = 0
    id: int = 0
    seconds: float = 0.0
    found: msgspec.Raw = msgspec.Raw()
    images: list[Seen] | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Objects of a batch (format 0.2), or what a pipeline in Python says of it; and the seconds that it took."""

    document: Document | None
    images: tuple[Seen, ...]
    seconds: float


class Listener:
    """A socket in a folder of ours, for one stage to connect to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX)
        # The address of a socket has room for 107 bytes only; a folder's descriptor makes any path short.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        self._socket.listen(1)
        self._socket.settimeout(_LOOK_SECONDS)

    def accept(self, alive: Callable[[], bool]) -> Line:
        """Wait for the stage until it has loaded.

        Raises:
            StageDown: it has gone before.
        """
        while True:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                if not alive():
                    raise StageDown("it has ended before it was ready") from None
                continue
            connection.settimeout(None)
            line = Line(connection)
            if line.hear().serve != VERSION:
                raise StageDown("it speaks another version of the protocol: its segserve_sdk is too old, or too new")
            return line

    def close(self) -> None:
        """Nobody can connect any more."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


class Line:
    """The connection to one stage. Requests and answers take turns."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = bytearray()
        self._number = 0

    def ask(self, images: Sequence[Array], names: Sequence[str], values: Mapping[str, str], **more: Any) -> Answer:
        """The answer to a batch of contiguous images. `more` goes along in the request.

        Raises:
            StageFailed: the stage says why it has none.
            StageDown: there is no stage any more.
        """
        self._number += 1
        described = [
            {"name": name, "shape": list(image.shape), "dtype": image.dtype.name}
            for name, image in zip(names, images, strict=True)
        ]
        size = sum(image.nbytes for image in images)
        head = {"id": self._number, "values": dict(values), "images": described, "bytes": size, **more}
        try:
            self._connection.sendall(json.dumps(head).encode() + b"\n")
            for image in images:
                self._connection.sendall(image.data)
        except OSError as error:
            raise StageDown(f"it has ended ({error.strerror})") from None
        return self._read(len(images))

    def hear(self) -> _Said:
        """The next message.

        Raises:
            StageDown: there is none, or it is none.
        """
        while (end := self._rest.find(b"\n")) < 0:
            try:
                chunk = self._connection.recv(_CHUNK)
            except OSError:
                chunk = b""
            if not chunk:
                raise StageDown("it has ended")
            self._rest += chunk
            if len(self._rest) > _MOST_BYTES:
                raise StageDown(f"its answer is over {_MOST_BYTES >> 20} MiB")
        text = bytes(self._rest[:end])
        del self._rest[: end + 1]
        try:
            return msgspec.json.decode(text, type=_Said)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StageDown(f"its answer is none: {error}") from None

    def close(self) -> None:
        """Let it end; whoever waits for an answer gets none."""
        with suppress(OSError):  # it has ended already
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self, count: int) -> Answer:
        said = self.hear()
        if said.id != self._number:
            raise StageDown(f"it answers request {said.id} instead of {self._number}")
        if said.error:
            raise StageFailed(said.error)
        if said.images is not None:
            if len(said.images) != count:
                raise StageFailed(f"it answered {len(said.images)} of {count} images")
            return Answer(None, tuple(said.images), said.seconds)
        return Answer(document(bytes(said.found), count), (), said.seconds)


def document(found: bytes, count: int) -> Document:
    """The objects of `count` images, from the list of lists of format 0.2.

    Raises:
        StageFailed: it is something else; the first mistake is named.
    """
    text = b'{"model": "stage", "format_version": "0.2", "segmentation_data": ' + (found or b"null") + b"}"
    try:
        read = polygons.decode(text)
    except OutputInvalid as invalid:
        raise StageFailed(f"its answer is not format 0.2: {invalid.message}") from None
    if not isinstance(read, Document) or read.n_images != count:
        raise StageFailed(f"its answer is not for {count} images")
    return read
