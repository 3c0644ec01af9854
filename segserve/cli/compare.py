"""`segserve compare`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from segserve import comparison
from segserve.cli import options, render
from segserve.errors import InvalidParameters, UsageError, Verdict, writing
from segserve.evaluate.drawing import Picture
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
        parts = _steps(*map(float, text.split(":"))) if ":" in text else [float(part) for part in text.split(",")]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        parts = []
    if not parts or len(parts) > MOST_THRESHOLDS or not all(0 < part <= 1 for part in parts):
        raise InvalidParameters(
            f"--iou {text}: must be one IoU, several (0.5,0.75) or start:stop:step (0.5:0.95:0.05), within 0 … 1."
        )
    return tuple(sorted(set(parts)))


def _steps(start: float, stop: float, step: float) -> list[float]:
    # Adding up steps would give 0.6500000000000001, and an IoU of 13/20 would miss it.
    count = min(int((stop - start) / step + 1e-9), MOST_THRESHOLDS) + 1
    return [round(start + number * step, 10) for number in range(count)]


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
@click.option("--threshold", type=options.Number(0, 1), metavar="X", help="With --drift: exit code 7 over X (0).")
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
) -> int:
    """Compare the segmentation PRED with TRUTH.

    \b
    Either is an output.json, a result folder, COCO json, a label image or a folder of label images.
    """
    at = thresholds(iou)
    style = "json" if as_json else style
    if threshold is not None and not drift:
        raise UsageError("--threshold belongs to --drift.", hint="Add --drift, or leave --threshold out.")
    if images is not None and output is None:
        raise UsageError("--images is what overlays are drawn upon; -o DIR says where to write them.")
    verdict = None
    if drift:
        verdict = show_drift(comparison.drift(pred, truth), threshold or 0.0, style)
    else:
        _show(comparison.compare(pred, truth, at, by_label=by_label, max_detections=max_detections), style)
    if output is not None:
        _write_pictures(output, comparison.pictures(pred, truth, images, at[0]))
    if verdict is None:
        return 0
    render.error(verdict)  # not raised: with --json its document would stand behind ours
    return verdict.exit_code


def _show(found: comparison.Comparison, style: str) -> None:
    _say_notes(found.notes)
    document = found.as_dict()
    if style == "json":
        render.document(document)
    elif style == "csv":
        click.echo(_csv(document), nl=False)
    else:
        render.echo(_text(document))


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _text(document: dict[str, Any]) -> str:
    pooled, images, coco = document["pooled"], document["images"], document["coco"]
    head = f"{len(images)} image(s), {pooled['predicted']} predicted and {pooled['true']} true objects"
    rows = [[_number(one["iou"], 4), *(_number(one[name]) for name in SHOWN)] for one in pooled["at"]]
    right = range(len(SHOWN) + 1)
    blocks = [head, render.table(["IoU", *(HEADER.get(name, name) for name in SHOWN)], rows, right=right)]
    overall = [f"mean AP {_number(pooled['mean_ap'])}"]
    overall += [f"{name.replace('_', ' ')} {_number(pooled[name])}" for name in OVERALL]
    overall.append(f"COCO AP {_number(coco['ap'])}" if coco else "COCO AP – (predictions have no scores)")
    blocks.append(" · ".join(overall))
    if 1 < len(images) <= MOST_IMAGES:
        blocks.append(_table_of_images(document))
    elif len(images) > MOST_IMAGES:
        blocks.append("Image by image: --format csv")
    return "\n\n".join(blocks)


def _table_of_images(document: dict[str, Any]) -> str:
    first = document["pooled"]["at"][0]["iou"]
    header = ["image", "predicted", "true", f"AP@{first:g}", f"F1@{first:g}", "mean AP", *OVERALL]
    rows = [
        [
            one["image"],
            one["predicted"],
            one["true"],
            *(_number(value) for value in (one["at"][0]["ap"], one["at"][0]["f1"], one["mean_ap"])),
            *(_number(one[name]) for name in OVERALL),
        ]
        for one in document["images"]
    ]
    mean = document["mean"]
    means = (mean["at"][0]["ap"], mean["at"][0]["f1"], mean["mean_ap"], *(mean[name] for name in OVERALL))
    rows.append(["mean", "", "", *(_number(value) for value in means)])
    return render.table(header, rows, right=range(1, len(header)))


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"


def _csv(document: dict[str, Any]) -> str:
    """One row per image and threshold, then the pooled rows with an empty name."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "predicted", "true", "iou", *COLUMNS, "mean_ap", *OVERALL, "coco_ap"])
    coco = {one["iou"]: one["ap"] for one in (document["coco"] or {"at": []})["at"]}
    for one in (*document["images"], {"image": "", **document["pooled"]}):
        tail = [one["mean_ap"], *(one[name] for name in OVERALL)]
        for at in one["at"]:
            ranked = coco.get(at["iou"]) if one["image"] == "" else None
            row = [text_cell(one["image"]), one["predicted"], one["true"], at["iou"], *(at[name] for name in COLUMNS)]
            writer.writerow(["" if cell is None else cell for cell in (*row, *tail, ranked)])
    return stream.getvalue()


def show_drift(found: comparison.DriftReport, threshold: float, style: str) -> Verdict | None:
    """Print what has changed; what to raise when it is too much."""
    _say_notes(found.notes)
    document = found.as_dict(threshold)
    if style == "json":
        render.document(document)
    elif style == "csv":
        click.echo(_drift_csv(found), nl=False)
    else:
        header = ("image", "drift", "same", "changed", "lost", "new", "median IoU", "lowest IoU", "renamed")
        rows = [
            (
                one["image"],
                _number(one["drift"], 6),
                *(one[status] for status in ("same", "changed", "lost", "new")),
                _number(one["iou"]["q50"], 6),
                _number(one["iou"]["q0"], 6),
                one["renamed"],
            )
            for one in document["images"]
        ]
        render.echo(render.table(header, rows, right=range(1, len(header))))
    if not document["drifted"]:
        return None
    worst = max(zip(found.names, found.drifts, strict=True), key=lambda one: one[1].value)
    return Verdict(
        f"The result has changed: drift {worst[1].value:.6g} in {worst[0]}, over the threshold of {threshold:g}.",
        hint="--format csv lists every object; -o DIR draws what was lost and what is new.",
    )


def _drift_csv(found: comparison.DriftReport) -> str:
    """One row per object, those that did not change among them."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "status", "reference", "now", "iou", "score_change", "renamed"])
    for name, one in zip(found.names, found.drifts, strict=True):
        for change in one.changes:
            row = (change.status, change.reference, change.now, change.iou, change.score, int(change.renamed))
            writer.writerow([text_cell(name), *("" if cell is None else cell for cell in row)])
    return stream.getvalue()


def _write_pictures(folder: Path, pictures: Iterable[tuple[str, Picture | None]]) -> None:
    """NNN-<name>.png per image."""
    with writing(folder, "-o names another folder."):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (name, picture) in enumerate(pictures, 1):
        if picture is None:
            click.echo(f"note: {name} is too large to be drawn", err=True)
            continue
        with writing(folder, "-o names another folder."):
            comparison.save_picture(folder, number, name, picture)
    click.echo(f"overlays: {folder} (hits green, misses blue, false alarms orange)", err=True)
