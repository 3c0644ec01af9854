"""From what an executor left to a checked result: find `output.json`, read it, hold it against the images.

find_output(artifacts, project_folder) → (path, note)
collect(path, images)                  → Result with exactly one list of objects per image, in input order
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segserve import format as polygons
from segserve.errors import OutputInvalid, OutputMissing
from segserve.findings import Finding, Place, Severity, errors_in
from segserve.format import Document, Info
from segserve.model import StagedImage

NAME = "output.json"
SIZE_LIMIT = 8 << 30
HINT_LOG = "Add mlflow.log_artifact('output.json') at the end of the executor, where the result has been written."


@dataclass(frozen=True, slots=True)
class Result:
    """A collected output. `document` is an Info for entry points that only describe the executor.

    `findings` are what reading and checking had to say and a run forgives; `source` is the executor's own file.
    """

    document: Document | Info
    findings: tuple[Finding, ...]
    source: Path


def find_output(artifacts: Path | None, project_folder: Path) -> tuple[Path, str]:
    """The output of a finished attempt and a note for people ("" when it was logged as it should be).

    Looked for in this order: `output.json` at the root of the run's artifacts, in one of their direct subfolders
    (`log_artifact(…, "results")`), in the folder that the executor ran in. Links are refused wherever they stand.

    Raises:
        OutputMissing: nowhere.
        OutputInvalid: a link, no plain file, or several subfolders with one each.
    """
    if artifacts is not None and artifacts.is_dir():
        found = _logged(artifacts)
        if found is not None:
            place = found.relative_to(artifacts).as_posix()
            return found, "" if place == NAME else f"{NAME} was logged as '{place}'."
    left = project_folder / NAME
    if os.path.lexists(left):
        return _plain(
            left
        ), f"{NAME} was not logged as an artifact; the file in the working directory is used. {HINT_LOG}"
    logged = _listing(artifacts)
    raise OutputMissing(
        f"The executor finished but left no {NAME}, neither as an artifact nor in its working directory.{logged}",
        hint=HINT_LOG,
    )


def _logged(artifacts: Path) -> Path | None:
    if os.path.lexists(artifacts / NAME):
        return _plain(artifacts / NAME)
    folders = sorted(entry for entry in artifacts.iterdir() if entry.is_dir() and not entry.is_symlink())
    found = [folder / NAME for folder in folders if os.path.lexists(folder / NAME)]
    if len(found) > 1:
        places = ", ".join(path.relative_to(artifacts).as_posix() for path in found)
        raise OutputInvalid(f"Several outputs were logged: {places}.", hint=f"Log one {NAME}, at the root.")
    return _plain(found[0]) if found else None


def _plain(path: Path) -> Path:
    """The path, if a plain file is there."""
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"
        raise OutputInvalid(f"{path.name} is {what}.", hint="The executor has to write a plain file.")
    return path


def _listing(artifacts: Path | None) -> str:
    if artifacts is None or not artifacts.is_dir():
        return ""
    names = sorted(entry.name for entry in artifacts.iterdir())
    more = ", …" if len(names) > 8 else ""
    return f" It logged: {', '.join(names[:8])}{more}." if names else " It logged nothing."


@contextmanager
def opened(path: Path, *, limit: int = SIZE_LIMIT) -> Iterator[BinaryIO]:
    """A plain file of bounded size; a link that has been put there meanwhile is refused by the kernel.

    Raises:
        OutputMissing: it is gone.
        OutputInvalid: no plain file, or too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OutputMissing(f"{path.name} has disappeared.", hint=HINT_LOG) from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EACCES):
            raise
        raise OutputInvalid(f"{path.name} cannot be read: {error.strerror}.") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OutputInvalid(f"{path.name} is no plain file.", hint="The executor has to write a plain file.")
    with os.fdopen(descriptor, "rb") as stream:
        if status.st_size > limit:
            raise OutputInvalid(
                f"{path.name} has {status.st_size / 1e9:.1f} GB; more than {limit / 1e9:.1f} GB are not read.",
                hint="Run fewer images at once, or make the executor simplify its contours.",
            )
        yield stream


def read(path: Path, *, limit: int = SIZE_LIMIT) -> bytes:
    """The bytes of a file; see `opened`."""
    with opened(path, limit=limit) as stream:
        return stream.read(limit)


def collect(output: Path, images: Sequence[StagedImage]) -> Result:
    """Read, check and align an output with the images that were staged, which are in the order of their names.

    Raises:
        OutputMissing: the file is gone.
        OutputInvalid: not a document, not one result per image, or a result that cannot belong to these images.
    """
    with opened(output) as stream:
        document = polygons.decode(stream)
    if isinstance(document, Info):
        if images:
            raise OutputInvalid(
                "The entry point describes the executor (type 'info') and segments nothing.",
                hint="Choose another entry point; `segserve info` lists them.",
            )
        return Result(document, (), output)
    if images:
        _require_one_each(document, images)
    names = [image.source for image in images] or None
    checked = polygons.check(document, [image.shape for image in images] or None, names=names, strict=False)
    findings = (*document.notes, *checked)
    if errors_in(findings):
        raise polygons.invalid(list(findings))
    return Result(document, findings, output)


def _require_one_each(document: Document, images: Sequence[StagedImage]) -> None:
    """Results are matched by position alone, so a missing one would silently shift all that follow."""
    staged = [image.name for image in images]
    if staged != sorted(staged):
        raise ValueError("the names of staged images must sort in input order")
    if document.n_images == len(images):
        return
    results = "1 result" if document.n_images == 1 else f"{document.n_images} results"
    wanted = "1 image" if len(images) == 1 else f"{len(images)} images"
    message = f"The executor wrote {results} for {wanted}, so it cannot be known which belongs to which."
    cause = _likely_cause(document, len(images))
    place = Place(json_path=document.form.split("[")[0])
    finding = Finding("image-count-mismatch", Severity.ERROR, message, place, cause)
    raise OutputInvalid(
        f"{message} Which result belongs to which image cannot be known.", hint=cause, findings=[finding]
    )


def _likely_cause(document: Document, wanted: int) -> str:
    if document.n_images == 0:
        return (
            "Its search for images seems to find none: images are staged as PNG (*.png) in the folder that it is given."
        )
    if document.n_images == 1 and not len(document):
        return (
            "One empty result for all images is what some executors write after an exception that they swallow "
            "([[]]): look for it in the log."
        )
    if document.n_images == 1:
        return "The executor seems to treat the whole folder as one image, or to read only the first: run one image."
    if document.n_images < wanted:
        return "It seems to skip images: it must append a list for every image, an empty one where it finds nothing."
    return "It seems to read more than the staged PNGs, or to append several lists per image."
