"""From what a user names (a result folder, an output.json, images) to a result that can be exported, and back.

results(folder or output.json)        → Results for `exporters`
images_of(paths)                      → the images of a result folder, or of image files
import_document(files, kind, images)  → format 0.2 of what another program has written
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from segserve import format as polygons
from segserve.collect import collect, read
from segserve.errors import NotFound, OutputInvalid, UsageError, writing
from segserve.exporters import Results
from segserve.findings import Finding
from segserve.format import Info
from segserve.importers import import_files
from segserve.inputs import InputPlan, Selection, channel_list, plan, read_map
from segserve.model import StagedImage

OUTPUT, RESULTS, EXPORTS = "output.json", "results.json", "exports"
MAX_SIDE, MAX_PIXELS = 1 << 20, 1 << 30  # as for images that are staged


@dataclass(frozen=True, slots=True)
class Loaded:
    """A result with its images, what checking it found, and where its exports go unless told otherwise."""

    results: Results
    findings: tuple[Finding, ...]
    exports: Path


class _Image(msgspec.Struct):
    file: str
    staged: str
    sha256: str
    width: int
    height: int
    series: int | None = None
    t: int | None = None
    z: int | str | None = None
    c: int | None = None
    channel: str = ""
    pixel_size_um: tuple[float, float] | None = None
    sizes: dict[str, int] = {}
    orientation: int = 1


class _Results(msgspec.Struct):
    format: str
    images: list[_Image]


def load(
    result: Path,
    images: Sequence[str | os.PathLike[str]] = (),
    selection: Selection | None = None,
    *,
    staged: Path | None = None,
) -> Loaded:
    """A result folder, or an output.json with the images that it was made from.

    `images` and `selection` are as in a run. Without them the images are those of `staged` (the inputs.json of a job),
    or of `results.json` in the same folder.

    Raises:
        NotFound: there is no such result, or nothing says what its images are.
        OutputMissing, OutputInvalid: the output is gone or no document of polygons, or not of these images.
        UnreadableImage: images that cannot be read.
    """
    folder = result if result.is_dir() else result.parent
    output = folder / OUTPUT if result.is_dir() else result
    if not output.exists():
        raise NotFound(f"There is no {output}.", hint="Name a result folder, an output.json, or a job.")
    known = _images(folder, images, selection, staged)
    collected = collect(output, known)
    if isinstance(collected.document, Info):
        raise OutputInvalid(f"{output} describes an executor; it holds no objects.")
    return Loaded(Results(collected.document, known), collected.findings, folder / EXPORTS)


def _images(
    folder: Path, images: Sequence[str | os.PathLike[str]], selection: Selection | None, staged: Path | None
) -> tuple[StagedImage, ...]:
    if images:
        return images_of(images, selection)
    if staged is not None and staged.exists():
        return read_map(staged)
    if not (folder / RESULTS).exists():
        raise NotFound(
            f"There is no {RESULTS} in {folder} that names the images of the result.", hint="Name them with --images."
        )
    return images_of([folder])


def images_of(paths: Sequence[str | os.PathLike[str]], selection: Selection | None = None) -> tuple[StagedImage, ...]:
    """The images, in order, of a result folder (or its results.json), or of image files as a run would stage them."""
    if len(paths) == 1:
        path = Path(paths[0])
        listed = path / RESULTS if path.is_dir() else path
        if listed.name == RESULTS and listed.is_file():
            return read_results(listed)
    return _planned(plan(paths, selection))


def read_results(path: Path) -> tuple[StagedImage, ...]:
    """The images that a results.json names, in order.

    Raises:
        OutputInvalid: it is none of ours.
    """
    try:
        found = msgspec.json.decode(read(path), type=_Results)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OutputInvalid(f"{path} is no results.json: {error}.") from error
    if found.format != "segserve-results" or not all(map(_plausible, found.images)):
        raise OutputInvalid(f"{path} is no results.json of segserve.")
    return tuple(
        StagedImage(
            name=image.staged,
            source=image.file,
            shape=(image.height, image.width),
            channels=1,
            dtype="",
            sha256=image.sha256,
            series=image.series,
            t=image.t,
            z=image.z,
            c=image.c,
            channel_name=image.channel,
            pixel_size_um=image.pixel_size_um,
            orientation=image.orientation,
            sizes=image.sizes,
        )
        for image in found.images
    )


def _plausible(image: _Image) -> bool:
    sides = 0 < image.width <= MAX_SIDE and 0 < image.height <= MAX_SIDE and image.width * image.height <= MAX_PIXELS
    numbers = [image.series, image.t, image.z, image.c, *image.sizes.values()]
    return (
        sides
        and all(0 <= number < 2**31 for number in numbers if isinstance(number, int))
        and image.sizes.keys() <= set("TZC")
        and 1 <= image.orientation <= 8
    )


def _planned(planned: InputPlan) -> tuple[StagedImage, ...]:
    """What `inputs.stage` would make of a plan, without its hashes: the headers of the files say the rest."""
    images = []
    for name, request in zip(planned.names, planned.requests, strict=True):
        source = planned.sources[request.source]
        series = source.series[request.series]
        c = request.c
        if request.sample is not None:
            c = (request.c or 0) * (series.samples - series.alpha) + request.sample
        images.append(
            StagedImage(
                name=name,
                source=source.path,
                shape=series.shape,
                channels=3 if series.rgb else 1,
                dtype=series.dtype,
                sha256="",
                series=request.series if len(source.series) > 1 else None,
                t=request.t,
                z=request.z,
                c=c,
                channel_name=channel_list(series)[c] if c is not None else "",
                pixel_size_um=series.pixel_size_um,
                source_dtype=series.dtype,
                orientation=series.orientation,
                sizes=series.sizes,
                modified=source.modified,
            )
        )
    return tuple(images)


def import_document(
    files: Sequence[Path], kind: str, images: Sequence[StagedImage], output: Path, *, label: str
) -> tuple[int, tuple[Finding, ...]]:
    """Write what other programs have written as format 0.2, one list per image.

    Returns:
        The number of objects, and what could not be taken over.

    Raises:
        UsageError: the output exists, or files are damaged or belong to no image.
    """
    if output.exists():
        raise UsageError(f"{output} exists already.", hint="Choose another name with -o.")
    imported = import_files(files, kind, images, label=label)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    with writing(output, "-o names another file."):
        try:
            temporary.write_bytes(polygons.encode(imported.document))
            temporary.replace(output)
        finally:
            temporary.unlink(missing_ok=True)
    return len(imported.document), imported.findings
