"""Parameters that name something remote (https) are fetched before the launch, into a file whose hash is recorded."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from segserve import redact
from segserve.errors import InvalidParameters, TooLarge

MAX_BYTES = 20 * 2**30
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Fetched:
    """A local copy and the SHA-256 of its content."""

    path: Path
    sha256: str


def is_remote(value: str) -> bool:
    """Whether a `path` or `uri` value has to be fetched first."""
    return value.startswith(("https://", "runs:/", "models:/"))


def https(url: str, folder: Path, *, timeout: float = 60.0, max_bytes: int = MAX_BYTES) -> Fetched:
    """Download one file into `folder` under its own name. Proxies and certificates come from the environment.

    Raises:
        InvalidParameters: it cannot be had.
        TooLarge: it is over `max_bytes`.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "download"
    target = folder / name.lstrip(".")
    folder.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, target.open("wb") as stream:  # noqa: S310 - https, see is_remote
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"{redact.url(url)} is larger than {max_bytes // 2**30} GiB.")
                digest.update(chunk)
                stream.write(chunk)
    except (urllib.error.URLError, OSError) as error:
        raise InvalidParameters(
            f"{redact.url(url)} cannot be fetched: {error}.", hint="Check the address, or pass a local file."
        ) from None
    return Fetched(target, digest.hexdigest())


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's names and contents in order."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(path.parent)).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
