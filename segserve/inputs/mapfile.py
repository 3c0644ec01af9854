"""inputs.json: what every staged image is. `{"version": 1, "images": [...]}`, one image per line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from segserve.errors import NotFound, UnreadableImage
from segserve.model import StagedImage, write_atomically

VERSION = 1
_NAME = re.compile(r"[0-9]{5,}\.png")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _Map:
    version: int
    images: tuple[StagedImage, ...]


def write_map(path: Path, images: Sequence[StagedImage]) -> None:
    """Write inputs.json; it appears at once."""
    lines = ",\n".join(msgspec.json.encode(image).decode() for image in images)
    write_atomically(path, f'{{"version": {VERSION}, "images": [\n{lines}\n]}}\n')


def read_map(path: Path) -> tuple[StagedImage, ...]:
    """Read what `write_map` wrote, in the order of the staged names.

    Raises:
        NotFound: there is no such file (nothing has been staged).
        UnreadableImage: it is no inputs.json of this version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist: no images were staged there.") from error
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise UnreadableImage(
                f"{path} has version {version}; this segserve reads {VERSION}.", hint="Use the segserve that wrote it."
            )
        images = msgspec.json.decode(data, type=_Map).images
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableImage(f"{path} is no inputs.json: {error}.", hint="Stage the images again.") from error
    names = [image.name for image in images]
    if sorted(set(names)) != names or not all(
        _NAME.fullmatch(image.name) and _SHA256.fullmatch(image.sha256) for image in images
    ):
        raise UnreadableImage(
            f"{path} is no inputs.json: its names or hashes are not ours.",
            hint="Stage the images again.",
        )
    return images


@dataclass(frozen=True, slots=True)
class _Version:
    version: int


def digest(images: Sequence[StagedImage]) -> str:
    """Identity of the inputs by content: SHA-256 over the hashes of the staged images in order (hexadecimal)."""
    return hashlib.sha256("".join(f"{image.sha256}\n" for image in images).encode()).hexdigest()


def short_names(images: Sequence[StagedImage]) -> tuple[str, ...]:
    """The source of each image, below the folder that all have in common: what people recognise."""
    sources = {image.source for image in images}
    common = os.path.commonpath([os.path.dirname(source) for source in sources]) if sources else ""
    short = {source: os.path.relpath(source, common) for source in sources}
    return tuple(short[image.source] for image in images)
