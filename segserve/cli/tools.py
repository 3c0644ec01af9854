"""`segserve images`, `ui`, `doctor`."""

from __future__ import annotations

from typing import Any

import click

from segserve import api
from segserve.cli import browser, options, render


@click.command("images")
@click.argument("files", nargs=-1, required=True)
@options.JSON
def images_command(files: tuple[str, ...], as_json: bool) -> None:
    """List series, time points, planes, channels and pixel size of FILES (or folders, patterns).

    The numbers are what --series, --frames, --z and --channel of `segserve run` choose from.
    """
    described, notes = api.inspect_images(files)
    if as_json:
        render.document(described)
    else:
        header = ("file", "series", "name", "T", "Z", "C", "channels", "size", "type", "µm/pixel")
        rows = [_series_row(file, series) for file in described for series in file["series"]]
        render.echo(render.table(header, rows, right=(3, 4, 5)))
    for note in notes:
        render.say(f"note: {render.plain(note)}")


def _series_row(file: dict[str, Any], series: dict[str, Any]) -> tuple[Any, ...]:
    return (
        file["file"],
        series["index"],
        series["name"],
        series["T"],
        series["Z"],
        series["C"],
        ", ".join(series["channels"]) or ("colour" if series["colour"] else ""),
        f"{series['columns']}×{series['rows']}",
        series["dtype"],
        "×".join(f"{size:g}" for size in series["pixel_size_um"] or ()),
    )


@click.command("ui")
@click.option("--stop", is_flag=True, help="Stop the embedded tracking server.")
@click.option("--no-open", is_flag=True, help="Only print the address.")
def ui_command(stop: bool, no_open: bool) -> None:
    """Open the MLflow tracking UI with all runs (starts the embedded server when needed)."""
    with api.session() as session:
        if stop:
            render.echo("stopped" if session.stop_ui() else "was not running")
            return
        address = session.ui()
    render.echo(address)
    if not no_open:
        browser.show(address)


@click.command("doctor")
@options.JSON
def doctor_command(as_json: bool) -> int:
    """Check what segserve needs here: git, disk, interpreters, package index, GPUs, docker."""
    with api.session() as session:
        checks = session.doctor()
    if as_json:
        render.document(checks)
    else:
        marks = {"ok": render.style("✓", fg="green"), "note": "·", "problem": render.style("✗", fg="red")}
        for check in checks:
            hint = f"\n    {check['hint']}" if check["hint"] else ""
            render.echo(f"{marks[check['status']]} {check['name']:<14} {check['message']}{hint}")
    return 6 if any(check["status"] == "problem" for check in checks) else 0
