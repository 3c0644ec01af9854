"""Results → files for other programs. One module per target; all take `(results, folder)` and know nothing of another.

    base       a result grouped by source image, names, what an exporter is      outline    pixels ⇄ corner outlines

The forms are described in `docs/export.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segserve.errors import InvalidParameters, did_you_mean
from segserve.exporters import coco, cvat, imagej, label_studio, labels, napari, omero, qupath
from segserve.exporters.base import Exported, Exporter, Results
from segserve.findings import Finding

__all__ = ["EXPORTERS", "Exported", "Exporter", "Results", "export_all", "targets"]

EXPORTERS: dict[str, Exporter] = {
    "qupath": qupath,
    "imagej": imagej,
    "coco": coco,
    "labels": labels,
    "cvat": cvat,
    "label-studio": label_studio,
    "omero": omero,
    "napari": napari,
}


def targets(text: str) -> tuple[str, ...]:
    """The targets of `--to`: names with commas between them, or `all`; each once, in the order given.

    Raises:
        InvalidParameters: a name that is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(EXPORTERS)
    for name in names:
        if name not in EXPORTERS:
            raise InvalidParameters(f"'{name}' is no export target.", hint=did_you_mean(name, EXPORTERS))
    if not names:
        raise InvalidParameters("No export target is given.", hint=did_you_mean("", EXPORTERS))
    return tuple(dict.fromkeys(names))


def export_all(results: Results, names: Sequence[str], folder: Path) -> Exported:
    """Export to each target, into a subfolder of its name.

    Returns:
        All paths, and findings about objects that a target cannot hold; objects without pixels are in no export.
    """
    paths: list[Path] = []
    findings: list[Finding] = [*results.invisible(), *results.turned()]
    for name in names:
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        written = EXPORTERS[name].export(results, place)
        paths += written.paths
        findings += written.findings
    return Exported(tuple(paths), tuple(findings))
