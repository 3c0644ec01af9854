"""`segserve compare`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from segserve import comparison
from segserve.cli import render
from segserve.errors import InvalidParameters, UsageError, Verdict
from segserve.report.tables import text_cell

MOST_THRESHOLDS = 1000
MOST_IMAGES = 40  # that a table in the terminal shows one by one
COLUMNS = ("tp", "fp", "fn", "precision", "recall", "f1", "ap", "panoptic_quality", "mean_matched_iou", "mean_true_iou")
OVERALL = ("dice", "foreground_iou", "aji", "aji_cellpose", "seg")
HEADER = {"panoptic_quality": "PQ", "mean_matched_iou": "mean IoU", "f1": "F1", "ap": "AP"}
SHOWN = COLUMNS[:-1]


def thresholds(text: str) -> tuple[float, ...]:
    """`0.5`, `0.5,0.75` or `0.5:0.95:0.05` (both ends included) → the decimal numbers that are meant.

    Raises:
        InvalidParameters: not of this form, or not within 0 … 1.
    """
    try:
        parts = [float(part) for part in re.split("[:,]", text)]
        if ":" in text:
            start, stop, step = parts
            count = int((stop - start) / step + 1e-9) + 1
            if step <= 0 or not 0 < count <= MOST_THRESHOLDS:
                raise ValueError
            # Adding up steps would give 0.6500000000000001, and an IoU of 13/20 would miss it.
            parts = [round(start + number * step, 10) for number in range(count)]
    except (ValueError, OverflowError, ZeroDivisionError):
        parts = []
    if not parts or len(parts) > MOST_THRESHOLDS or not all(0 < part <= 1 for part in parts):
        raise InvalidParameters(
            f"--iou {text}: must be one IoU, several (0.5,0.75) or start:stop:step (0.5:0.95:0.05), within 0 … 1."
        )
    return tuple(sorted(set(parts)))


@click.command("compare")
@click.argument("pred", type=click.Path(exists=True, path_type=Path))
@click.argument("truth", type=click.Path(exists=True, path_type=Path))
@click.option("--iou", default="0.5:0.95:0.05", show_default=True, metavar="A:B:STEP", help="IoU thresholds.")
@click.option("--by-label", is_flag=True, help="Only objects of the same class match.")
@click.option("--max-detections", type=click.IntRange(min=1), metavar="N", help="For COCO's AP (pycocotools: 100).")
@click.option("--format", "style", type=click.Choice(["text", "json", "csv"]), default="text", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for overlays.")
@click.option("--images", type=click.Path(exists=True, path_type=Path), help="The images, to draw overlays upon.")
@click.option("--drift", is_flag=True, help="What changed from TRUTH (a reference result) to PRED?")
@click.option("--threshold", type=click.FloatRange(0, 1), metavar="X", help="With --drift: exit code 7 over X.")
def compare_command(
    pred: Path,
    truth: Path,
    *,
    iou: str,
    by_label: bool,
    max_detections: int | None,
    style: str,
    as_json: bool,
    output: Path | None,
    images: Path | None,
    drift: bool,
    threshold: float | None,
) -> None:
    """Compare the segmentation PRED with TRUTH.

    \b
    Either is an output.json, a result folder, COCO json, a label image or a folder of label images.
    """
    at = thresholds(iou)
    style = "json" if as_json else style
    if threshold is not None and not drift:
        raise UsageError("--threshold belongs to --drift.")
    if images is not None and output is None:
        raise UsageError("--images is what overlays are drawn upon; -o DIR says where to write them.")
    if drift:
        _drift(pred, truth, threshold, style)
    else:
        _compare(pred, truth, at, style, by_label=by_label, max_detections=max_detections)
    if output is not None:
        _write_pictures(output, comparison.pictures(pred, truth, images, at[0]))
    if drift and threshold is not None:
        _judge(pred, truth, threshold)


def _compare(pred: Path, truth: Path, at: Sequence[float], style: str, **options: Any) -> None:
    found = comparison.compare(pred, truth, at, **options)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    document = found.as_dict()
    if style == "json":
        render.document(document)
    elif style == "csv":
        click.echo(_csv(document), nl=False)
    else:
        render.echo(_text(document))
