"""`segserve executors list|add|rm`: short names."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import api
from segserve.cli import options, render


@click.group("executors")
def executors_command() -> None:
    """Short names of executors: list, add, remove."""


@executors_command.command("list")
@options.CONFIG
@options.JSON
def list_command(config: Path | None, as_json: bool) -> None:
    """Names that `segserve run NAME` knows: yours, and those that come with segserve."""
    with api.session(config=config) as session:
        known = session.executors()
    if as_json:
        render.document(known)
    else:
        rows = [(one["name"], one["title"] or one["description"], one["ref"], one["origin"]) for one in known]
        render.echo(render.table(("name", "", "stands for", "from"), rows))


@executors_command.command("add")
@click.argument("name")
@click.argument("ref")
@click.option("--description", default="", metavar="TEXT", help="For the list.")
@options.CONFIG
def add_command(name: str, ref: str, description: str, config: Path | None) -> None:
    """Let NAME stand for the executor REF, in your config.toml."""
    with api.session(config=config) as session:
        added = session.add_executor(name, ref, description=description)
    render.echo(f"{name} stands for {added['ref']}  ({added['file']})")


@executors_command.command("rm")
@click.argument("name")
@options.CONFIG
def rm_command(name: str, config: Path | None) -> None:
    """Forget NAME; one that comes with segserve is hidden."""
    with api.session(config=config) as session:
        removed = session.remove_executor(name)
    render.echo(f"{name} {removed['what']}  ({removed['file']})")
