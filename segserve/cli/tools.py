"""`segserve images`, `validate`, `ui`, `doctor`."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import api, findings
from segserve.cli import render
from segserve.errors import Verdict

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.command("images")
@click.argument("files", nargs=-1, required=True)
@JSON
def images_command(files: tuple[str, ...], as_json: bool) -> None:
    """List series, time points, planes, channels and pixel size of FILES."""
    described = api.images(files)
    if as_json:
        render.document(described)
        return
    header = ("file", "series", "T", "Z", "C", "channels", "size", "type", "µm/pixel")
    rows = [
        (
            entry["file"],
            entry["series"],
            entry["t"],
            entry["z"],
            entry["c"],
            ", ".join(entry["channels"]),
            f"{entry['width']}×{entry['height']}",
            entry["dtype"],
            "×".join(f"{size:g}" for size in entry["pixel_size_um"] or ()),
        )
        for entry in described
    ]
    render.echo(render.table(header, rows, right=(2, 3, 4)))


@click.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "style", type=click.Choice(["text", "json", "junit"]), default="text", show_default=True)
def validate_command(files: tuple[Path, ...], style: str) -> None:
    """Check that each of FILES is a valid output.json; exit code 7 when one is not."""
    found = api.validate(files)
    if style == "json":
        click.echo(findings.as_json(found))
    elif style == "junit":
        click.echo(findings.as_junit(found, "segserve validate"))
    else:
        render.echo(findings.as_text(found) or f"{len(files)} file(s) valid")
    bad = findings.errors_in(found)
    if bad:
        raise Verdict(f"{len(bad)} error(s) found.")


@click.command("ui")
@click.option("--stop", is_flag=True, help="Stop the embedded tracking server.")
@click.option("--no-open", is_flag=True, help="Only print the address.")
def ui_command(stop: bool, no_open: bool) -> None:
    """Open the MLflow tracking UI (starts the embedded server when needed)."""
    with api.session() as session:
        if stop:
            render.echo("stopped" if session.stop_ui() else "was not running")
            return
        address = session.ui()
    render.echo(address)
    if not no_open:
        click.launch(address)


@click.command("doctor")
@JSON
def doctor_command(as_json: bool) -> int:
    """Check what segserve needs on this machine: git, interpreters, GPUs, docker, disk, package index."""
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
