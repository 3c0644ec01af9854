"""What an executor asks for, from conda.yaml or python_env.yaml and every requirements file that they name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from segserve.check.repository import Repository
from segserve.environments import closure, condafile
from segserve.environments.condafile import CondaFile
from segserve.errors import InvalidProject
from segserve.findings import Finding, Place
from segserve.project import Project


@dataclass(frozen=True, slots=True)
class Dependency:
    """One requirement. `specifiers` is None where it is no set of versions (a URL, a build string)."""

    name: str
    specifiers: SpecifierSet | None
    text: str
    place: Place
    source: str  # conda, pip, git
    conditional: bool = False  # it has a marker


@dataclass(frozen=True, slots=True)
class Declared:
    """The environment as its files declare it. `python` is None when they say nothing about it."""

    file: str = ""
    python: str | None = None
    conda: CondaFile | None = None
    dependencies: tuple[Dependency, ...] = ()
    indexes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = field(default=())  # what the readers refuse or ignore


def read(repository: Repository) -> Declared:
    """Never raises: what cannot be read is in `findings`."""
    project = repository.project
    if project is None or not project.environment.file:
        return Declared()
    file = repository.shown(project.environment.file)
    try:
        return _read(repository, project, file)
    except InvalidProject as refusal:
        return Declared(file, findings=tuple(_moved(finding, repository) for finding in refusal.findings))


def _read(repository: Repository, project: Project, file: str) -> Declared:
    path, source = project.folder / project.environment.file, project.environment.file
    conda = None
    if project.environment.kind == "conda":
        conda = condafile.load(path, source)
        lines, python, remarks, folder = conda.pip, conda.python, conda.findings, path.parent
    else:
        env = condafile.load_python_env(path, source)
        lines, python, remarks, folder = env.dependencies, env.python or None, env.findings, project.folder
    found = closure.read(lines, folder, repository.root, source=source, offline=True)
    dependencies = [*_conda(conda, file, repository), *_pip(found.lines, file, repository)]
    indexes = tuple(url for url in (found.indexes.index, *found.indexes.extra, *found.indexes.find_links) if url)
    return Declared(
        file, python, conda, tuple(dependencies), indexes, tuple(_moved(one, repository) for one in remarks)
    )


def _moved(finding: Finding, repository: Repository) -> Finding:
    """The readers call the environment file as MLProject does, requirements files from the root."""
    return finding if finding.place.path in repository.files and repository.prefix else repository.moved(finding)


def _conda(file: CondaFile | None, path: str, repository: Repository) -> Iterator[Dependency]:
    for spec in file.specs if file else ():
        place = repository.find(path, spec.text)
        if spec.build:
            yield Dependency(spec.name, None, spec.text, place, "conda")
        else:
            yield Dependency(spec.name, _specifiers(spec.version), spec.text, place, "conda")


def _specifiers(version: str) -> SpecifierSet | None:
    """conda's constraints in Python's words: `=1.2` is `==1.2.*`, `>=1,<2` is the same."""
    fuzzy = re.fullmatch(r"=(\d[\w.]*?)(\.?\*)?", version)
    if fuzzy:
        return SpecifierSet(f"=={fuzzy[1]}.*")
    try:
        return SpecifierSet(version)
    except InvalidSpecifier:
        return None


def _pip(lines: Iterable[str], path: str, repository: Repository) -> Iterator[Dependency]:
    files = [path, *(name for name in repository.files if name.endswith(".txt"))]
    for line in lines:
        text = line.split(" --hash")[0].strip()
        if "git+" in text:
            url = text[text.index("git+") :].split()[0]
            yield Dependency(url, None, text, _first(files, url.split("#")[0], repository), "git")
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue  # uv says what is wrong with it, with the index at hand
        place = _first(files, text, repository)
        specifiers = None if wanted.url else wanted.specifier
        name = canonicalize_name(wanted.name)
        yield Dependency(name, specifiers, text, place, "pip", wanted.marker is not None)


def _first(files: Iterable[str], text: str, repository: Repository) -> Place:
    places = [repository.find(path, text) for path in files if text in repository.text(path)]
    return next((place for place in places if place.line), next(iter(places), Place(next(iter(files)))))
