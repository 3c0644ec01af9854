"""Interpreters of other versions, which tests need, and environments made from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from segserve.environments import interpreters
from segserve.environments.pip import uv


def need_python(minor: str) -> Path:
    """An interpreter of that version, "3.8"; without one the test fails and says what to do."""
    for found in interpreters.installed():
        if found.version.startswith(f"{minor}."):
            return found.python
    pytest.fail(f"no Python {minor} on this machine: install one (pyenv, uv python install {minor})")


def make_environment(folder: Path, minor: str, *packages: str) -> Path:
    """The folder of the programs of a new environment, with these packages from the configured index."""
    subprocess.run([uv(), "venv", "-q", "-p", need_python(minor), folder], check=True)
    subprocess.run([uv(), "pip", "install", "-q", "-p", folder / "bin" / "python", *packages], check=True)
    return folder / "bin"
