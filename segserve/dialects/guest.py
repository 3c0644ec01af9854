"""The guest package and the SDK below it, as sources that an environment build turns into wheels."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from segserve.errors import SegserveError

_PACKAGES = ("segserve_sdk", "segserve_modules")
_DEPENDENCIES = {
    "segserve_sdk": ["numpy>=1.20", "opencv-python-headless>=4.5"],
    "segserve_modules": [
        "segserve_sdk",
        "h5py>=3.1",
        "mlflow-skinny>=2",
        "numpy>=1.20",
        "opencv-python-headless>=4.5",
        "pydantic>=1.10",
        "tifffile>=2021.4.8",
    ],
}


def install(folder: Path) -> tuple[str, ...]:
    """Copy the packages below `folder`, a direct subfolder of the project; the lines that a requirements file needs."""
    for name in _PACKAGES:
        target = folder / name
        shutil.copytree(_source(name), target / name, ignore=shutil.ignore_patterns("__pycache__"))
        (target / "pyproject.toml").write_text(_metadata(name), encoding="utf-8")
    return tuple(f"./{folder.name}/{name}" for name in _PACKAGES)


def _source(name: str) -> Path:
    found = importlib.util.find_spec(name)  # finds, does not import
    if found is None or not found.submodule_search_locations:
        raise SegserveError(f"{name}, which belongs to segserve, is not installed.")
    return Path(found.submodule_search_locations[0])


def _metadata(name: str) -> str:
    return (
        '[build-system]\nrequires = ["setuptools>=61"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}"\nversion = "0.1.0"\nrequires-python = ">=3.8"\n'
        f"dependencies = {_DEPENDENCIES[name]!r}\n"
        f'[tool.setuptools]\npackages = ["{name}"]\n[tool.setuptools.package-data]\n{name} = ["py.typed"]\n'
    )
