"""multipart/form-data of files on disk, streamed: memory does not depend on what is sent, files are open one by one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from segserve.errors import UnreadableImage

_CHUNK = 1 << 18
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Form:
    """Fields and files of one request; `chunks` gives the same bytes whenever it is called."""

    fields: Mapping[str, str]
    files: Sequence[Path]
    boundary: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def headers(self) -> dict[str, str]:
        """Kind and length of the body."""
        length = sum(len(head) + (_size(path) if path else 0) + 2 for head, path in self._parts())
        return {
            "Content-Type": f"multipart/form-data; boundary={self.boundary}",
            "Content-Length": str(length + len(self._end)),
        }

    def chunks(self, progress: Progress) -> Iterator[bytes]:
        """The body. `progress` is told how many bytes of how many have gone.

        Raises:
            UnreadableImage: a file has changed its size since it was looked at, or cannot be read.
        """
        total, sent = int(self.headers["Content-Length"]), 0
        for head, path in self._parts():
            yield head
            sent += len(head)
            if path is not None:
                for chunk in _read(path):
                    yield chunk
                    sent += len(chunk)
                    progress(sent, total)
            yield b"\r\n"
            sent += 2
        if sent + len(self._end) != total:
            raise UnreadableImage("An image has changed while it was sent.", hint="Run it again when it is complete.")
        yield self._end
        progress(total, total)

    @property
    def _end(self) -> bytes:
        return f"--{self.boundary}--\r\n".encode()

    def _parts(self) -> Iterator[tuple[bytes, Path | None]]:
        for name, value in self.fields.items():
            yield f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode(), None
        for path in self.files:
            disposition = f'Content-Disposition: form-data; name="images"; filename="{_quoted(path.name)}"'
            kind = "Content-Type: application/octet-stream"
            yield f"--{self.boundary}\r\n{disposition}\r\n{kind}\r\n\r\n".encode("utf-8", "replace"), path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UnreadableImage(f"'{path}' cannot be read: {error.strerror}.", hint="Is it still there?") from None


def _quoted(name: str) -> str:
    """As browsers write a name (https://html.spec.whatwg.org/#multipart-form-data)."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _read(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise UnreadableImage(f"'{path}' cannot be read: {error.strerror}.", hint="Is it still there?") from None
