"""`segserve tokens add|list|rm`: who may call the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.cli import options, render


@click.group("tokens")
def tokens_command() -> None:
    """Tokens of the service: list, add, remove. What is removed is refused at once."""


@tokens_command.command("add")
@click.argument("name")
@click.option("--user", default="", metavar="USER", help="Whose jobs they are.  [default: NAME]")
@click.option("--scopes", default="submit,read", show_default=True, help="Of submit, read, admin; by commas.")
@click.option("--expires", default="", metavar="WHEN", help="90d, 12h, 4w, or a day: 2027-03-31.  [default: never]")
@options.CONFIG
@options.JSON
def add_command(name: str, scopes: str, config: Path | None, as_json: bool, **words: Any) -> None:
    """Make a token and print it: this once, only its hash is kept."""
    with api.session(config=config) as session:
        made = session.add_token(name, scopes=[scope.strip() for scope in scopes.split(",") if scope.strip()], **words)
    if as_json:
        render.document(made)
        return
    render.echo(made["token"])
    until = f", until {render.moment(made['expires'])}" if made["expires"] else ""
    render.say(f"'{name}' may {', '.join(made['scopes'])} as user '{made['user']}'{until}. It is not shown again.")
    render.say("Send it as 'Authorization: Bearer TOKEN', or type it on the page of the service.")


@tokens_command.command("list")
@options.CONFIG
@options.JSON
def list_command(config: Path | None, as_json: bool) -> None:
    """All tokens, without their texts."""
    with api.session(config=config) as session:
        known = session.tokens()
    if as_json:
        render.document(known)
        return
    rows = [
        (
            *(one["name"], one["id"], one["user"], ", ".join(one["scopes"]), render.moment(one["created"])),
            (render.moment(one["expires"]) if one["valid"] else "expired") if one["expires"] else "never ends",
        )
        for one in known
    ]
    render.echo(render.table(("name", "id", "user", "scopes", "since", "until"), rows))


@tokens_command.command("rm")
@click.argument("name")
@options.CONFIG
def rm_command(name: str, config: Path | None) -> None:
    """Take a token away, by its name or id."""
    with api.session(config=config) as session:
        gone = session.remove_token(name)
        left = session.tokens()
        file = session.ctx.home.tokens
    render.echo(f"{gone['name']} ({gone['user']}) is refused from now on")
    if not left:
        render.say(f"No token is left, so nobody gets in. Remove {file} and the service is yours alone again.")
