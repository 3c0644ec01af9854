"""The environment: what tomorrow will be another one, what cannot be built, what no current machine runs."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from segserve.check import dependencies
from segserve.check.dependencies import Declared, Dependency
from segserve.check.repository import Repository
from segserve.environments import channels
from segserve.findings import Finding, Place, Rule, Severity

_E, _W = Severity.ERROR, Severity.WARNING

NO_ENVIRONMENT = Rule(
    "no-environment",
    _W,
    "The project declares no environment: what it runs with is up to chance.",
    "Add python_env.yaml or conda.yaml and name it in MLProject.",
)
ENVIRONMENT_FILE = Rule("environment-file", _E, "The environment file cannot be read.", "Correct the line.")
ENVIRONMENT_KEY = Rule(
    "environment-key", _W, "The environment file has a key that is ignored.", "Correct its spelling, or remove it."
)
REQUIREMENTS = Rule("requirements", _E, "A requirement cannot be installed anywhere else.", "Correct the line.")
UNPINNED = Rule(
    "unpinned-dependency",
    _W,
    "A dependency has no version: tomorrow's release may break the executor or change its results.",
    "Name a version (==1.2, or at least >=1.2), or write a segserve.lock.",
)
UNPINNED_PYTHON = Rule(
    "unpinned-python",
    _W,
    "The environment does not say which Python it needs.",
    'Name it, for instance python: "3.12".',
)
UNPINNED_GIT = Rule(
    "unpinned-git",
    _W,
    "A dependency comes from a git repository without a commit: it changes with every push there.",
    "Write @ and the full commit id behind the URL.",
)
CONTRADICTION = Rule(
    "contradictory-dependencies",
    _E,
    "No version of a package satisfies all that the files ask for.",
    "Keep one of the lines.",
)
TWICE = Rule(
    "duplicate-dependency",
    _W,
    "A package is asked for twice: which of the two wins depends on the installer.",
    "Keep one of the lines.",
)
RIVALS = Rule(
    "rival-packages",
    _W,
    "Two packages install the same files over each other.",
    "Keep one of them; for a server that is opencv-python-headless.",
)
DEFAULTS = Rule(
    "default-channels",
    _W,
    "Anaconda's own channels need a contract in many institutions; segserve replaces them by conda-forge.",
    "Write channels: [conda-forge].",
)
END_OF_LIFE = Rule(
    "python-end-of-life",
    _W,
    "This Python gets no security fixes any more, and new releases of packages leave it out.",
    "Move to a Python that is maintained.",
)
OLD_CUDA = Rule(
    "old-cuda",
    _W,
    "This CUDA build has no code for current cards: it ends with `no kernel image is available`.",
    "Take a build for CUDA 11.8 or newer.",
)
NO_MLFLOW = Rule(
    "mlflow-missing",
    _W,
    "The environment does not name mlflow, without which the result cannot be logged.",
    "Add mlflow-skinny (or mlflow).",
)
INSECURE_INDEX = Rule(
    "insecure-index",
    _W,
    "Packages come over plain http: anybody on the way can replace them.",
    "Use https.",
)
RULES = (
    *(NO_ENVIRONMENT, ENVIRONMENT_FILE, ENVIRONMENT_KEY, REQUIREMENTS, UNPINNED, UNPINNED_PYTHON, UNPINNED_GIT),
    *(CONTRADICTION, TWICE, RIVALS, DEFAULTS, END_OF_LIFE, OLD_CUDA, NO_MLFLOW, INSECURE_INDEX),
)

# https://devguide.python.org/versions/
_ENDS: Mapping[str, datetime.date] = {
    "3.6": datetime.date(2021, 12, 23),
    "3.7": datetime.date(2023, 6, 27),
    "3.8": datetime.date(2024, 10, 7),
    "3.9": datetime.date(2025, 10, 31),
    "3.10": datetime.date(2026, 10, 31),
    "3.11": datetime.date(2027, 10, 31),
    "3.12": datetime.date(2028, 10, 31),
    "3.13": datetime.date(2029, 10, 31),
    "3.14": datetime.date(2030, 10, 31),
}
_RIVALS: Sequence[frozenset[str]] = (
    frozenset(
        {"opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"},
    ),
    frozenset({"tensorflow", "tensorflow-gpu", "tensorflow-cpu"}),
    frozenset({"onnxruntime", "onnxruntime-gpu"}),
    frozenset({"pillow", "pillow-simd"}),
)
# sm_89 and sm_90 (Ada, Hopper) came with CUDA 11.8: https://docs.nvidia.com/cuda/ada-compatibility-guide/
_FIRST_CUDA = (11, 8)
# Builds on PyPI and in pytorch's channel carried CUDA 10.2 to 11.7 up to these; what came later has 11.8 or newer.
_FIRST_RELEASE = {"torch": "2.1", "pytorch": "2.1", "tensorflow-gpu": "2.13"}
_FREE = frozenset({"pip", "setuptools", "wheel", "git", "python", "nodefaults"})


def find(repository: Repository) -> Iterator[Finding]:
    """Everything about the environment's files."""
    project = repository.project
    if project is None:
        return
    if project.environment.kind == "none":
        yield NO_ENVIRONMENT.at("MLProject names no environment.", Place(repository.project_file, 1, 1))
    declared = dependencies.read(repository)
    known = {rule.name: rule for rule in RULES}
    for finding in declared.findings:
        rule = known.get(finding.rule)
        yield rule.at(finding.message, finding.place, finding.fix) if rule else finding
    if not declared.file or any(finding.severity is _E for finding in declared.findings):
        return
    yield from _versions(declared, locked=repository.shown("segserve.lock") in repository.files)
    yield from _python(declared, repository, datetime.datetime.now(datetime.UTC).date())
    yield from _together(declared)
    yield from _sources(declared, repository)
    yield from _cuda(declared)


