"""Objects from other programs → format 0.2, so that corrections made elsewhere come back. One module per kind of file.

    base       names → images, objects → pixels → polygons, strict readers of JSON values

The forms are described in `docs/export.md`. Everything that is read is taken for hostile until it is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segserve.errors import InvalidParameters, did_you_mean
from segserve.importers import cellpose_npy, coco, cvat, imagej, label_studio, labels, qupath
from segserve.importers.base import LABEL, Broken, Imported, Importer, Target, failed
from segserve.model import StagedImage

__all__ = ["IMPORTERS", "Imported", "Importer", "import_files"]

IMPORTERS: dict[str, Importer] = {
    "labels": labels,
    "coco": coco,
    "qupath": qupath,
    "imagej": imagej,
    "cvat": cvat,
    "label-studio": label_studio,
    "cellpose": cellpose_npy,
}


def import_files(
    paths: Sequence[Path], kind: str, images: Sequence[StagedImage], *, label: str = LABEL, model: str = ""
) -> Imported:
    """Read foreign files into one document with a list of objects per image, in the order of `images`.

    `label` is the class of objects that have none there, `model` what the document says about its origin.

    Raises:
        InvalidParameters: there is no such kind.
        UsageError: files that are damaged or belong to no image; a finding for each.
    """
    if kind not in IMPORTERS:
        raise InvalidParameters(f"'{kind}' is nothing that can be imported.", hint=did_you_mean(kind, IMPORTERS))
    target = Target(images, label)
    broken: list[tuple[Path, Broken]] = []
    for path in paths:
        target.path = path
        try:
            IMPORTERS[kind].read(path, target)
        except Broken as problem:
            broken.append((path, problem))
    if broken:
        raise failed(broken, kind)
    return Imported(target.build(model or f"imported from {kind}"), tuple(target.findings))
