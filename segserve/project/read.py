"""A folder → Project. Everything that MLflow would trip over is found here, all at once, each with line and column."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segserve import manifest
from segserve.errors import InvalidProject, did_you_mean
from segserve.findings import Finding, Severity, errors_in
from segserve.project import command as shell
from segserve.project import document, kinds
from segserve.project.document import Document
from segserve.project.types import (
    FILES,
    POLYGONS,
    EntryPoint,
    EnvironmentDeclaration,
    Parameter,
    ParameterType,
    Project,
)
from segserve.project.values import type_problem

WHAT_IS_NEEDED = (
    "An executor has a file MLProject in its root (or in the subdirectory that REF names) with entry_points and an "
    "environment (conda_env, python_env or docker_env)."
)
_PROJECT_KEYS = frozenset({"name", "conda_env", "python_env", "docker_env", "entry_points"})
_ENVIRONMENT_KEYS = {"conda_env": "conda", "python_env": "python", "docker_env": "docker"}
# MLflow looks for these, in this order, when the project names no environment.
_DEFAULT_FILES = {"python_env.yaml": "python", "conda.yaml": "conda"}
_DOCKER_KEYS = frozenset({"image", "volumes", "environment"})
# What `str.format` can find again in a command: no attribute, index, conversion, format or brace.
_PARAMETER_NAME = re.compile(r"[^\s.\[\]{}!:]+")
# MLflow reads type and default; the others are checked and shown by segserve.
_PARAMETER_KEYS = frozenset({"type", "default", "description", "min", "max", "step", "options", "adjustable"})


def load(folder: Path) -> Project:
    """Read the project in `folder`.

    Raises:
        InvalidProject: no MLProject, or one that MLflow could not load or that leaves the repository; `findings` has
            every problem. Problems of one entry point alone are raised by `select`.
    """
    folder = folder.resolve()
    file = find_file(folder)
    try:
        parsed = document.parse(file.name, file.read_bytes())
    except document.Unreadable as unreadable:
        raise _invalid(file, [unreadable.finding]) from None
    reader = _Reader(folder, file, parsed)
    project = reader.read()
    if errors_in(reader.findings):
        raise _invalid(file, reader.findings)
    about = manifest.load(folder, repository_root(folder))
    # It runs with a wrong manifest as well as with none.
    ignored = [replace(finding, severity=Severity.WARNING) for finding in about.findings]
    return replace(project, manifest=about.manifest, findings=(*reader.findings, *ignored))


def find_file(folder: Path) -> Path:
    """The MLProject file, whatever its case; a folder of that name does not count.

    Raises:
        InvalidProject: there is none, there are two, or it is a symlink that leaves the repository.
    """
    if not folder.is_dir():
        raise _refused("no-mlproject", f"The repository has no folder '{folder.name}'.", WHAT_IS_NEEDED)
    files = _named_mlproject(folder)
    if not files:
        raise _refused("no-mlproject", "There is no MLProject file, so this is no executor.", WHAT_IS_NEEDED)
    if len(files) > 1:
        names = " and ".join(path.name for path in files)
        raise _refused("two-mlprojects", f"There are two project files: {names}.", "MLflow takes either: remove one.")
    if not files[0].resolve().is_relative_to(repository_root(folder)):
        message = f"{files[0].name} is a link that leaves the repository."
        raise _refused("outside-repository", message, "Put the file itself there.")
    return files[0]


def find_project_file(folder: Path) -> Path | None:
    """An MLProject file in `folder`, if there is one."""
    return next(iter(_named_mlproject(folder)), None)


def _named_mlproject(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.lower() == "mlproject" and path.is_file())


def repository_root(folder: Path) -> Path:
    """The nearest folder upwards with a `.git`, else `folder` itself; resolved."""
    resolved = folder.resolve()
    return next((path for path in (resolved, *resolved.parents) if (path / ".git").exists()), resolved)


def _refused(rule: str, message: str, fix: str) -> InvalidProject:
    return InvalidProject(message, hint=fix, findings=[Finding(rule, Severity.ERROR, message, fix=fix)])


def _invalid(file: Path, findings: list[Finding]) -> InvalidProject:
    errors = errors_in(findings)
    message = f"{file.name} is invalid: {errors[0].message}"
    if len(errors) > 1:
        message = f"{file.name} has {len(errors)} errors:\n" + "\n".join(f"  {finding}" for finding in errors)
    hint = errors[0].fix or "Correct it in the executor's repository."
    place = f" (line {errors[0].place.line})" if errors[0].place.line and len(errors) == 1 else ""
    return InvalidProject(message + place, hint=hint, findings=findings)


@dataclass
class _Reader:
    folder: Path
    file: Path
    document: Document
    findings: list[Finding] = field(default_factory=list)

    def read(self) -> Project:
        """The project as far as it can be read; what is wrong goes to `findings`."""
        value = self.document.value
        if not isinstance(value, dict):
            self._error("structure", "The file is no mapping of keys to values.")
            value = {}
        if value.get("databricks_spark_job") is not None:
            self._error("unsupported", "A databricks_spark_job runs on Databricks only.", "databricks_spark_job")
        self._unknown_keys(value, _PROJECT_KEYS | {"databricks_spark_job"})
        environment = self._environment(value)
        entry_points = self._entry_points(value)
        return Project(self.folder, self.file, self._name(value), entry_points, environment)

    def _error(self, rule: str, message: str, *keys: str | int, fix: str = "") -> None:
        self.findings.append(self._finding(Severity.ERROR, rule, message, keys, fix))

    def _warn(self, rule: str, message: str, *keys: str | int, fix: str = "") -> None:
        self.findings.append(self._finding(Severity.WARNING, rule, message, keys, fix))

    def _finding(
        self, severity: Severity, rule: str, message: str, keys: tuple[str | int, ...], fix: str = ""
    ) -> Finding:
        return Finding(rule, severity, message, self.document.place(*keys), fix)

    def _unknown_keys(self, value: Mapping[Any, Any], known: frozenset[str], *keys: str) -> None:
        for key in value:
            if key not in known:
                where = f" of {keys[-1]}" if keys else ""
                fix = did_you_mean(str(key), known)
                self._warn("unknown-key", f"MLflow ignores the key '{key}'{where}.", *keys, str(key), fix=fix)

    def _name(self, value: Mapping[Any, Any]) -> str:
        name = value.get("name")
        if isinstance(name, (dict, list)):
            self._error("structure", "name is no text.", "name")
            return ""
        return "" if name is None else str(name)

    # ------------------------------------------------------------------------------------------------- environment

    def _environment(self, value: Mapping[Any, Any]) -> EnvironmentDeclaration:
        named = [key for key in _ENVIRONMENT_KEYS if key in value]
        if len(named) > 1:
            self._error("several-environments", f"{' and '.join(named)} are both there.", named[1], fix="Keep one.")
        elif named and value[named[0]]:
            key = named[0]
            if key == "docker_env":
                return EnvironmentDeclaration("docker", docker=self._docker(value[key]))
            return EnvironmentDeclaration(_ENVIRONMENT_KEYS[key], self._environment_file(key, value[key]))
        for name, kind in _DEFAULT_FILES.items():
            if (self.folder / name).exists():
                return EnvironmentDeclaration(kind, self._environment_file(name, name))
        return EnvironmentDeclaration("none")

    def _environment_file(self, key: str, name: Any) -> str:
        if not isinstance(name, str):
            self._error("structure", f"{key} is no file name.", key)
            return ""
        path = self.folder / name
        if not path.resolve().is_relative_to(repository_root(self.folder)):
            fix = "Name a file inside the repository."
            self._error("outside-repository", f"{key} leaves the repository: {name}", key, fix=fix)
        elif not path.is_file():
            message = f"{key} names {name}, but there is no such file."
            self._error("missing-file", message, key, fix=f"Add {name} beside {self.file.name}, or correct the name.")
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else name

    def _docker(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            self._error("structure", "docker_env is no mapping.", "docker_env", fix="Write: docker_env: {image: …}")
            return {}
        self._unknown_keys(value, _DOCKER_KEYS, "docker_env")
        if not isinstance(value.get("image"), str) or not value["image"]:
            self._error("structure", "docker_env names no image.", "docker_env", "image")
        volumes, environment = value.get("volumes") or [], value.get("environment") or []
        if not isinstance(volumes, list) or not all(isinstance(item, str) for item in volumes):
            fix = 'For example: ["/data:/data"]'
            self._error("structure", "docker_env.volumes is no list of texts.", "docker_env", "volumes", fix=fix)
        if not isinstance(environment, list) or not all(_is_variable(item) for item in environment):
            fix = 'For example: [["NEW", "value"], "COPIED_FROM_HOST"]'
            message = "docker_env.environment is no list of names and [name, value] pairs."
            self._error("structure", message, "docker_env", "environment", fix=fix)
        return dict(value)

    # ------------------------------------------------------------------------------------------------ entry points

    def _entry_points(self, value: Mapping[Any, Any]) -> dict[str, EntryPoint]:
        entries = value.get("entry_points", {})
        if not isinstance(entries, dict):
            fix = "Write each one as `name: {command: …}`."
            self._error("structure", "entry_points is no mapping of names to commands.", "entry_points", fix=fix)
            return {}
        return {str(name): self._entry_point(str(name), entry) for name, entry in entries.items()}

    def _entry_point(self, name: str, value: Any) -> EntryPoint:
        keys = ("entry_points", name)
        if not isinstance(value, dict):
            self._error("structure", f"Entry point '{name}' is no mapping with a command.", *keys)
            return EntryPoint(name, "", {})
        self._unknown_keys(value, frozenset({"parameters", "command", "produces"}), *keys)
        parameters = value.get("parameters", {})
        if not isinstance(parameters, dict):
            fix = "Write each one as `name: type`, or leave the key out."
            self._error("structure", f"parameters of '{name}' is no mapping.", *keys, "parameters", fix=fix)
            parameters = {}
        declared = {str(key): self._parameter(str(key), item, *keys) for key, item in parameters.items()}
        command = value.get("command")
        if not isinstance(command, str) or not command.strip():
            self._error("structure", f"Entry point '{name}' has no command.", *keys, "command")
            command = ""
        produces = value.get("produces", POLYGONS)
        if produces not in (POLYGONS, FILES):
            fix = f"Write {POLYGONS} (it writes an output.json) or {FILES} (what it logs is the result)."
            self._error("structure", f"'{name}' produces neither.", *keys, "produces", fix=fix)
        return EntryPoint(name, command, declared, self._command_problems(name, command, declared), str(produces))

    def _command_problems(self, name: str, command: str, declared: Mapping[str, Parameter]) -> tuple[Finding, ...]:
        keys = ("entry_points", name, "command")
        problems = []
        for found in shell.check(command, declared):
            message = f"Entry point '{name}' cannot be run: {found.message}"
            problems.append(self._finding(Severity.ERROR, found.rule, message, keys, found.fix))
        # Another entry point may be fine, so the project is: these are its warnings and this entry point's errors.
        self.findings.extend(replace(problem, severity=Severity.WARNING) for problem in problems)
        return tuple(problems)

    def _parameter(self, name: str, value: Any, *above: str) -> Parameter:
        keys = (*above, "parameters", name)
        if not _PARAMETER_NAME.fullmatch(name):
            self._warn("parameter-name", f"A command cannot use a parameter of the name {name!r}.", *keys)
        more: Mapping[str, Any] = value if isinstance(value, dict) else {"type": value}
        self._unknown_keys(more, _PARAMETER_KEYS, *keys)
        declared, default = more.get("type", "string"), more.get("default")
        if not isinstance(declared, str):
            fix = f"Write `{name}: string`, or `{name}: {{type: float, default: 1}}`."
            self._error("structure", f"Parameter '{name}' has no type.", *keys, fix=fix)
            declared = "string"
        known = declared in {str(kind) for kind in ParameterType}
        if not known and declared.lower() not in kinds.CHECKED:
            fix = f"MLflow knows {', '.join(ParameterType)}."
            self._warn("unknown-type", f"Type '{declared}' of '{name}' is taken as string.", *keys, fix=fix)
        kind = ParameterType(declared) if known else ParameterType.STRING
        parameter = Parameter(
            name,
            kind,
            None if default is None else str(default),
            declared,
            str(more.get("description", "")),
            minimum=self._limit(more, "min", *keys),
            maximum=self._limit(more, "max", *keys),
            step=self._limit(more, "step", *keys),
            options=self._options(more, *keys),
            adjustable=more.get("adjustable") is not False,
        )
        problem = "" if parameter.default is None else type_problem(parameter, parameter.default)
        if problem:
            self._warn("bad-default", f"The default of '{name}' does not fit: {problem}", *keys)
        return parameter

    def _limit(self, value: Mapping[str, Any], key: str, *keys: str) -> float | None:
        limit = value.get(key)
        if limit is None or (isinstance(limit, (int, float)) and not isinstance(limit, bool)):
            return limit
        self._error("structure", f"{key} of '{keys[-1]}' is no number.", *keys, key)
        return None

    def _options(self, value: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
        options = value.get("options") or []
        if isinstance(options, list) and all(isinstance(option, (str, int, float)) for option in options):
            return tuple(kinds.write(option) for option in options)
        self._error("structure", f"options of '{keys[-1]}' is no list of values.", *keys, "options")
        return ()


def _is_variable(item: Any) -> bool:
    if isinstance(item, list):
        return len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], (str, int, float, bool))
    return isinstance(item, str)
