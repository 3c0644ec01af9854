"""Packages that are installed without any index; `pytest_plugins = ["tests.packages"]` brings the fixtures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from segserve import process
from segserve.environments import pip
from tests.channel import make_wheel

# A build backend of one file, so that a package is built without any index.
BACKEND = """\
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "{name}-1.0-py3-none-any.whl"
    info = "{name}-1.0.dist-info"
    with zipfile.ZipFile(folder + "/" + name, "w") as archive:
        archive.write("{name}.py")
        archive.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel = "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        archive.writestr(info + "/WHEEL", wheel)
        archive.writestr(info + "/RECORD", "")
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def local_package(folder: Path, name: str, code: str = "") -> Path:
    """The source of a package that builds without any index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND.replace("{name}", name))
    (folder / f"{name}.py").write_text(code)
    return folder


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's configuration of this machine replaced by: no index, one folder of wheels."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) and name != "UV_CACHE_DIR":
            monkeypatch.delenv(name)
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "colours", "1.0", "RED = 1\n")
    make_wheel(wheels, "colours", "2.0", "RED = 2\n")
    make_wheel(wheels, "shapes", "1.0", "", requires=["colours<2"])
    configuration = tmp_path / "pip.conf"
    configuration.write_text(f"[global]\nno-index = true\n[install]\nfind-links = {wheels}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
    return wheels


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an empty virtual environment."""
    process.run([pip.uv(), "venv", "-q", "--no-project", "--python", sys.executable, tmp_path / "venv"])
    return tmp_path / "venv" / "bin" / "python"
