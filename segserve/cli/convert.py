"""`segserve export` and `segserve import`: to other programs and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve.cli import render
from segserve.cli.options import JSON
from segserve.findings import Finding

_PATH = click.Path(path_type=Path)
_KINDS = ("labels", "coco", "qupath", "imagej", "cvat", "label-studio", "cellpose")


def _images(command: Any) -> Any:
    """Which images, and which planes of them: as in `segserve run`."""
    options = (
        click.option("--images", multiple=True, metavar="PATH", help="Images, or a result folder (repeatable)."),
        click.option("--channel", metavar="NAME|N", help="The channel that was segmented."),
        click.option("--z", metavar="each|max|mean|N", help="Slices."),
        click.option("--series", metavar="NAME|N|all", help="Series of files with several."),
        click.option("--frames", metavar="A:B", help="Time points, from 0."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _selection(channel: str | None, z: str | None, series: str | None, frames: str | None) -> Any:
    from segserve.inputs import Selection

    return Selection(channel=channel, z=z, series=series, frames=frames)


@click.command("export")
@click.argument("result")
@click.option("--to", "to", required=True, metavar="NAME,…", help="Targets with commas between them, or all.")
@click.option("-o", "--output", type=_PATH, metavar="DIR", help="Folder.  [default: exports/ in the result folder]")
@_images
@JSON
def export_command(
    result: str,
    to: str,
    output: Path | None,
    images: tuple[str, ...],
    channel: str | None,
    z: str | None,
    series: str | None,
    frames: str | None,
    as_json: bool,
) -> None:
    """Write RESULT for other programs: qupath, imagej, coco, labels, cvat, label-studio, omero, napari.

    RESULT is a result folder, a job, or an output.json with --images. Every target gets a folder of its own; images of
    one file stay one file.
    """
    from segserve import conversion
    from segserve.errors import writing
    from segserve.exporters import export_all, targets

    names = targets(to)
    path, staged = _found(result)
    loaded = conversion.load(path, images, _selection(channel, z, series, frames), staged=staged)
    folder = output or loaded.exports
    with writing(folder, "-o names another folder."):
        written = export_all(loaded.results, names, folder)
    if as_json:
        paths = [str(path) for path in written.paths]
        render.document({"folder": str(folder), "paths": paths, "findings": [str(f) for f in written.findings]})
    else:
        for path in written.paths:
            render.echo(str(path))
    _say(written.findings)


def _found(result: str) -> tuple[Path, Path | None]:
    """The path, or the result folder of a job of that name and what is known about its images."""
    path = Path(result)
    if path.exists():
        return path, None
    from segserve import api
    from segserve.errors import NotFound

    with api.session() as session:
        facts = session.show(result)
        staged = session.ctx.home.job(facts["job"]).inputs_map
    if not facts["result"]:
        raise NotFound(
            f"Job {facts['job']} has no result: it is {facts['state']}.",
            hint=f"segserve show {facts['job']} says more.",
        )
    return Path(facts["result"]), staged


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--from", "kind", required=True, type=click.Choice(_KINDS), help="What FILES are.")
@_images
@click.option("--label", default="Cell", show_default=True, help="Class of objects that have none.")
@click.option("-o", "--output", type=_PATH, default="output.json", show_default=True, metavar="FILE", help="Where to.")
@JSON
def import_command(
    files: tuple[Path, ...],
    kind: str,
    images: tuple[str, ...],
    channel: str | None,
    z: str | None,
    series: str | None,
    frames: str | None,
    label: str,
    output: Path,
    as_json: bool,
) -> None:
    """Read FILES of other programs and write them as an output.json for the same images.

    Files are matched to images by their names; --images says which images there are, in order.
    """
    from segserve import conversion
    from segserve.errors import UsageError

    if not images:
        raise UsageError("The images are missing.", hint="Name them, or a result folder, with --images.")
    known = conversion.images_of(images, _selection(channel, z, series, frames))
    count, findings = conversion.import_document(files, kind, known, output, label=label)
    if as_json:
        facts = {"output": str(output), "images": len(known), "objects": count}
        render.document({**facts, "findings": [str(finding) for finding in findings]})
    else:
        render.echo(f"{output}: {count} objects in {len(known)} images")
    _say(findings)


def _say(findings: tuple[Finding, ...]) -> None:
    for finding in findings[: render.MAX_FINDINGS]:
        click.echo(str(finding), err=True)
    if len(findings) > render.MAX_FINDINGS:
        click.echo(f"… and {len(findings) - render.MAX_FINDINGS} more", err=True)
