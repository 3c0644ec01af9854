"""`segserve validate`."""

from __future__ import annotations

from pathlib import Path

import click

from segserve import findings
from segserve.cli import render
from segserve.errors import UsageError, Verdict, did_you_mean
from segserve.findings import Finding


@click.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--images", type=click.Path(exists=True, path_type=Path), help="Their images: check number and bounds.")
@click.option("--pairs", is_flag=True, help="Also look for objects that overlap or lie within others (takes longer).")
@click.option("--format", "style", type=click.Choice(["text", "json", "junit"]), default="text", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave out a rule (repeatable).")
@click.option("--repair", "target", type=click.Path(path_type=Path), help="Write a corrected document to this file.")
def validate_command(
    files: tuple[Path, ...],
    images: Path | None,
    pairs: bool,
    style: str,
    as_json: bool,
    ignore: tuple[str, ...],
    target: Path | None,
) -> None:
    """Check that each of FILES (or result folders) is a valid output.json; exit code 7 when one is not.

    With --repair the verdict is that on the corrected document; everything that was changed is listed.
    """
    skip = _rules(ignore)
    if target is not None and len(files) != 1:
        raise UsageError("--repair takes one file at a time.", hint="Call it once for each file.")
    files = tuple(_document(path) for path in files)
    found, verdict = _examined(files, images, pairs, skip, target)
    if as_json or style == "json":
        click.echo(findings.as_json(found))
    elif style == "junit":
        click.echo(findings.as_junit(found, "segserve validate"))
    else:
        render.echo("\n".join(filter(None, [render.plain(findings.as_text(found)), *_praise(files, verdict)])))
    bad = findings.errors_in(verdict)
    if bad:
        raise Verdict(f"{len(bad)} error(s) {_where(target)}.")


def _document(path: Path) -> Path:
    """The file that a result folder has."""
    if not path.is_dir():
        return path
    if not (path / "output.json").is_file():
        raise UsageError(f"'{path}' is a folder without an output.json.", hint="Name the file, or a result folder.")
    return path / "output.json"


def _praise(files: tuple[Path, ...], verdict: list[Finding]) -> list[str]:
    return [] if findings.errors_in(verdict) else ["valid" if len(files) == 1 else f"{len(files)} files, all valid"]


def _where(target: Path | None) -> str:
    if target is None:
        return "found"
    return f"remain in {target}" if target.exists() else f"found; {target} was not written, that takes a readable file"


def _rules(ignore: tuple[str, ...]) -> frozenset[str]:
    from segserve.format import RULES

    for rule in ignore:
        if rule not in RULES:
            raise UsageError(f"There is no rule '{rule}'.", hint=did_you_mean(rule, RULES))
    return frozenset(ignore)


def _examined(
    files: tuple[Path, ...], images: Path | None, pairs: bool, skip: frozenset[str], target: Path | None
) -> tuple[list[Finding], list[Finding]]:
    """What to print, and what decides."""
    from segserve import validation

    known = validation.measured(images) if images is not None else None
    reports = [validation.validate(file, known, pairs=pairs, skip=skip) for file in files]
    found = [finding for report in reports for finding in report.findings]
    if target is None:
        return found, found
    if not reports[0].readable:
        return found, found  # every error is listed; there is nothing to repair
    changes = validation.repair(files[0], target, reports[0])
    return [*found, *changes], list(validation.validate(target, known, pairs=pairs, skip=skip).findings)
