"""`segserve sdk wheel`: the kit for executors."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import api
from segserve.cli import options, render


@click.group("sdk")
def sdk_command() -> None:
    """The kit for executors, segserve_sdk."""


@sdk_command.command("wheel")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=".", show_default=True,
              help="Folder for it.")  # fmt: skip
@options.JSON
def wheel_command(output: Path, as_json: bool) -> None:
    """Write the wheel of segserve_sdk, for a docker image or another machine.

    Environments that segserve builds get it by themselves when they ask for segserve_sdk.
    """
    written = api.sdk_wheel(output)
    if as_json:
        render.document(written)
    else:
        render.echo(f"{written['path']}\nsha256 {written['sha256']}")
