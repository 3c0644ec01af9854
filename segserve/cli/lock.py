"""`segserve lock` and `segserve replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.cli import compare, options, render
from segserve.cli.run import parameters_of
from segserve.errors import Verdict


@click.command("lock", cls=options.SectionedCommand)
@click.argument("ref", default=".")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here instead of beside the MLProject.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the build prints.")
@options.reference
@options.environment
@options.CONFIG
def lock_command(ref: str, *, output: Path | None, verbose: bool, config: Path | None, **chosen: Any) -> None:
    """Write segserve.lock: the exact packages of REF's environment, with hashes, for this platform.

    Builds the environment if need be. Later runs install exactly this, until the files that it was made from change;
    `segserve check` says when they have. Platforms that an older lock has are kept.
    """
    with api.session(config=config, reporter=render.TerminalReporter(int(verbose))) as session:
        path, count = session.lock(session.request(ref, (), **chosen), output)
    render.echo(f"{path}: {count} packages")


@click.command("replay", cls=options.SectionedCommand)
@click.argument("what", metavar="JOB|OUTPUT.JSON")
@click.option("--images", multiple=True, help="The images, if they are not where they were (repeatable).")
@options.planes
@click.option("--entry", metavar="NAME", help="The entry point, where nothing says which it was.")
@click.option("-P", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter, where nothing says it.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the new result.")
@click.option("--threshold", type=options.Number(0, 1), default=0.0, show_default=True, help="Drift that is allowed.")
@click.option("--no-lock", is_flag=True, help="Build the environment from what its files say today.")
@click.option("--offline", is_flag=True, help="Ask no remote.")
@click.option("--gpus", default="auto", show_default=True, help="How many GPUs, or which.")
@click.option(
    "--env", "kind", type=click.Choice(["uv", "conda", "docker", "local"]), help="Another kind of environment."
)
@click.option("-v", "--verbose", is_flag=True, help="Show what builds and the executor print.")
@options.CONFIG
@options.JSON
def replay_command(
    what: str, *, parameters: tuple[str, ...], threshold: float, verbose: bool, config: Path | None, as_json: bool,
    images: tuple[str, ...], **chosen: Any,
) -> None:  # fmt: skip
    """Run an old result again and say what has changed: same commit, packages of its lock, same images.

    JOB is one of `segserve ps --all`. An OUTPUT.JSON is traced back by the commit in its `model`, and by the
    results.json and segserve.lock beside it. Exit code 7 when the drift is over the threshold.
    """
    with api.session(config=config, reporter=render.TerminalReporter(int(verbose))) as session:
        done = session.replay(what, images, parameters=parameters_of(parameters), **chosen)
    document = {
        "format": "segserve-replay",
        "version": 1,
        "repository": done.origin.pin.repo,
        "commit": done.origin.pin.sha,
        "locked": done.origin.lock is not None,
        "result": str(done.result.folder),
        "notes": list(done.notes),
        "drift": done.drift.as_dict(threshold),
    }
    for note in done.notes:
        render.say(f"note: {note}")
    if as_json:
        render.document(document)
        verdict = Verdict("The result has changed.") if done.drift.largest > threshold else None
    else:
        render.say(f"{done.origin.pin}  →  {done.result.folder}")
        verdict = compare.show_drift(done.drift, threshold, "text")
        if verdict is None:
            render.echo(f"The same, within {threshold:g}.")
    if verdict is not None:
        raise verdict
