"""`segserve new`."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import api
from segserve.cli import options, render

TEMPLATES = (
    *("threshold", "torch", "onnx", "cellpose"),
    *("compox-segmentation", "compox-denoising", "compox-registration"),
)


@click.command("new")
@click.argument("folder", type=click.Path(path_type=Path), metavar="NAME")
@click.option("--template", type=click.Choice(TEMPLATES), default="threshold", show_default=True,
              help="What the method begins as.")  # fmt: skip
@click.option("--env", type=click.Choice(["uv", "conda", "docker"]), default="uv", show_default=True,
              help="How its environment is described.")  # fmt: skip
@click.option("--ci-from", metavar="URL@REV",
              help="Where its CI takes segserve from.  [default: where this one is from, else the index]")  # fmt: skip
@options.JSON
def new_command(folder: Path, template: str, env: str, ci_from: str | None, as_json: bool) -> None:
    """Write a repository with an executor that runs as it stands into the folder NAME.

    MLProject, environment, main.py, manifest, tests, licence, CI for GitHub, GitLab and pre-commit. Nothing is
    downloaded. The
    compox templates are algorithm modules: Runner.py and pyproject.toml instead of MLProject and main.py.
    """
    made = api.new(folder, template=template, env=env, ci_from=ci_from)
    if as_json:
        render.document({"path": str(made), "template": template, "env": env})
        return
    render.echo(f"{made}\n\nNext    cd {folder}  ·  segserve run . example")
    if env == "docker":
        render.echo("First   docker build (README.md says how)")
