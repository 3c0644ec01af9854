"""The command line: parse, call `api`, render. One exception handler for all commands."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from segserve import redact
from segserve.cli import render
from segserve.errors import EXIT_DEFECT, EXIT_INTERRUPTED, SegserveError

# name → module of segserve.cli that defines it; loaded when it is called, so that `segserve --help` is instant.
COMMANDS = {
    "run": "run",
    "info": "run",
    "images": "tools",
    "validate": "tools",
    "ui": "tools",
    "doctor": "tools",
    "ps": "jobs",
    "show": "jobs",
    "logs": "jobs",
    "cancel": "jobs",
    "env": "env",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table: the main job first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that defines it."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"segserve.cli.{COMMANDS[cmd_name]}")
        return getattr(module, cmd_name.replace("-", "_") + "_command")  # type: ignore[no-any-return]


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from segserve import __version__

        click.echo(f"segserve {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Show the version.")
def cli() -> None:
    """Run any segmentation repository on your images with one command.

    \b
    segserve run https://github.com/hip-satomi/Cellpose-Executor#main images/
    segserve info .
    segserve ui
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `segserve.errors` for their meaning)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _stop_on_signals()
    try:
        result = cli.main(args=words, prog_name="segserve", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except click.ClickException as failure:
        return _usage(failure, words)
    except SegserveError as failure:
        return _failed(failure, words)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone (`segserve logs | head`)
        return 0
    except Exception as defect:  # the only place that turns a defect of ours into a message
        return _defect(defect)


def _wants_json(words: Sequence[str]) -> bool:
    return "--json" in words


def _usage(failure: click.ClickException, words: Sequence[str]) -> int:
    if _wants_json(words):
        render.document({"error": {"code": "UsageError", "message": failure.format_message(), "exit_code": 2}})
    failure.show()
    return 2


def _failed(failure: SegserveError, words: Sequence[str]) -> int:
    if _wants_json(words):
        render.document(render.error_document(failure))
    render.error(failure)
    return failure.exit_code


def _interrupted() -> int:
    click.echo("interrupted", err=True)
    return EXIT_INTERRUPTED


def _defect(defect: Exception) -> int:
    from segserve.layout import home

    log = home().ensure().logs / "defect.log"
    with log.open("a", encoding="utf-8") as stream:
        stream.write(redact.text("".join(traceback.format_exception(defect))) + "\n")
    text = redact.text(f"{type(defect).__name__}: {defect}")
    click.echo(f"{render.style('defect:', fg='red', bold=True)} {text}", err=True)
    click.echo(f"This is a fault of segserve. Please report it with the end of {log}.", err=True)
    return EXIT_DEFECT


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that nothing it started lives on."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, interrupt)


def run_main() -> None:
    """The console script."""
    sys.exit(main())
