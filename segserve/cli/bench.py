"""`segserve bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.bench import EXPERIMENT, RANKINGS, Benchmark, cells, split_values
from segserve.cli import options, render
from segserve.cli.run import parameters_of
from segserve.errors import Verdict


def _grid(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Sequence[str]]:
    return {name: split_values(text) for name, text in parameters_of(values).items()}


@click.command("bench", cls=options.SectionedCommand)
@click.argument("executors", nargs=-1, required=True, metavar="EXECUTOR…")
@click.option("--images", required=True, type=click.Path(exists=True, path_type=Path), metavar="DIR",
              help="The images, as `run` takes them.")  # fmt: skip
@click.option("--truth", required=True, type=click.Path(exists=True, path_type=Path), metavar="DIR",
              help="What is in them, as `compare` takes it: label images, output.json, COCO.")  # fmt: skip
@click.option("-P", "parameters", multiple=True, callback=_grid, metavar="NAME=A,B,C",
              help="Values of a parameter; all combinations are tried.")  # fmt: skip
@click.option("--by", "rank", type=click.Choice(list(RANKINGS)), default="ap", show_default=True,
              help="What is ranked by.")  # fmt: skip
@click.option("--iou", type=options.Number(0, 1, min_open=True), default=0.5, show_default=True, metavar="X",
              help="From which IoU on an object is found.")  # fmt: skip
@click.option("--pictures", type=click.IntRange(min=0), default=8, show_default=True, metavar="N",
              help="Overlays of disagreement per candidate.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder for all of it (must not exist).  [default: segserve-results/DATE-bench]")  # fmt: skip
@click.option("--experiment", metavar="NAME", default=EXPERIMENT, show_default=True, help="MLflow experiment.")
@click.option("--channel", metavar="NAME|N", help="Which channel of multi-channel images (N from 0).")
@click.option("--z", metavar="max|mean|N|each", help="What to do with z planes: project, choose, or take each.")
@click.option("--gpus", metavar="N|auto|none", default="auto", show_default=True, help="Whole GPUs to lease.")
@click.option("--timeout", type=options.Number(min=0), metavar="SECONDS", help="Time limit of each candidate.")
@click.option("-v", "--verbose", is_flag=True, help="Show what builds and executors print.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and the table.")
@options.reference
@options.environment
@options.CONFIG
@options.JSON
def bench_command(executors: tuple[str, ...], *, verbose: bool, quiet: bool, as_json: bool, **chosen: Any) -> int:
    """Rank executors, commits, models or parameter values on one annotated set.

    Every EXECUTOR (a REF, as `run` takes it) runs with every combination of the values that -P names and it knows.

    \b
    segserve bench . --images images/ --truth labels/ -P method=local,otsu,li
    segserve bench .@v1 .@v2 .#executors/cellpose:main --images images/ --truth labels/
    """
    reporter = render.TerminalReporter(-1 if quiet else int(verbose))
    with api.session(config=chosen.pop("config"), reporter=reporter) as session:
        done = session.bench(executors, **chosen)
    render.document(done.as_dict()) if as_json else render.echo(_text(done))
    if done.succeeded:
        return 0
    verdict = Verdict("No candidate gave a result.", hint="The table says why; `segserve logs JOB` has the logs.")
    render.error(verdict)  # not raised: with --json its document would stand behind ours
    return verdict.exit_code


def _text(done: Benchmark) -> str:
    header, rows = cells(done)
    right = [column for column, name in enumerate(header) if name not in ("candidate", "error")]
    return "\n".join(
        (
            render.table(header, rows, right=right),
            "",
            f"{done.count} image(s), {done.true_objects} true objects, data {done.data[:16]}",
            f"Result  {done.folder}",
            f"MLflow  {done.run_url}",
            f"Next    open {done.folder / 'bench.html'}",
        )
    )
