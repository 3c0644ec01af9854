"""The command line: parse, call `api`, render. One exception handler for all commands."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from segserve import redact
from segserve.cli import render
from segserve.errors import (
    EXIT_DEFECT,
    EXIT_INTERRUPTED,
    BackendError,
    SegserveError,
    Verdict,
    did_you_mean,
    of_system,
)

# name → module of segserve.cli that defines it; loaded when it is called, so that `segserve --help` is instant.
COMMANDS = {
    "run": "run",
    "info": "info",
    "images": "tools",
    "check": "check",
    "lock": "lock",
    "replay": "lock",
    "validate": "validate",
    "compare": "compare",
    "bench": "bench",
    "export": "convert",
    "import": "convert",
    "ui": "tools",
    "doctor": "tools",
    "ps": "jobs",
    "show": "jobs",
    "logs": "jobs",
    "fetch": "jobs",
    "cancel": "jobs",
    "env": "env",
    "gc": "gc",
    "new": "new",
    "serve": "serve",
    "app": "app",
    "tokens": "tokens",
    "executors": "executors",
    "pipelines": "pipelines",
    "sdk": "sdk",
}
_REPOSITORY_MARKS = "/.#@:"  # what looks like a REF stands where a command should: `run` was left out


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
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the nearest right name for a wrong one."""
        word = args[0]
        if word not in COMMANDS and not word.startswith("-"):
            looks_like_ref = any(mark in word for mark in _REPOSITORY_MARKS)
            hint = f"Did you mean 'segserve run {word}'?" if looks_like_ref else did_you_mean(word, COMMANDS)
            ctx.fail(redact.text(f"There is no command '{word}'. {hint}"))
        return super().resolve_command(ctx, args)


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
    segserve info https://github.com/hip-satomi/Cellpose-Executor
    segserve run https://github.com/hip-satomi/Cellpose-Executor#main images/
    segserve ui
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `segserve.errors` for their meaning)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _stop_on_signals()
    try:
        code = _explained(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone (`segserve logs | head`)
        return 0
    except OSError as error:  # `> file` on a full disk
        render.say(f"{render.style('error:', fg='red', bold=True)} The output cannot be written: {error.strerror}.")
        return BackendError.exit_code
    return code


def _explained(words: Sequence[str]) -> int:
    """The command, and whatever ends it turned into words and an exit code."""
    try:
        return _run(words)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _interrupted(words)
    except click.ClickException as failure:
        return _usage(failure, words)
    except SegserveError as failure:
        return _failed(failure, words)
    except BrokenPipeError:
        raise
    except Exception as defect:  # the only place that turns a defect of ours into a message
        refused = of_system(defect) if isinstance(defect, OSError) else None
        return _defect(defect, words) if refused is None else _failed(refused, words)


def _run(words: Sequence[str]) -> int:
    # Not cli.main(): that one takes every broken pipe for its own and exits with 1.
    try:
        with cli.make_context("segserve", list(words)) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else 0


def _wants_json(words: Sequence[str]) -> bool:
    options = words[: list(words).index("--")] if "--" in words else words
    return "--json" in options


def _document(words: Sequence[str], code: str, message: str, exit_code: int) -> None:
    if _wants_json(words):
        render.document(render.failure(code, message, exit_code=exit_code))


def _usage(failure: click.ClickException, words: Sequence[str]) -> int:
    _document(words, "UsageError", redact.text(failure.format_message()), 2)
    with suppress(OSError):  # nobody may be left to read it
        failure.show()
    return 2


def _failed(failure: SegserveError, words: Sequence[str]) -> int:
    if _wants_json(words) and not isinstance(failure, Verdict):  # the answer stands there already: it is no
        render.document(render.error_document(failure))
    render.error(failure)
    return failure.exit_code


def _interrupted(words: Sequence[str]) -> int:
    _document(words, "Interrupted", "Interrupted.", EXIT_INTERRUPTED)
    render.say("interrupted")
    return EXIT_INTERRUPTED


def _defect(defect: Exception, words: Sequence[str]) -> int:
    from segserve.layout import home

    text = redact.text(f"{type(defect).__name__}: {defect}")
    log = home().logs / "defect.log"
    details = redact.text("".join(traceback.format_exception(defect)))
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(details + "\n")
        where = f"the end of {log}"
    except OSError:  # it may be the disk that is broken
        render.say(details)
        where = "the lines above"
    if _wants_json(words):
        render.document(render.failure("Defect", text, exit_code=EXIT_DEFECT, log=str(log)))
    render.say(f"{render.style('defect:', fg='red', bold=True)} {text}")
    render.say(f"This is a fault of segserve. Please report it with {where}.")
    return EXIT_DEFECT


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does, so that nothing it started lives on."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts `segserve … &` like this
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, interrupt)


def _open_streams() -> None:
    """Who starts us with stdin, stdout or stderr closed gets /dev/null: else the next file opened would be one."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, number)  # the same number, as a rule; children inherit it
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def run_main() -> None:
    """The console script."""
    _open_streams()
    if "_SEGSERVE_COMPLETE" in os.environ:  # the shell asks for completions, which only click's own main answers
        cli.main(prog_name="segserve")
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # else Python tries again at its end, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)
