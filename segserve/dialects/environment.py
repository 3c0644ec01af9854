"""What a module's environment holds: its own dependencies, else the default environment that docs/modules.md lists."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from segserve.dialects import rules
from segserve.dialects.parameters import Say

# The guides call it the global environment of the server and do not list it: the scientific packages that they use.
DEFAULT = ("numpy", "scipy", "scikit-image", "opencv-python-headless", "pydantic>=2", "h5py", "tifffile", "pillow")
# Large or rare packages come only when a file of the module imports them: import name → package.
ON_IMPORT: Mapping[str, str] = {
    "torch": "torch",
    "torchvision": "torchvision",
    "onnxruntime": "onnxruntime",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "numba": "numba",
    "networkx": "networkx",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
    "zarr": "zarr",
    "SimpleITK": "SimpleITK",
    "einops": "einops",
    "timm": "timm",
}
# Packages of the modules' own servers. The guest package gives their import roots.
PROVIDED = frozenset({"compox", "t3d-server", "t3dserver"})
# In the order in which they are taken when `requires-python` allows several.
PYTHONS = ("3.11", "3.12", "3.10", "3.13", "3.9", "3.8", "3.14")
_IMPORT = re.compile(rb"^[ \t]*(?:import|from)[ \t]+([A-Za-z_]\w*)", re.M)
_MAX_SOURCE = 2 * 1024 * 1024
_MAX_FILES = 5000


@dataclass(frozen=True, slots=True)
class Requirements:
    """`python` is X.Y or X.Y.Z, `lines` are requirements (PEP 508), `source` says in words where they come from."""

    python: str
    lines: tuple[str, ...]
    source: str


def requirements(metadata: Mapping[str, Any], folder: Path, say: Say) -> Requirements:
    """What `[project]` asks for, or the default environment where it names no dependencies."""
    python = _python(metadata, say)
    declared = metadata.get("dependencies")
    dynamic = metadata.get("dynamic")
    if isinstance(dynamic, list) and "dependencies" in dynamic:
        say(rules.DYNAMIC, "Dynamic dependencies are not read; the default environment is used.", "dynamic")
    if declared is None:
        imported = {name.decode() for name in _imported(folder)}
        more = tuple(package for name, package in ON_IMPORT.items() if name in imported)
        return Requirements(python, (*DEFAULT, *more), "the default environment")
    return Requirements(python, _declared(declared, say), "[project].dependencies")


def _declared(declared: Any, say: Say) -> tuple[str, ...]:
    if not isinstance(declared, list) or not all(isinstance(line, str) for line in declared):
        say(rules.DEPENDENCIES, "[project].dependencies is no list of texts.", "dependencies")
        return ()
    lines = []
    for line in declared:
        try:
            required = Requirement(line)
        except InvalidRequirement as error:
            message = f"'{line}' is no requirement: {str(error).splitlines()[0]}."
            say(rules.DEPENDENCIES, message, line)
            continue
        if canonicalize_name(required.name) in PROVIDED:
            message = f"'{line}' is not installed: segserve's guest package has its import roots."
            say(rules.PROVIDED, message, line)
            continue
        lines.append(str(required))
    return tuple(lines)


def _python(metadata: Mapping[str, Any], say: Say) -> str:
    asked = metadata.get("requires-python", "")
    try:
        allowed = SpecifierSet(str(asked))
    except InvalidSpecifier:
        say(rules.DEPENDENCIES, f"requires-python is no range of versions: {asked!r}.", "requires-python")
        return PYTHONS[0]
    exact = [part.version for part in allowed if part.operator == "==" and re.fullmatch(r"3\.\d+\.\d+", part.version)]
    fitting = [python for python in PYTHONS if allowed.contains(f"{python}.99")]
    if exact or fitting:
        return (exact or fitting)[0]
    message = f"requires-python {asked!r} allows none of {', '.join(sorted(PYTHONS, key=_minor))}."
    say(rules.DEPENDENCIES, message, "requires-python")
    return PYTHONS[0]


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


def _imported(folder: Path) -> set[bytes]:
    """First parts of what the module's files import, by their text: nothing is run."""
    names: set[bytes] = set()
    for number, path in enumerate(_sources(folder)):
        if number >= _MAX_FILES:
            return names
        with path.open("rb") as stream:
            names.update(_IMPORT.findall(stream.read(_MAX_SOURCE)))
    return names


def _sources(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.py")) if path.is_file() and ".git" not in path.parts)
