"""`segserve ps`, `show`, `logs`, `fetch`, `cancel`: jobs of this home, or of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.cli import options, remote, render

_MOST_ERROR = 80  # characters in the table; `show` has all
_INDENT = "\n             "


def _session(server: str | None) -> Any:
    reporter = render.TerminalReporter()
    return remote.opened(server, None, reporter) if server else api.session(reporter=reporter)


@click.command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Finished jobs too.")
@click.option("-n", "limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many.")
@remote.SERVER
@options.JSON
def ps_command(everything: bool, limit: int, server: str | None, as_json: bool) -> None:
    """List jobs, newest first; collect those that have finished meanwhile."""
    with _session(server) as session:
        jobs = session.jobs(everything=everything, limit=limit)
    if as_json:
        render.document(jobs)
    elif not jobs:
        render.echo("No jobs." if everything else "No open jobs. (-a shows finished ones.)")
    else:
        rows = [
            (j["job"], j["state"], j["executor"], j["entry"], _images(j), render.moment(j["created"]), _outcome(j))
            for j in jobs
        ]
        render.echo(render.table(("job", "state", "executor", "entry", "images", "created", ""), rows, right=(4,)))


def _images(job: dict[str, Any]) -> str | None:
    """How many; of a running executor that says so, how many are done."""
    said = job["progress"]
    return f"{said['done']}/{said['total']}" if said else job["images"]


def _outcome(job: dict[str, Any]) -> str:
    text: str = (job["error"].splitlines() or [job["result"]])[0]
    return text if len(text) <= _MOST_ERROR else text[: _MOST_ERROR - 1] + "…"


@click.command("show")
@click.argument("job")
@remote.SERVER
@options.JSON
def show_command(job: str, server: str | None, as_json: bool) -> None:
    """Everything known about JOB (an id or its beginning)."""
    with _session(server) as session:
        facts = session.show(job)
    if as_json:
        render.document(facts)
        return
    facts = {**facts, "created": render.moment(facts["created"])}
    for name, value in facts.items():
        if value not in (None, "", {}, []):
            render.echo(f"{name.replace('_', ' '):<12} {render.plain(_text(value))}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return _INDENT.join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return _INDENT.join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value).replace("\n", _INDENT)


@click.command("logs")
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@remote.SERVER
def logs_command(job: str, follow: bool, server: str | None) -> None:
    """Print what MLflow and the executor of JOB have written.

    Of a job whose environment could not be built, what the build has written.
    """
    with _session(server) as session:
        for line in session.logs(job, follow=follow):
            click.echo(line, nl=False)


@click.command("fetch")
@click.argument("job")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder for the result (must not exist).  [default: segserve-results/DATE-EXECUTOR]")  # fmt: skip
@remote.SERVER
@options.JSON
def fetch_command(job: str, output: Path | None, server: str | None, as_json: bool) -> None:
    """Bring the result of JOB here. With --server, one that has not ended is waited for."""
    with _session(server) as session:
        folder = session.fetch(job, output)
    if as_json:
        render.document({"job": job, "result": str(folder)})
    else:
        render.echo(f"Result  {folder}")


@click.command("cancel")
@click.argument("jobs", nargs=-1, required=True)
@remote.SERVER
@options.JSON
def cancel_command(jobs: tuple[str, ...], server: str | None, as_json: bool) -> None:
    """Stop JOBS (ids or their beginnings) and everything that they started."""
    with _session(server) as session:
        stopped = [session.cancel(job) for job in jobs]
    if as_json:
        render.document(stopped)
    else:
        for job in stopped:
            render.echo(f"{job['job']} {job['state']}")
