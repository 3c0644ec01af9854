"""MLProject: what the loader finds, and what it lets pass though it helps nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from segserve.check import commands
from segserve.check.repository import Repository
from segserve.findings import Finding, Place, Rule, Severity
from segserve.project import EntryPoint, ParameterType, Project
from segserve.project.types import CONVENTIONAL_IMAGES
from segserve.redact import SECRET_NAME

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

NO_ENTRY_POINTS = Rule(
    "no-entry-points", _E, "MLProject declares no entry point.", "Add entry_points with a `main` that takes images."
)
NO_MAIN = Rule(
    "no-main",
    _W,
    "There is no entry point `main`, the one that callers get without asking.",
    "Call the main one `main`.",
)
NO_INFO = Rule(
    "no-info", _N, "There is no entry point `info` that says who the executor is.", "Add one: see docs/check.md."
)
NO_IMAGES = Rule(
    "no-images-parameter",
    _E,
    "An entry point that segments has no parameter for images.",
    "Declare `input_images: path` and use {input_images} in the command.",
)
IMAGES_TYPE = Rule(
    "images-not-a-path",
    _W,
    "The images parameter is not of the type path, so MLflow takes it as a text.",
    "Write `input_images: path`.",
)
UNUSED = Rule(
    "unused-parameter",
    _W,
    "A declared parameter does not occur in the command: its value is dropped without a word.",
    "Use it in the command, or remove it.",
)
UNREACHABLE = Rule(
    "unreachable-parameter",
    _W,
    "The script does not know the option that the command hands the parameter by.",
    "Correct the option, or add it to the script's argparse.",
)
BROKEN_LINE = Rule(
    "broken-command-line",
    _E,
    "A line of the command begins with an option: the shell runs it as a command of its own.",
    "Write `command: >-` instead of `command: |`, or end the line before with a backslash.",
)
BLOCK = Rule(
    "block-command",
    _N,
    "The command ends with a line break, so that parameters which MLflow appends land on a line of their own.",
    "Write `command: >-` instead of `command: |`.",
)
MISSING_SCRIPT = Rule(
    "missing-script", _E, "The command runs a file that is not in the repository.", "Add the file, or correct its name."
)
SECRET = Rule(
    "secret-parameter",
    _W,
    "A parameter takes a secret: MLflow records parameters, and anybody on the machine sees command lines.",
    "Read it from an environment variable in the script.",
)
NO_NAME = Rule("no-name", _N, "The project has no name.", "Add `name: …`.")

# What `segserve.project` finds while it reads; `segserve run` refuses or warns about the same.
_LOADER = (
    Rule("no-mlproject", _E, "There is no MLProject file.", "Add MLProject with entry_points and an environment."),
    Rule("two-mlprojects", _E, "There are two project files that differ in case.", "Remove one of them."),
    Rule("outside-repository", _E, "A file that MLProject names lies outside of the repository.", "Keep it inside."),
    Rule("yaml", _E, "The file is no valid YAML.", "Correct the line; an editor with a YAML mode shows it."),
    Rule("encoding", _E, "The file is not UTF-8.", "Save it as UTF-8."),
    Rule("empty-file", _E, "MLProject is empty.", "Write entry_points and an environment into it."),
    Rule("duplicate-key", _E, "A key is there twice: one of the two is lost.", "Remove one of them."),
    Rule("alias", _E, "A YAML value holds itself.", "Write the values out."),
    Rule("too-large", _E, "MLProject is larger than anybody writes.", "Move data into files of their own."),
    Rule("structure", _E, "Something is not what MLflow expects in this place.", "Correct it as the message says."),
    Rule("unsupported", _E, "The project runs on Databricks only.", "Give it entry_points and an environment."),
    Rule("several-environments", _E, "MLProject names more than one environment.", "Keep one."),
    Rule("missing-file", _E, "The environment file is not there.", "Add it, or correct its name."),
    Rule("unknown-key", _W, "MLflow ignores a key that it does not know.", "Correct its spelling, or remove it."),
    Rule("parameter-name", _W, "A command cannot use a parameter of this name.", "Use letters, digits and _."),
    Rule("unknown-type", _W, "MLflow takes a type that it does not know as string.", "Use string, float, path or uri."),
    Rule("bad-default", _W, "A default does not fit the parameter's type.", "Correct the default or the type."),
    Rule("command-braces", _E, "The braces in a command do not fit.", "Double those that are meant as such."),
    Rule("undeclared-placeholder", _E, "A command uses a parameter that nobody declared.", "Declare it."),
    Rule(
        "unsafe-placeholder",
        _E,
        "A parameter stands where its value can run commands.",
        "Let it stand alone, without quotes around it: MLflow quotes the value.",
    ),
)
RULES = (
    *_LOADER,
    *(NO_ENTRY_POINTS, NO_MAIN, NO_INFO, NO_IMAGES, IMAGES_TYPE, UNUSED, UNREACHABLE, BROKEN_LINE, BLOCK),
    *(MISSING_SCRIPT, SECRET, NO_NAME),
)
# The project cannot be loaded; of what comes behind, one entry point alone suffers.
FATAL = tuple(
    rule for rule in _LOADER
    if rule.severity is _E and rule.name not in ("command-braces", "undeclared-placeholder", "unsafe-placeholder")
)  # fmt: skip
_SEVERITIES = {rule.name: rule for rule in _LOADER}
_SEGMENTING = re.compile(r"main|segment\w*|predict\w*|infer\w*")


def find(repository: Repository) -> Iterator[Finding]:
    """Everything about MLProject."""
    for finding in repository.project_findings:
        rule = _SEVERITIES.get(finding.rule)
        if rule is not None:  # the manifest's are another family's
            yield replace(finding, severity=rule.severity, fix=finding.fix or rule.fix)
    project = repository.project
    if project is None:
        return
    file = Place(repository.project_file, 1, 1)
    if not project.name:
        yield NO_NAME.at(f"{project.file.name} has no name.", file)
    if not project.entry_points:
        yield NO_ENTRY_POINTS.at(f"{project.file.name} declares no entry point.", file)
        return
    yield from _entry_points(project, repository, file)
    for entry in project.entry_points.values():
        yield from _entry_point(entry, repository)


def _entry_points(project: Project, repository: Repository, file: Place) -> Iterator[Finding]:
    entries = project.entry_points.values()
    names = ", ".join(project.entry_points)
    if not any(entry.images_parameter for entry in entries):
        yield NO_IMAGES.at(f"No entry point takes images: {names}.", file)
    else:
        for entry in entries:
            if _SEGMENTING.fullmatch(entry.name) and not entry.images_parameter:
                yield NO_IMAGES.at(f"Entry point '{entry.name}' takes no images.", _place(repository, entry))
    if "main" not in project.entry_points:
        yield NO_MAIN.at(f"There is no entry point 'main', only {names}.", file)
    if "info" not in project.entry_points:
        yield NO_INFO.at("There is no entry point 'info'.", file)


def _entry_point(entry: EntryPoint, repository: Repository) -> Iterator[Finding]:
    place = _place(repository, entry)
    used = commands.placeholders(entry.command)
    for parameter in entry.parameters.values():
        where = repository.find(repository.project_file, parameter.name, behind=f"{entry.name}:")
        if parameter.name not in used and not entry.problems:
            yield UNUSED.at(f"'{parameter.name}' of '{entry.name}' does not occur in the command.", where)
        if SECRET_NAME.search(parameter.name):
            yield SECRET.at(f"'{parameter.name}' of '{entry.name}' takes a secret.", where)
        if parameter.name == CONVENTIONAL_IMAGES and parameter.type is not ParameterType.PATH:
            yield IMAGES_TYPE.at(f"'{parameter.name}' of '{entry.name}' is a {parameter.declared}.", where)
    yield from _command(entry, repository, place)


def _command(entry: EntryPoint, repository: Repository, place: Place) -> Iterator[Finding]:
    lines = entry.command.strip().splitlines()
    broken = [
        line.strip() for before, line in pairwise(lines)
        if line.lstrip().startswith("-") and not before.rstrip().endswith("\\")
    ]  # fmt: skip
    if broken:
        yield BROKEN_LINE.at(f"In '{entry.name}' the shell runs '{broken[0]}' as a command of its own.", place)
    elif entry.command.endswith("\n"):
        yield BLOCK.at(f"The command of '{entry.name}' is a block that ends with a line break.", place)
    for script in commands.scripts(entry.command):
        if commands.is_missing(repository, entry.command, script):
            yield MISSING_SCRIPT.at(f"'{entry.name}' runs {script}, which is not there.", place)
    yield from _unknown_options(entry, repository)


def _unknown_options(entry: EntryPoint, repository: Repository) -> Iterator[Finding]:
    known = commands.known_options(repository, entry.command)
    for option, name in commands.options(entry.command) if known is not None else ():
        if not any(other.startswith(option) for other in known or ()):
            where = repository.find(repository.project_file, option, behind=f"{entry.name}:")
            yield UNREACHABLE.at(f"The script of '{entry.name}' has no option {option}, by which {name} comes.", where)


def _place(repository: Repository, entry: EntryPoint) -> Place:
    return repository.find(repository.project_file, f"{entry.name}:")
