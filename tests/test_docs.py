"""The documents name only what exists: tests, benchmarks, files, options."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from segserve.cli import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_every_promise_has_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [
        line for line in text.splitlines() if line.startswith("|") and not line.startswith(("|---", "| **", "| Pro"))
    ]
    assert len(rows) > 50
    for row in rows:
        shown = re.findall(r"`((?:tests|benchmarks|executors/sdk/tests)/[^`]+)`", row)
        assert shown, f"nothing shows: {row}"
        for name in shown:
            file, _, function = name.partition("::")
            assert (ROOT / file).exists(), name
            if function:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("https://", "http://", "mailto:")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_options_that_are_shown_exist(document: Path) -> None:
    context = click.Context(cli)
    for line in re.findall(r"segserve ([a-z]+[^\n`|]*)", document.read_text(encoding="utf-8")):
        name = line.split()[0]
        command = cli.get_command(context, name)
        if command is None:
            assert name not in {"exec", "start", "rm"}, line  # prose that follows the name of the project
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", line.split("·")[0].split("#")[0]):
            subcommands = getattr(command, "commands", {}).values()
            nested = {o for sub in subcommands for parameter in sub.params for o in parameter.opts}
            assert option in known | nested | {"--help", "--version"}, f"{document.name}: segserve {line}"