def _versions(declared: Declared, *, locked: bool) -> Iterator[Finding]:
    names = {one.name for one in declared.dependencies}
    if not names & {"mlflow", "mlflow-skinny"} and not any("mlflow" in name for name in names):
        yield NO_MLFLOW.at("mlflow is not among the dependencies.", Place(declared.file, 1, 1))
    for one in declared.dependencies:
        if one.source == "git" and not re.search(r"@[0-9a-f]{40}\b", one.text):
            yield UNPINNED_GIT.at(f"{one.name} is not pinned to a full commit id.", one.place)
        elif one.specifiers is not None and not one.specifiers and one.name not in _FREE and not locked:
            yield UNPINNED.at(f"'{one.name}' has no version.", one.place)


def _python(declared: Declared, repository: Repository, today: datetime.date) -> Iterator[Finding]:
    if not declared.python:
        yield UNPINNED_PYTHON.at(f"{declared.file} does not name a version of Python.", Place(declared.file, 1, 1))
        return
    found = re.search(r"(\d)\.(\d+)", declared.python)
    wanted = f"{found[1]}.{found[2]}" if found else declared.python.lstrip("=<>~! ")
    if declared.python.startswith(">"):
        return
    end = _ENDS.get(wanted)
    old = wanted.startswith("2") or (found and found[1] == "3" and int(found[2]) < 6)
    if old or (end is not None and end < today):
        when = f" since {end}" if end else ""
        place = repository.find(declared.file, "python")
        yield END_OF_LIFE.at(f"Python {wanted} is past its end{when}.", place)


def _together(declared: Declared) -> Iterator[Finding]:
    groups: dict[str, list[Dependency]] = defaultdict(list)
    for one in declared.dependencies:
        if not one.conditional and one.source != "git":
            groups[one.name].append(one)
    for name, lines in groups.items():
        asked = [one.specifiers for one in lines if one.specifiers is not None]
        if not _satisfiable(asked):
            shown = " and ".join(f"'{one.text}'" for one in lines)
            yield CONTRADICTION.at(f"No version of {name} satisfies {shown}.", lines[-1].place)
        elif len(lines) > 1:
            yield TWICE.at(f"{name} is asked for {len(lines)} times.", lines[-1].place)
    for rivals in _RIVALS:
        both = [name for name in groups if name in rivals]
        if len(both) > 1:
            yield RIVALS.at(f"{' and '.join(sorted(both))} exclude each other.", groups[both[-1]][0].place)


def _satisfiable(asked: Sequence[SpecifierSet]) -> bool:
    """Whether some version can satisfy all; decided at the versions that they name and just around them."""
    together = [one for specifiers in asked for one in specifiers]
    if not together:
        return True
    candidates: set[Version] = set()
    for one in together:
        text = one.version.removesuffix(".*")
        try:
            base = Version(text)
        except InvalidVersion:  # ===something
            return True
        release = ".".join(str(part) for part in base.release)
        above = ".".join(str(part) for part in (*base.release[:-1], base.release[-1] + 1))
        below = ".".join(str(part) for part in (*base.release[:-1], max(base.release[-1] - 1, 0)))
        candidates |= {base, *(Version(text) for text in (f"{release}.0.1", above, f"{below}.999", "0.0.1", "99999"))}
    return any(all(one.contains(version, prereleases=True) for one in together) for version in candidates)


def _sources(declared: Declared, repository: Repository) -> Iterator[Finding]:
    for url in declared.indexes:
        if url.startswith("http://"):
            yield INSECURE_INDEX.at(f"{url} is plain http.", _place(repository, declared, url))
    if declared.conda is None:
        return
    named = [name for name in declared.conda.channels if channels.is_anaconda(name)]
    if named:
        where = repository.find(declared.file, named[0], behind="channels")
        yield DEFAULTS.at(f"{', '.join(named)} is one of Anaconda's own channels.", where)


def _place(repository: Repository, declared: Declared, text: str) -> Place:
    files = [declared.file, *(path for path in repository.files if path.endswith(".txt"))]
    path = next((path for path in files if text in repository.text(path)), declared.file)
    return repository.find(path, text)


def _cuda(declared: Declared) -> Iterator[Finding]:
    for one in declared.dependencies:
        exact = re.search(r"(?<![<>!~=])==?\s*(\d+(?:\.\d+)*)", one.text)
        version = exact[1] if exact else ""
        local = re.search(r"\+cu(\d{2,3})\b", one.text) or re.search(r"=\D*cu(?:da)?(\d{2}\.?\d)", one.text)
        if one.name in ("cudatoolkit", "cuda-version", "pytorch-cuda") and version:
            toolkit = tuple(int(part) for part in version.split("."))[:2]
        elif local:
            digits = local[1].replace(".", "")
            toolkit = (int(digits[:-1]), int(digits[-1]))
        elif version and one.name in _FIRST_RELEASE and Version(version) < Version(_FIRST_RELEASE[one.name]):
            toolkit = (0,) if not re.search(r"cpu", one.text) else _FIRST_CUDA
        else:
            continue
        if toolkit < _FIRST_CUDA:
            yield OLD_CUDA.at(f"'{one.text}' was built for cards before CUDA 11.8.", one.place)
