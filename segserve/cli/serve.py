"""`segserve serve`: the queue at work, behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve import config as settings
from segserve.cli import render


@click.command("serve")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on, 0 for any.  [default: 8000]")
@click.option("--root-path", help="Path below which a proxy shows it.")
@click.option("--config", type=click.Path(path_type=Path), help="Another config.toml.")
def serve_command(config: Path | None, **given: Any) -> None:
    """Work on the queue, and take jobs by HTTP. Jobs go on when it is stopped.

    Without tokens it listens on this machine only and is yours alone.
    """
    from segserve.server import run

    with api.session(config=config) as session:
        flags = {name: value for name, value in given.items() if value is not None}
        chosen = settings.with_flags(session.ctx.settings.server, flags)
        run.serve(session, chosen, started=lambda url: render.say(f"segserve listens on {url}  (docs: {url}/docs)"))
