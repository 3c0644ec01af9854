"""Options that several commands share, and help in sections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


class Number(click.FloatRange):
    """A finite number; click would take `nan` and call it a float range."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a message that names it."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"'{value}' is no number that can be used.", param, ctx)
        return number


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")

# Title → names of parameters. What is in no section stands in the first one.
SECTIONS = {
    "Options": (),
    "Images": ("first", "channel", "z", "series", "frames", "depth"),
    "Which commit": ("rev", "entry", "offline", "committed", "allow_unreachable", "submodules"),
    "Environment and machine": ("kind", "python", "no_lock", "gpus", "no_wait", "timeout", "memory", "cpus", "server"),
    "Result": ("output", "overlays", "experiment", "keep", "reuse", "open_report"),
    "Output of the command": ("as_json", "verbose", "quiet", "config", "help"),
}


class SectionedCommand(click.Command):
    """A command with so many options that its help shows them in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One list per section."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[_section(parameter.name or "")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _section(name: str) -> str:
    return next((title for title, names in SECTIONS.items() if name in names), "Options")


def _together(options: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


CONFIG = click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Another config.toml.")

# Which commit of which entry point.
reference = _together(
    (
        click.option("--rev", metavar="REV", help="Branch, tag or commit, also one with a slash (feature/x)."),
        click.option("--entry", metavar="NAME", help="Entry point; the same as #NAME."),
        click.option("--offline", is_flag=True, help="Use the last known commit; ask no remote."),
        click.option("--committed", is_flag=True, help="Of a local folder, use HEAD without your changes."),
        click.option("--allow-unreachable", is_flag=True, help="Accept a commit that no branch or tag contains."),
        click.option("--submodules", is_flag=True, help="Check out submodules too."),
    )
)

# Which planes of the images.
planes = _together(
    (
        click.option("--channel", metavar="NAME|N", help="Which channel of multi-channel images (N from 0)."),
        click.option("--z", metavar="max|mean|N|each", help="What to do with z planes: project, choose, or take each."),
        click.option("--series", metavar="NAME|N", help="Which series of a file with several (N from 0)."),
        click.option("--frames", metavar="A:B", help="Time points A to B-1 (from 0)."),
        click.option("--depth", type=click.Choice(["8", "16"]), help="Bits of grey of the images that it gets."),
    )
)

environment = _together(
    (
        click.option(
            "--env",
            "kind",
            type=click.Choice(["uv", "conda", "docker", "local"]),
            help="Build this kind of environment instead of the project's; local: the Python on your PATH.",
        ),
        click.option("--python", metavar="X.Y", help="Python version instead of the project's."),
        click.option("--no-lock", is_flag=True, help="Ignore the executor's segserve.lock."),
    )
)
