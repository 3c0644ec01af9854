"""`segserve ps`, `show`, `logs`, `cancel`: jobs of this home."""

from __future__ import annotations

from typing import Any

import click

from segserve import api
from segserve.cli import render

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")


@click.command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Finished jobs too.")
@click.option("-n", "limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@JSON
def ps_command(everything: bool, limit: int, as_json: bool) -> None:
    """List jobs; collect those that have finished meanwhile."""
    with api.session() as session:
        jobs = session.jobs(everything=everything, limit=limit)
    if as_json:
        render.document(jobs)
    elif not jobs:
        render.echo("No jobs." if everything else "No open jobs. (-a shows finished ones.)")
    else:
        rows = [(j["job"], j["state"], j["executor"], j["entry"], j["images"], j["created"], j["error"]) for j in jobs]
        render.echo(render.table(("job", "state", "executor", "entry", "images", "created", ""), rows, right=(4,)))


@click.command("show")
@click.argument("job")
@JSON
def show_command(job: str, as_json: bool) -> None:
    """Everything known about JOB (an id or its beginning)."""
    with api.session() as session:
        facts = session.show(job)
    if as_json:
        render.document(facts)
        return
    for name, value in facts.items():
        if value not in (None, "", {}, []):
            render.echo(f"{name.replace('_', ' '):<12} {_text(value)}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n             ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list):
        return "\n             ".join(str(item) for item in value)
    return str(value)


@click.command("logs")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def logs_command(job: str, follow: bool) -> None:
    """Print what MLflow and the executor of JOB have written."""
    with api.session() as session:
        for chunk in session.logs(job, follow=follow):
            click.echo(chunk, nl=False)


@click.command("cancel")
@click.argument("jobs", nargs=-1, required=True)
@JSON
def cancel_command(jobs: tuple[str, ...], as_json: bool) -> None:
    """Stop JOBS and everything that they started."""
    with api.session() as session:
        stopped = [session.cancel(job) for job in jobs]
    if as_json:
        render.document(stopped)
    else:
        for job in stopped:
            render.echo(f"{job['job']} {job['state']}")
