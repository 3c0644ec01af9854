"""`segserve run` and `segserve info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segserve import api
from segserve.cli import render
from segserve.errors import InvalidParameters


def _parameters(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise InvalidParameters(f"-P {value}: a parameter is given as name=value.")
        if name in pairs:
            raise InvalidParameters(f"-P {name} is given twice.")
        pairs[name] = text
    return pairs


def _overlays(_: click.Context, __: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    if value.isdigit():
        return int(value)
    raise click.BadParameter("a number or 'all'.")


def repository_options(command: Any) -> Any:
    """Options that say which commit, shared by `run` and `info`."""
    for option in reversed(
        (
            click.option("--rev", metavar="REV", help="Branch, tag or commit, without parsing."),
            click.option("--entry", metavar="NAME", help="Entry point, without parsing."),
            click.option("--offline", is_flag=True, help="Use the last known commit; ask no remote."),
            click.option("--committed", is_flag=True, help="Of a local work tree, run HEAD without your changes."),
            click.option("--allow-unreachable", is_flag=True, help="Accept a commit that no branch or tag contains."),
            click.option("--submodules", is_flag=True, help="Check out submodules too."),
            click.option("--env", "kind", type=click.Choice(["uv", "conda", "docker", "local"]), help="Force a kind."),
            click.option("--python", metavar="X.Y", help="Python version instead of the file's."),
            click.option("--config", type=click.Path(path_type=Path), help="Another config.toml."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
        )
    ):
        command = option(command)
    return command


@click.command("run")
@click.argument("ref")
@click.argument("images", nargs=-1)
@click.option("-P", "parameters", multiple=True, callback=_parameters, metavar="KEY=VALUE", help="A parameter.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder for the result (must not exist).")
@click.option("-d", "--detach", is_flag=True, help="Return once it runs; `segserve ps` collects it later.")
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Try N images spread over the input.")
@click.option("--dry-run", is_flag=True, help="Say what would run, and stop.")
@click.option("--channel", metavar="NAME|N", help="Which channel of multi-channel images.")
@click.option("--z", metavar="max|mean|N|each", help="What to do with z planes.")
@click.option("--series", metavar="NAME|N", help="Which series of a file with several.")
@click.option("--frames", metavar="A:B", help="Which time points.")
@click.option("--depth", type=click.Choice(["8", "16"]), help="Grey levels of the staged images.")
@click.option("--gpus", metavar="N|auto|none", default="auto", show_default=True, help="Whole GPUs to lease.")
@click.option("--no-wait", is_flag=True, help="Fail when no GPU is free, instead of waiting.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Time limit of the executor.")
@click.option("--memory", type=click.FloatRange(min=0.1), metavar="GB", help="Memory limit (docker).")
@click.option("--cpus", type=click.FloatRange(min=0.1), metavar="N", help="CPU limit (docker).")
@click.option("--overlays", default="24", callback=_overlays, metavar="N|all", help="How many overlays to draw.")
@click.option("--experiment", metavar="NAME", help="MLflow experiment.")
@click.option("--keep", is_flag=True, help="Keep checkout and staged images of the job.")
@click.option("--open", "open_report", is_flag=True, help="Open the report.")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of builds and of the executor.")
@click.option("-q", "--quiet", is_flag=True, help="Only warnings and the result.")
@repository_options
def run_command(
    ref: str,
    images: tuple[str, ...],
    *,
    dry_run: bool,
    open_report: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Run the executor REF on IMAGES (files, folders, globs).

    \b
    REF is <repo>[@<rev>][#<entry>] or <repo>[@<rev>]#<subdir>:[<entry>];
    a repository is a URL (https, ssh), user@host:path, or a folder such as '.'.
    """
    reporter = render.TerminalReporter(-1 if quiet else int(verbose))
    with api.session(config=options.pop("config"), reporter=reporter) as session:
        request = session.request(ref, images, **options)
        if dry_run:
            plan = session.plan(request)
            render.document(plan) if as_json else render.echo(_plan_text(plan))
            return 0
        done = session.run(request)
    if as_json:
        render.document(done.as_json())
    elif isinstance(done, api.Started):
        render.echo(f"Job {done.job_id} runs.  Next: segserve logs -f {done.job_id} · segserve ps")
    else:
        render.echo(_result_text(done))
    if open_report and isinstance(done, api.Result):
        click.launch(str(done.folder / "report" / "index.html"))
    return 0


def _result_text(result: api.Result) -> str:
    lines = []
    if result.images:
        rows = [(_image_name(image), count) for image, count in zip(result.images, result.counts, strict=True)]
        shown = rows if len(rows) <= 40 else [*rows[:20], ("…", ""), *rows[-20:]]
        lines += [render.table(("image", "objects"), shown, right=(1,)), ""]
        lines.append(f"{sum(result.counts)} objects in {len(result.images)} images")
    if result.findings:
        remarks = "1 remark" if len(result.findings) == 1 else f"{len(result.findings)} remarks"
        lines.append(f"{remarks} on the polygons: {result.folder / 'validation.json'}")
    lines += [f"Result  {result.folder}", f"MLflow  {result.run_url}"]
    lines.append(f"Next    open {result.folder / 'report' / 'index.html'}  ·  segserve ui")
    return "\n".join(lines)


def _image_name(image: Any) -> str:
    axes = [f"{axis}{getattr(image, axis)}" for axis in ("t", "z", "c") if getattr(image, axis) is not None]
    return " ".join([Path(image.source).name, *axes])


def _plan_text(plan: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' '):<12} {_plain(value)}" for name, value in plan.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "–"
    return str(value) if value not in (None, "") else "–"


@click.command("info")
@click.argument("ref")
@repository_options
def info_command(ref: str, *, as_json: bool, **options: Any) -> None:
    """Show entry points, parameters, environment and commit of REF; nothing is built."""
    with api.session(config=options.pop("config")) as session:
        info = session.info(session.request(ref, (), **options))
    if as_json:
        render.document(info)
        return
    render.echo(f"{info['name']}\n  repository   {info['repository']}\n  commit       {info['commit']}")
    render.echo(f"  environment  {info['environment']['kind']} ({info['environment']['source'] or 'no file'})")
    for note in info["notes"]:
        render.echo(f"  note         {note}")
    for entry in info["entry_points"]:
        render.echo(f"\n#{entry['name']}" + ("" if entry["images_parameter"] else "   (takes no images)"))
        rows = [
            (f"  {p['name']}", p["type"], _default(p), "images" if p["name"] == entry["images_parameter"] else "")
            for p in entry["parameters"]
        ]
        render.echo(render.table(("  parameter", "type", "default", ""), rows) if rows else "  no parameters")


def _default(parameter: dict[str, Any]) -> str:
    return "required" if parameter["default"] is None else str(parameter["default"])
