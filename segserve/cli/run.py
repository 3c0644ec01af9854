"""`segserve run` and `segserve info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.cli import browser, options, remote, render
from segserve.errors import InvalidParameters, UsageError

_MOST_ROWS = 40


def parameters_of(values: tuple[str, ...]) -> dict[str, str]:
    """What several `-P NAME=VALUE` say.

    Raises:
        InvalidParameters: one is not of this form, or a name is there twice.
    """
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise InvalidParameters(f"-P {value}: a parameter is given as NAME=VALUE.", hint="For example: -P size=12")
        if name in pairs:
            raise InvalidParameters(f"-P {name} is given twice.", hint="Leave one of them out.")
        pairs[name] = text
    return pairs


def _parameters(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    return parameters_of(values)


def _overlays(_: click.Context, __: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if value.isascii() and value.isdigit():
        return int(value)
    raise click.BadParameter(f"'{value}' is neither a number nor 'all'.")


@click.command("run", cls=options.SectionedCommand)
@click.argument("ref")
@click.argument("images", nargs=-1)
@click.option("-P", "parameters", multiple=True, callback=_parameters, metavar="NAME=VALUE",
              help="A parameter of the entry point (again for more); `segserve info REF` lists them.")  # fmt: skip
@click.option("-d", "--detach", is_flag=True, help="Return once it runs; `segserve ps` collects it later.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would run, and stop.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder for the result (must not exist).  [default: segserve-results/DATE-EXECUTOR]")  # fmt: skip
@click.option("--to", "exports", metavar="NAME,…", help="Also export: qupath, imagej, coco … (see export), or all.")
@click.option("--overlays", default="24", callback=_overlays, metavar="N|all", show_default=True,
              help="How many overlays to draw.")  # fmt: skip
@click.option("--experiment", metavar="NAME", help="MLflow experiment.  [default: segserve]")
@click.option("--keep", is_flag=True, help="Keep the job's checkout and staged images.")
@click.option("--cache/--no-cache", "reuse", default=None,
              help="With --server: take an earlier result of this very request, or never.")  # fmt: skip
@click.option("--open", "open_report", is_flag=True, help="Open the report in a browser.")
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Try N images, spread over the input.")
@options.planes
@click.option("--gpus", metavar="N|auto|none", default="auto", show_default=True, help="Whole GPUs to lease.")
@click.option("--no-wait", is_flag=True, help="Fail when no GPU is free, instead of waiting.")
@click.option("--timeout", type=options.Number(min=0), metavar="SECONDS", help="Time limit of the executor.")
@click.option("--memory", type=options.Number(min=0.1), metavar="GB", help="Memory limit (docker).")
@click.option("--cpus", type=options.Number(min=0.1), metavar="N", help="CPU limit (docker).")
@click.option("-v", "--verbose", is_flag=True, help="Show what builds and the executor print.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and the result.")
@options.reference
@options.environment
@remote.SERVER
@options.CONFIG
@options.JSON
def run_command(
    ref: str,
    images: tuple[str, ...],
    *,
    dry_run: bool,
    open_report: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    server: str | None,
    **chosen: Any,
) -> int:
    """Run the executor REF on IMAGES (files, folders, patterns).

    \b
    REF = <repository>[@<revision>][#<entry point>]
          <repository>[@<revision>]#<folder>:[<entry point>]
    A repository is a URL (https, ssh), user@host:path, or a folder (. or ./executor).

    \b
    segserve run . examples/images -P min_area=30
    segserve run https://host/group/executor@v1.2#omnipose cells.tif --channel 0 --first 4
    """
    reporter = render.TerminalReporter(-1 if quiet else int(verbose))
    if server:
        remote.refuse_local_options(click.get_current_context())
        with remote.opened(server, chosen.pop("config"), reporter) as elsewhere:
            done = elsewhere.run(ref, images, **chosen)
    else:
        if chosen["reuse"]:
            raise UsageError("--cache needs --server.", hint="A run on this machine always runs.")
        with api.session(config=chosen.pop("config"), reporter=reporter) as session:
            request = session.request(ref, images, **chosen)
            if dry_run:
                plan = session.plan(request)
                render.document(plan) if as_json else render.echo(_plan_text(plan))
                return 0
            done = session.run(request)
    if isinstance(done, api.Result):
        for warning in done.warnings:
            if warning not in reporter.said:
                reporter.warn(warning)
    if as_json:
        render.document(done.as_json())
    elif isinstance(done, api.Started):
        render.echo(remote.started_text(server, done.job_id) if server else _started_text(done))
    else:
        render.echo(_result_text(done, elsewhere=bool(server)))
    if open_report and isinstance(done, api.Result):
        _open(done)
    return 0


def _open(result: api.Result) -> None:
    report = result.folder / "report" / "index.html"
    if report.exists():  # an entry point without images has none
        browser.show(report.absolute().as_uri())


def _started_text(started: api.Started) -> str:
    return "\n".join(
        (
            f"Job {started.job_id} runs.",
            f"Result  {started.folder} (when it has ended)",
            f"Next    segserve logs -f {started.job_id}  ·  segserve ps  ·  segserve cancel {started.job_id}",
        )
    )


def _result_text(result: api.Result, *, elsewhere: bool) -> str:
    lines = []
    report = result.folder / "report" / "index.html"
    if result.images:
        rows = [(_image_name(image), count) for image, count in zip(result.images, result.counts, strict=True)]
        shown = rows if len(rows) <= _MOST_ROWS else [*rows[: _MOST_ROWS // 2], ("…", ""), *rows[-_MOST_ROWS // 2 :]]
        lines += [render.table(("image", "objects"), shown, right=(1,)), ""]
        lines.append(f"{_number(sum(result.counts), 'object')} in {_number(len(result.images), 'image')}")
    if result.findings:
        found = _number(len(result.findings), "remark")
        lines.append(f"{found} on the polygons: {result.folder / 'validation.json'}")
    lines += [f"Result  {result.folder}", f"MLflow  {result.run_url}"]
    ways = [f"open {report}"] if report.exists() else []
    ways += [] if elsewhere else ["segserve ui"]  # that shows the runs of this machine
    lines += [f"Next    {'  ·  '.join(ways)}"] if ways else []
    return "\n".join(lines)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _image_name(image: Any) -> str:
    axes = [f"{axis}{getattr(image, axis)}" for axis in ("t", "z", "c") if getattr(image, axis) is not None]
    return " ".join([Path(image.source).name, *axes])


def _plan_text(plan: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' '):<12} {_plain(value)}" for name, value in plan.items())


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return render.plain(", ".join(f"{key}={item}" for key, item in value.items())) or "–"
    if isinstance(value, (list, tuple)):
        return render.plain("\n             ".join(str(item) for item in value)) or "–"
    return render.plain(str(value)) if value not in (None, "") else "–"
