"""`segserve gc`: the folders of jobs that have ended."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import api
from segserve.cli import options, render


@click.command("gc")
@click.option("--older-than", "days", type=options.Number(min=0), metavar="DAYS", help="Default: retention.days.")
@click.option("--max-gb", type=options.Number(min=0), metavar="GB", help="Default: retention.max_gb; 0 = any size.")
@click.option("--dry-run", is_flag=True, help="Say what would go.")
@options.JSON
@options.CONFIG
def gc_command(days: float | None, max_gb: float | None, dry_run: bool, as_json: bool, config: Path | None) -> None:
    """Remove what is kept of jobs that have ended: by age, then the oldest by size. Open jobs stay.

    Journal and MLflow keep what they know of them. Environments have a command of their own: segserve env gc.
    """
    with api.session(config=config, reporter=render.TerminalReporter()) as session:
        removed = session.collect_jobs(days, max_gb, dry_run=dry_run)
    if as_json:
        render.document({"removed": removed, "bytes": sum(one["bytes"] for one in removed)})
    else:
        verb = "would remove" if dry_run else "removed"
        lines = [f"{verb} {one['job']} ({one['bytes'] / 2**20:.1f} MiB): {one['why']}" for one in removed]
        render.echo("\n".join(lines) or "Nothing to remove.")
