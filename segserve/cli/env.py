"""`segserve env list|build|key|rm|gc`: built environments."""

from __future__ import annotations

from typing import Any

import click

from segserve import api
from segserve.cli import options, render


@click.group("env")
def env_command() -> None:
    """List, build and remove environments."""


@env_command.command("list")
@options.JSON
def list_command(as_json: bool) -> None:
    """Environments that are built, newest use first."""
    with api.session() as session:
        built = session.environments()
    if as_json:
        render.document(built)
        return
    header = ("key", "kind", "from", "python", "packages", "size", "last used")
    rows = [
        (e["key"], e["kind"], e["source"], e["python"], e["packages"], _size(e["bytes"]), render.moment(e["used"]))
        for e in built
    ]
    render.echo(render.table(header, rows, right=(4, 5)) if rows else "No environments.")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@env_command.command("build", cls=options.SectionedCommand)
@click.argument("ref")
@click.option("-v", "--verbose", is_flag=True, help="Show what the build prints.")
@options.reference
@options.environment
@options.CONFIG
@options.JSON
def build_command(ref: str, *, verbose: bool, as_json: bool, **chosen: Any) -> None:
    """Build the environment of REF now, so that a later run starts at once."""
    with api.session(config=chosen.pop("config"), reporter=render.TerminalReporter(int(verbose))) as session:
        built = session.build_environment(session.request(ref, (), **chosen))
    if as_json:
        render.document(built)
    else:
        render.echo(f"{built['key']}  {built['location']}  ({len(built['packages'])} packages)")


@env_command.command("key", cls=options.SectionedCommand)
@click.argument("ref", default=".")
@options.reference
@options.environment
@options.CONFIG
def key_command(ref: str, **chosen: Any) -> None:
    """Print the content key of REF's environment on this machine, for caches of CI; nothing is built."""
    with api.session(config=chosen.pop("config"), reporter=render.TerminalReporter(-1)) as session:
        render.echo(session.environment_key(session.request(ref, (), **chosen)))


@env_command.command("rm")
@click.argument("keys", nargs=-1, required=True)
@options.JSON
def rm_command(keys: tuple[str, ...], as_json: bool) -> None:
    """Remove environments by key (or its beginning); those that an open job uses stay."""
    with api.session() as session:
        _removed([session.remove_environment(key) for key in keys], as_json)


@env_command.command("gc")
@click.option("--older-than", "days", type=options.Number(min=0), default=30.0, show_default=True, metavar="DAYS")
@options.JSON
def gc_command(days: float, as_json: bool) -> None:
    """Remove environments that no open job uses and that nobody used for DAYS days, and what dead builds left."""
    with api.session(reporter=render.TerminalReporter()) as session:
        _removed(session.collect_garbage(days), as_json)


def _removed(keys: list[str], as_json: bool) -> None:
    if as_json:
        render.document({"removed": keys})
    else:
        render.echo("\n".join(f"removed {key}" for key in keys) or "Nothing to remove.")
