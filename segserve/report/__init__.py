"""The result folder: what people open after a run.

    output.json           format 0.2, one list per image (byte for byte the executor's file when that was faultless 0.2)
    output.original.json  the executor's file, when output.json is an upgrade of it
    results.json          the same with original file names, measures and conventions
    objects.csv           one row per object
    overlays/NNN-….png    outlines on the image
    report/index.html     one page without scripts; report/summary.md the same in short
    validation.json       what reading and checking found

Everything is keyed through the order of the staged images, which is checked once, in `write`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from segserve.findings import Finding, as_json
from segserve.format import Document, Info, encode_chunks
from segserve.model import StagedImage
from segserve.report import intensities, page, tables
from segserve.report import overlays as drawing
from segserve.report.intensities import Intensities
from segserve.report.measures import measure

FIRST = 24  # overlays that are drawn unless more are asked for


class Collected(Protocol):
    """What `collect.Result` is; named here because collect and report do not know each other."""

    @property
    def document(self) -> Document | Info:
        """The checked document."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What reading and checking found."""

    @property
    def source(self) -> Path:
        """The file as the executor left it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was written: objects per image in input order, and the path of each overlay or None (not asked for).

    `findings` are those of the result and what could not be measured.
    """

    counts: tuple[int, ...]
    overlays: tuple[Path | None, ...]
    findings: tuple[Finding, ...]


def write(
    folder: Path,
    result: Collected,
    images: Sequence[StagedImage],
    inputs_folder: Path,
    facts: Mapping[str, Any],
    *,
    overlays: int | None = FIRST,
    originals: Sequence[str] | None = None,
) -> Report:
    """Write the result folder. `overlays` is how many are drawn, None for all.

    `originals` are the paths of the images' files, for intensities; without them there are none.

    `facts` are for people and all optional: texts `executor`, `repository`, `commit`, `subdir`, `entry`, `command` (to
    reproduce), `created`, `job`, `mlflow_url`, `version` (of segserve), `inputs_digest`, and `title`, `licence`,
    `citation` of the executor; mappings `parameters`, `environment`, `machine` (name → text) and `seconds` (step →
    number); the sequence `warnings`. Secrets
    must be redacted before.

    Raises:
        ValueError: document and images do not belong together (a defect of ours; `collect` refuses such documents).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(result.document, Document):
        shutil.copyfile(result.source, folder / "output.json")
        _write_findings(folder, result.findings)
        return Report((), (), result.findings)
    document = result.document
    _require_order(document, images)
    _write_output(folder, document, result.source)
    measures, bright = measure(document, images), Intensities.none(len(document))
    findings = result.findings
    if originals is not None:
        bright, unmeasured = intensities.measure(document, images, originals)
        findings = (*findings, *unmeasured)
    _write_findings(folder, findings)
    tables.write_results(folder / "results.json", document, images, measures, bright, facts)
    tables.write_csv(folder / "objects.csv", document, images, measures, bright)
    drawn = drawing.draw_all(folder / "overlays", document, images, inputs_folder, overlays)
    page.write(folder / "report", page.View(document, images, measures, drawn, findings, facts))
    counts = tuple(int(count) for count in document.counts())
    return Report(counts, tuple(overlay.path if overlay else None for overlay in drawn), findings)


def _write_findings(folder: Path, findings: Sequence[Finding]) -> None:
    (folder / "validation.json").write_text(as_json(findings) + "\n", encoding="utf-8")


def _require_order(document: Document, images: Sequence[StagedImage]) -> None:
    names = [image.name for image in images]
    if images and (document.n_images != len(images) or names != sorted(set(names))):
        raise ValueError("the document has not one result per staged image, in the order of their names")


def _write_output(folder: Path, document: Document, source: Path) -> None:
    if document.exact:
        shutil.copyfile(source, folder / "output.json")
        return
    shutil.copyfile(source, folder / "output.original.json")
    with (folder / "output.json").open("wb") as stream:
        stream.writelines(encode_chunks(document))
