"""`segserve executors list|add|rm`: short names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.cli import options, remote, render


@click.group("executors")
def executors_command() -> None:
    """Short names of executors: list, add, remove."""


def _session(server: str | None, config: Path | None) -> Any:
    return remote.opened(server, config, render.TerminalReporter()) if server else api.session(config=config)


@executors_command.command("list")
@click.option("--type", "algorithm_type", default="", metavar="TYPE", help="Algorithm modules of one type only.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Algorithm modules with this tag (again for more).")
@remote.SERVER
@options.CONFIG
@options.JSON
def list_command(
    algorithm_type: str, tags: tuple[str, ...], server: str | None, config: Path | None, as_json: bool
) -> None:
    """Names that `segserve run NAME` knows: yours, and those that come with segserve."""
    with _session(server, config) as session:
        known = session.executors(algorithm_type=algorithm_type, tags=tags)
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
    if added["before"] not in ("", added["ref"]):
        render.say(f"note: it stood for {added['before']} before.")


@executors_command.command("rm")
@click.argument("name")
@options.CONFIG
def rm_command(name: str, config: Path | None) -> None:
    """Forget NAME; one that comes with segserve is hidden."""
    with api.session(config=config) as session:
        removed = session.remove_executor(name)
    render.echo(f"{name} {removed['what']}  ({removed['file']})")
