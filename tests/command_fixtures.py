"""Fixtures for tests of whole commands: `pytest_plugins = ["tests.command_fixtures"]` in a module makes them known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from segserve.cli import main
from tests.commands import SEGSERVE, Command, Done


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One `$SEGSERVE_HOME` for all of them: environment and tracking server are had once, as by a user's second run."""
    path = tmp_path_factory.mktemp("shared-home")
    yield path
    subprocess.run([*SEGSERVE, "ui", "--stop"], env={**os.environ, "SEGSERVE_HOME": str(path)}, capture_output=True)


@pytest.fixture
def here(shared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shared home, and a working directory of the test's own."""
    monkeypatch.setenv("SEGSERVE_HOME", str(shared_home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def python_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--env local` is the Python on the PATH: that of the tests has mlflow and cv2, so that nothing is built."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three; the executors of `tests.executors` find 1, 2 and 1 objects in them."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in (1, 2, 10):  # natural order; lexical order would be 1, 10, 2
        cv2.imwrite(str(folder / f"cells{index}.png"), np.full((40 + index, 60), 10 * index, np.uint8))
    return folder


@pytest.fixture
def segserve(capfd: pytest.CaptureFixture[str]) -> Command:
    """`segserve("run", …)` in this process."""

    def run(*words: object) -> Done:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 128 KiB that is full but for 20 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small file system")
    (folder / "ballast").write_bytes(bytes(108 << 10))
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
