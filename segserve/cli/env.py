"""`segserve env list|build|rm|gc`: built environments."""

from __future__ import annotations

from typing import Any

import click

from segserve import api
from segserve.cli import render
from segserve.cli.run import repository_options


@click.group("env")
def env_command() -> None:
    """List, build and remove environments."""


@env_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def list_command(as_json: bool) -> None:
    """Environments that are built, newest use first."""
    with api.session() as session:
        built = session.environments()
    if as_json:
        render.document(built)
        return
    rows = [(e["key"], e["kind"], e["python"], e["packages"], f"{e['bytes'] / 1e6:.0f} MB", e["used"]) for e in built]
    header = ("key", "kind", "python", "packages", "size", "last used")
    render.echo(render.table(header, rows, right=(3, 4)) if rows else "No environments.")


@env_command.command("build")
@click.argument("ref")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the build.")
@repository_options
def build_command(ref: str, *, verbose: bool, as_json: bool, **options: Any) -> None:
    """Build the environment of REF now, so that a later run starts at once."""
    with api.session(config=options.pop("config"), reporter=render.TerminalReporter(int(verbose))) as session:
        built = session.build_environment(session.request(ref, (), **options))
    if as_json:
        render.document(built)
    else:
        render.echo(f"{built['key']}  {built['location']}  ({len(built['packages'])} packages)")


@env_command.command("rm")
@click.argument("keys", nargs=-1, required=True)
def rm_command(keys: tuple[str, ...]) -> None:
    """Remove environments by key (or its beginning)."""
    with api.session() as session:
        for key in keys:
            render.echo(f"removed {session.remove_environment(key)}")


@env_command.command("gc")
@click.option("--older-than", "days", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="DAYS")
def gc_command(days: float) -> None:
    """Remove environments that no open job uses and that nobody used for DAYS days, and what dead builds left."""
    with api.session() as session:
        removed = session.collect_garbage(days)
    render.echo("\n".join(f"removed {key}" for key in removed) or "Nothing to remove.")
