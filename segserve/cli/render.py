"""How things look in a terminal: data on stdout, progress and errors on stderr, no animation off a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import click

from segserve.errors import SegserveError

MAX_FINDINGS = 20


def colour_wanted(no_color: bool = False) -> bool:
    """https://no-color.org, and a terminal at the other end."""
    return not no_color and "NO_COLOR" not in os.environ and sys.stderr.isatty()


def style(text: str, **how: Any) -> str:
    """`click.style` where colour is wanted."""
    return click.style(text, **how) if colour_wanted() else text


def echo(text: str) -> None:
    """A line of data."""
    click.echo(text, color=colour_wanted())


def document(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[int] = ()) -> str:
    """Columns as wide as their content, two blanks between them; columns in `right` are right-aligned."""
    cells = [tuple(header), *(tuple("" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in cells)


def error(failure: SegserveError) -> None:
    """What happened, the deciding lines, what to do next."""
    click.echo(f"{style('error:', fg='red', bold=True)} {failure.message}", err=True)
    for finding in failure.findings[:MAX_FINDINGS]:
        click.echo(f"  {finding}", err=True)
    if len(failure.findings) > MAX_FINDINGS:
        click.echo(f"  … and {len(failure.findings) - MAX_FINDINGS} more", err=True)
    for line in failure.quote.splitlines():
        click.echo(f"  {style('│', dim=True)} {line}", err=True)
    if failure.hint:
        click.echo(f"{style('hint:', fg='cyan')} {failure.hint}", err=True)
    if failure.log is not None:
        click.echo(f"{style('log:', fg='cyan')} {failure.log}", err=True)


def error_document(failure: SegserveError) -> dict[str, Any]:
    """The same for machines."""
    return {
        "error": {
            "code": failure.code,
            "message": failure.message,
            "hint": failure.hint,
            "quote": failure.quote,
            "log": str(failure.log) if failure.log else None,
            "exit_code": failure.exit_code,
            "findings": [asdict(finding) for finding in failure.findings],
        }
    }


class TerminalReporter:
    """Progress on stderr. `verbosity`: -1 quiet (warnings only), 0 phases, 1 also the lines of builds and executors."""

    def __init__(self, verbosity: int = 0) -> None:
        self._verbosity = verbosity
        self._bar = sys.stderr.isatty() and verbosity >= 0
        self._last = 0.0
        self._open = False

    def phase(self, text: str) -> None:
        """A new step begins."""
        if self._verbosity >= 0:
            self._say(f"{style('●', fg='green')} {text}")

    def note(self, text: str) -> None:
        """Worth knowing."""
        if self._verbosity >= 0:
            self._say(f"  {style(text, dim=True)}")

    def warn(self, text: str) -> None:
        """Worth acting on; also said when quiet."""
        self._say(f"{style('warning:', fg='yellow')} {text}")

    def progress(self, done: int, total: int, what: str) -> None:
        """A counter that rewrites itself, on a terminal only."""
        now = time.monotonic()
        if self._bar and (done == total or now - self._last > 0.1):
            self._last = now
            self._open = True
            click.echo(f"\r\x1b[K  {what} {done}/{total}", nl=False, err=True)
            if done == total:
                self._close()

    def line(self, text: str) -> None:
        """A line of a build or of the executor."""
        if self._verbosity >= 1:
            self._say(f"  {style('│', dim=True)} {text}")

    def _say(self, text: str) -> None:
        self._close()
        click.echo(text, err=True)

    def _close(self) -> None:
        if self._open:
            self._open = False
            click.echo("", err=True)
