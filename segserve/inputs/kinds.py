"""One module in `readers/` per kind of file; a kind is told by its first bytes, never by its name."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from segserve.inputs.base import DECODER_ERRORS, File, Planes, Reader, Source, Unusable
from segserve.inputs.discover import is_zarr
from segserve.inputs.readers import bmp, czi, hdf5, jpeg, lif, nd2, npy, omezarr, png, tiff

READERS: dict[str, Reader] = {
    "png": png,
    "jpeg": jpeg,
    "tiff": tiff,
    "bmp": bmp,
    "npy": npy,
    "hdf5": hdf5,
    "zarr": omezarr,
    "czi": czi,
    "nd2": nd2,
    "lif": lif,
}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"BM", "bmp"),
    (b"\x93NUMPY", "npy"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"ZISRAWFILE", "czi"),
    (b"\xda\xce\xbe\n", "nd2"),
    (b"\x70\0\0\0", "lif"),
)
_HEAD = 1024  # bytes; the chunks before the pixels of most PNGs are in them
SUFFIXES = {  # what files of a kind are called, mostly
    **dict.fromkeys((".jpg", ".jpeg", ".jpe"), "jpeg"),
    **dict.fromkeys((".tif", ".tiff", ".btf", ".tf8", ".lsm", ".stk", ".svs", ".qptiff"), "tiff"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), "hdf5"),
    **{f".{kind}": kind for kind in ("png", "bmp", "npy", "czi", "nd2", "lif")},
}
# What people give that is something else: the error can say what it is.
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (WebP, AVI, WAV)"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or npz, xlsx, docx)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\x80\x04\x95", "a Python pickle, which is never opened"),
)


def kind_of(head: bytes, path: str) -> str:
    """The kind of a file that starts with `head`."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"\0\0\0\x0cjP  ") and path.lower().endswith(".nd2"):
        return "nd2"
    if not head:
        raise Unusable("image-empty", "is empty (0 bytes)")
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            raise Unusable("image-foreign", f"is {name}, not a supported image", "Convert it to TIFF or PNG.")
    text = all(byte in b"\t\n\r\f" or byte >= 32 for byte in head)
    raise Unusable("image-foreign", "is a text file, not an image" if text else "is of no kind that is known here")


def _kind_of_folder(path: str) -> str:
    if is_zarr(path):
        return "zarr"
    raise Unusable("image-foreign", "is a folder")


def inspect(path: str, given: str) -> Source:
    """Structure of one input from its headers. Raises `Unusable`, nothing else."""
    try:
        status = os.stat(path)  # ten thousand times
        if stat.S_ISDIR(status.st_mode):
            return _source(File(path, status.st_size), given, _kind_of_folder(path), status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode):  # not even opened: a FIFO would block for ever
            raise Unusable("image-foreign", "is no file but a device, pipe or socket")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            head = os.read(descriptor, _HEAD)
            file = File(path, status.st_size, head, descriptor)
            return _source(file, given, kind_of(head[:32], path), status.st_mtime_ns)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unusable("image-unreadable", f"cannot be opened: {error.strerror}") from error


def _source(file: File, given: str, kind: str, modified_ns: int) -> Source:
    with decoding("read"):
        series = READERS[kind].series(file)
    if not series:
        raise Unusable("image-unreadable", "holds no image")
    return Source(file.path, given, kind, series, file.size, modified_ns)


def misnamed(source: Source) -> bool:
    """Does the name promise another kind of file?"""
    promised = SUFFIXES.get(os.path.splitext(source.path)[1].lower())
    return promised is not None and promised != source.kind


class decoding:  # noqa: N801 - reads as a verb
    """`with decoding("opened"):` — whatever a decoder makes of broken bytes becomes `Unusable`."""

    __slots__ = ("verb",)

    def __init__(self, verb: str) -> None:
        self.verb = verb

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate."""
        if isinstance(error, DECODER_ERRORS):
            text = " ".join(str(error).split())[:200]
            raise Unusable(
                "image-unreadable",
                f"cannot be {self.verb}: it is damaged or of a variant that is not supported "
                f"({type(error).__name__}: {text})",
            ) from error


@contextmanager
def opened(source: Source) -> Iterator[Planes]:
    """A source, open for reading planes."""
    with decoding("opened"):
        manager = READERS[source.kind].open(source.path)
        planes = manager.__enter__()
    try:
        yield planes
    finally:
        manager.__exit__(None, None, None)
