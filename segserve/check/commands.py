"""What an entry point's command runs: scripts, options, placeholders. As far as it can be seen without a shell."""

from __future__ import annotations

import ast
import re
import string
from pathlib import PurePosixPath

from segserve.check.repository import Repository

_SCRIPT = re.compile(
    r"(?:^|[\s;&|(])(?:python[0-9.]*|bash|sh|Rscript)\s+(?:-[uBOqE]+\s+|-W\s+\S+\s+)*"
    r"(?P<script>(?!-)[^\s'\"{};&|<>$()]+\.(?:py|sh|R|r))(?=$|[\s;&|)])"
)
_MODULE = re.compile(r"(?:^|[\s;&|(])python[0-9.]*\s+(?:-[uBOqE]+\s+)*-m\s+(?P<module>[A-Za-z_][\w.]*)")
_OPTION = re.compile(r"(?<!\S)(?P<option>--[A-Za-z][\w-]*)[\s=]+\{(?P<name>\w+)\}")


def placeholders(command: str) -> set[str]:
    """The names in `{…}`; none when the braces do not fit."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(command) if name}
    except ValueError:
        return set()


def scripts(command: str) -> list[str]:
    """The script files that a command runs, as it names them."""
    return [match["script"] for match in _SCRIPT.finditer(command)]


def modules(command: str) -> list[str]:
    """What a command runs by `python -m`."""
    return [match["module"] for match in _MODULE.finditer(command)]


def options(command: str) -> list[tuple[str, str]]:
    """(long option, parameter) for every `--option {parameter}`."""
    return [(match["option"], match["name"]) for match in _OPTION.finditer(command)]


def is_missing(repository: Repository, command: str, script: str) -> bool:
    """Whether a script is surely not there: a command that changes the folder or writes files may find it."""
    if re.search(r"(?:^|[\s;&|])(?:cd|pushd|wget|curl|git|cp|mv|unzip|tar)\s", command) or script.startswith(
        ("/", "~")
    ):
        return False
    return repository.shown(script) not in repository.files


def known_options(repository: Repository, command: str) -> set[str] | None:
    """The options of the one Python script of a command; None when argparse does not say them in so many words."""
    named = [script for script in scripts(command) if script.endswith(".py")]
    text = repository.text(repository.shown(named[0])) if len(named) == 1 else ""
    if "ArgumentParser(" not in text or re.search(r"parse_known|add_subparsers|parents\s*=|\(\s*parser\s*[,)]", text):
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_add_argument(node)]
    arguments = [argument for call in calls for argument in call.args]
    if any(isinstance(node, ast.Starred) or not isinstance(node, ast.Constant) for node in arguments):
        return None
    # Options may be added elsewhere, to a parser that is handed over.
    if len(re.findall(r"ArgumentParser\(", text)) != 1 or not calls:
        return None
    return {str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)}


def _is_add_argument(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"


def sources(repository: Repository, command: str) -> list[str]:
    """The files of the repository (paths from its root) that a command runs; those of other folders by their name."""
    found = [_located(repository, script) for script in scripts(command)]
    for module in modules(command):
        path = module.replace(".", "/")
        found += [_located(repository, f"{path}.py"), _located(repository, f"{path}/__main__.py")]
    return [path for path in found if path]


def _located(repository: Repository, script: str) -> str:
    direct = repository.shown(script)
    if direct in repository.files:
        return direct
    name = PurePosixPath(script).parts
    matching = [path for path in repository.files if PurePosixPath(path).parts[-len(name) :] == name]
    return matching[0] if len(matching) == 1 else ""
