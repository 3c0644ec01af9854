"""How things look in a terminal: data on stdout, progress and errors on stderr, no animation off a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any, TextIO

import click

from segserve.errors import SegserveError

MAX_FINDINGS = 20


# What an executor or a file name brings along has no say over the terminal.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def colour_wanted(stream: TextIO | None = None) -> bool:
    """https://no-color.org, and a terminal at the other end of `stream` (default: stderr)."""
    stream = sys.stderr if stream is None else stream
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def plain(text: str) -> str:
    """`text` without escape sequences and other control characters; lines and tabs stay."""
    return _CONTROL.sub("", text)


def style(text: str, **how: Any) -> str:
    """Styled text; `echo` and `say` take that out again where no colour is wanted."""
    return click.style(text, **how)


def echo(text: str) -> None:
    """A line of data."""
    click.echo(text, color=colour_wanted(sys.stdout))


def document(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[int] = ()) -> str:
    """Columns as wide as their content, two blanks between them; columns in `right` are right-aligned."""
    cells = [tuple(header), *(tuple("" if cell is None else plain(str(cell)) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in cells)


def moment(iso: str) -> str:
    """An ISO 8601 time as people here read it: local, to the minute."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return iso


def say(text: str) -> None:
    """A line on stderr. Whoever read it may have gone (`2>&1 | head`): that must not cost a result."""
    with suppress(OSError):
        click.echo(text, err=True, color=colour_wanted())


def error(failure: SegserveError) -> None:
    """What happened, the deciding lines, what to do next."""
    say(f"{style('error:', fg='red', bold=True)} {plain(failure.message)}")
    findings = [finding for finding in failure.findings if finding.message.rstrip(".") not in failure.message]
    for finding in findings[:MAX_FINDINGS]:
        say(f"  {plain(str(finding))}")
    if len(findings) > MAX_FINDINGS:
        say(f"  … and {len(findings) - MAX_FINDINGS} more")
    for line in plain(failure.quote).splitlines():
        say(f"  {style('│', dim=True)} {line}")
    if failure.hint:
        say(f"{style('hint:', fg='cyan')} {plain(failure.hint)}")
    if failure.log is not None:
        say(f"{style('log:', fg='cyan')} {failure.log}")


def failure(code: str, message: str, *, exit_code: int, hint: str = "", quote: str = "", log: str | None = None,
            findings: Sequence[Any] = ()) -> dict[str, Any]:  # fmt: skip
    """The document of everything that ends with another exit code than 0, for machines: the same keys always."""
    return {
        "error": {
            "code": code,
            "message": message,
            "hint": hint,
            "quote": quote,
            "log": log,
            "exit_code": exit_code,
            "findings": list(findings),
        }
    }


def error_document(error: SegserveError) -> dict[str, Any]:
    """`failure` for one of our own errors."""
    return failure(
        error.code,
        error.message,
        exit_code=error.exit_code,
        hint=error.hint,
        quote=error.quote,
        log=str(error.log) if error.log else None,
        findings=[asdict(finding) for finding in error.findings],
    )


class TerminalReporter:
    """Progress on stderr. `verbosity`: -1 quiet (warnings only), 0 phases, 1 also the lines of builds and executors."""

    def __init__(self, verbosity: int = 0) -> None:
        self._verbosity = verbosity
        self._bar = sys.stderr.isatty() and verbosity >= 0
        self._last = 0.0
        self._open = False
        self.said: set[str] = set()  # notes and warnings, so that nothing is said twice

    def phase(self, text: str) -> None:
        """A new step begins."""
        if self._verbosity >= 0:
            self._say(f"{style('●', fg='green')} {text}")

    def note(self, text: str) -> None:
        """Worth knowing."""
        self.said.add(text)
        if self._verbosity >= 0:
            self._say(f"  {style(text, dim=True)}")

    def warn(self, text: str) -> None:
        """Worth acting on; also said when quiet."""
        self.said.add(text)
        self._say(f"{style('warning:', fg='yellow')} {text}")

    def progress(self, done: int, total: int, what: str) -> None:
        """A counter that rewrites itself, on a terminal only."""
        now = time.monotonic()
        if self._bar and (done == total or now - self._last > 0.1):
            self._last = now
            self._open = True
            with suppress(OSError):
                click.echo(f"\r\x1b[K  {done} of {total} {what}", nl=False, err=True)
            if done == total:
                self._close()

    def line(self, text: str) -> None:
        """A line of a build or of the executor."""
        if self._verbosity >= 1:
            self._say(f"  {style('│', dim=True)} {text}")

    def _say(self, text: str) -> None:
        self._close()
        say(text)

    def _close(self) -> None:
        if self._open:
            self._open = False
            say("")
