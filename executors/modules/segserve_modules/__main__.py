"""The program that a generated MLProject starts, in the folder of an algorithm module.

python -m segserve_modules run IMAGES [--device auto|cpu|gpu|mps] [--set NAME=VALUE …]
python -m segserve_modules check      import everything, say what is missing
python -m segserve_modules info       write who we are
"""

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from segserve_sdk import output, tracking
from segserve_sdk.progress import Progress

from segserve_modules import datasets, devices, loading, values, writers
from segserve_modules.datasets import Call
from segserve_modules.session import ModuleError, Session

FACTS = Path(".segserve", "module.json")
OUTPUT = Path(".segserve", "output")
PARTIAL = "partial"


def say(level: str, message: str) -> None:
    """A line of the log."""
    print(f"[{level}] {message}" if level != "INFO" else message, flush=True)


def main(words: Optional[Sequence[str]] = None) -> int:
    """The exit status: 0, or 1 after a failure that was explained."""
    options = _parsed(words)
    facts = json.loads(FACTS.read_text(encoding="utf-8"))
    try:
        if options.command == "info":
            _describe(facts)
        elif options.command == "check":
            loading.import_runner(Path.cwd(), facts["type"], everything=True)
            say("INFO", f"{facts['name']} can be imported, and its Runner fits {facts['type']}.")
            _describe(facts)
        else:
            _run(facts, options)
    except ModuleError as error:
        _show_cause(error)
        say("ERROR", str(error))
        return 1
    return 0


def _parsed(words: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="segserve_modules", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.required = True
    run = commands.add_parser("run")
    run.add_argument("images", type=Path)
    run.add_argument("--device", default=devices.AUTO)
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    commands.add_parser("check")
    commands.add_parser("info")
    return parser.parse_args(words)


def _describe(facts: Dict[str, Any]) -> None:
    output.write_info("output.json", f"{facts['name']} {facts['version']}".strip())
    tracking.log_file("output.json")


def _run(facts: Dict[str, Any], options: argparse.Namespace) -> None:
    runner_class = loading.import_runner(Path.cwd(), facts["type"], everything=facts["check_importable"])
    arguments = values.arguments(options.set, facts["parameters"])
    calls = datasets.calls(
        options.images,
        sequence=facts["type"] == "Image2Alignment",
        together=facts["type"] == "Generic" and facts["whole_set"],
    )
    device = devices.choose(options.device, facts["supported_devices"], facts["default_device"], say)
    progress = _Progress(calls)
    session = Session(Path.cwd(), say, progress.within)
    runner = loading.start(runner_class, session, device)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    writer = writers.WRITERS[facts["type"]](OUTPUT, facts)
    done: List[Call] = []
    try:
        for call in calls:
            for plane in call.planes:
                session.offer(plane.identifier, lambda plane=plane: datasets.read(plane))
            given = {"input_dataset_ids": [plane.identifier for plane in call.planes]}
            results = session.take(runner.run(given, dict(arguments)))
            told = writer.add(call, results)
            done.append(call)
            progress.finished(f"{call.name}: {told}")
    except Exception as error:
        _keep_partial(writer, done, len(calls))
        name = calls[len(done)].name
        if isinstance(error, ModuleError):
            raise ModuleError(f"{name}: {error}" if name not in str(error) else str(error)) from error.__cause__
        traceback.print_exc()
        raise ModuleError(f"The module failed on {name}: {type(error).__name__}: {error}") from None
    writer.close()
    tracking.log_folder(OUTPUT)


def _keep_partial(writer: writers.Writer, done: Sequence[Call], wanted: int) -> None:
    """What was good before a failure is kept with the run."""
    if not done:
        return
    writer.close()
    (OUTPUT / "finished.json").write_text(json.dumps([call.name for call in done], indent=1), encoding="utf-8")
    tracking.log_folder(OUTPUT, PARTIAL)
    say("WARNING", f"{len(done)} of {wanted} were finished before; the run keeps their outputs in '{PARTIAL}'.")


def _show_cause(error: ModuleError) -> None:
    if error.__cause__ is not None:
        cause = error.__cause__
        traceback.print_exception(type(cause), cause, cause.__traceback__)
        sys.stderr.flush()


class _Progress:
    """How far the run is, in images; what a runner says of its call is a share of the call's images."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = [len(call.planes) for call in calls]
        self._counter = Progress(sum(self._calls))
        self._current = 0

    def within(self, share: float) -> None:
        """A share of the current call is done; it never goes back."""
        reached = sum(self._calls[: self._current]) + int(share * self._calls[self._current])
        if reached > self._counter.done:
            self._counter.advance(reached - self._counter.done)

    def finished(self, message: str) -> None:
        """The current call is done."""
        self._current += 1
        self._counter.advance(sum(self._calls[: self._current]) - self._counter.done, message)


if __name__ == "__main__":
    sys.exit(main())
