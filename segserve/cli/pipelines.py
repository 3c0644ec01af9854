"""`segserve pipelines`: what the processing service has, and building what it needs."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import api
from segserve.cli import options, render
from segserve.errors import NotFound, did_you_mean


@click.command("pipelines")
@click.argument("slugs", nargs=-1, metavar="[SLUG]...")
@click.option(
    "--build", is_flag=True, help="Build the environments of these pipelines; without a SLUG, of all of yours."
)
@options.CONFIG
@options.JSON
def pipelines_command(slugs: tuple[str, ...], build: bool, config: Path | None, as_json: bool) -> None:
    """Pipelines that `segserve serve` has: chains of config.toml, registered executors, pipelines in Python.

    Ready are those whose environments are built.
    """
    with api.session(config=config, reporter=render.TerminalReporter()) as session:
        if build:
            for slug in slugs or tuple(session.ctx.settings.pipelines):
                session.build_pipeline(slug)
        known = session.pipeline_rows()
    slugs_known = [one["slug"] for one in known]
    for slug in slugs:
        if slug not in slugs_known:
            raise NotFound(f"There is no pipeline '{slug}'.", hint=did_you_mean(slug, slugs_known))
    chosen = [one for one in known if not slugs or one["slug"] in slugs]
    if as_json:
        render.document(chosen)
        return
    rows = [
        (one["slug"], one["name"], one["version"], " → ".join(one["stages"]), "ready" if one["ready"] else "not built")
        for one in chosen
    ]
    render.echo(render.table(("slug", "", "version", "stages", ""), rows) if rows else "No pipelines.")
