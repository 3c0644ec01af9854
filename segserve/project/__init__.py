"""MLProject → entry points with typed parameters; everything cheap is checked before anything slow.

`load` reads a folder as MLflow would, but refuses what would crash or escape; `select` finds an entry point and refuses
commands in which a value could run code; `check_parameters` does the type checks that MLflow leaves out.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath
from typing import Any

from segserve.errors import InvalidProject, UnknownEntryPoint, did_you_mean
from segserve.project import kinds
from segserve.project.read import find_project_file, load, repository_root
from segserve.project.types import (
    CONVENTIONAL_IMAGES,
    FILES,
    POLYGONS,
    EntryPoint,
    EnvironmentDeclaration,
    Parameter,
    ParameterType,
    Project,
)
from segserve.project.values import check_parameters, type_problem

__all__ = [
    "CONVENTIONAL_IMAGES",
    "FILES",
    "POLYGONS",
    "EntryPoint",
    "EnvironmentDeclaration",
    "Parameter",
    "ParameterType",
    "Project",
    "check_parameters",
    "describe",
    "find_project_file",
    "kinds",
    "load",
    "repository_root",
    "select",
    "type_problem",
]

_SCRIPTS = {".py": "python", ".sh": "bash"}


def select(project: Project, entry: str) -> EntryPoint:
    """The entry point of a name; as in MLflow, a `.py` or `.sh` file of the project is one without being declared.

    Raises:
        UnknownEntryPoint: there is none.
        InvalidProject: its command cannot be run, or a parameter's value could run commands in it.
    """
    found = project.entry_points.get(entry) or _script(project, entry)
    if found is None:
        raise UnknownEntryPoint(
            f"{project.name or 'The project'} has no entry point '{entry}'.",
            hint=did_you_mean(entry, project.entry_points) or f"{project.file.name} declares none.",
        )
    if found.problems:
        lines = "\n".join(f"  {problem.message}" for problem in found.problems[1:])
        message = found.problems[0].message + (f"\n{lines}" if lines else "")
        raise InvalidProject(
            message, hint=f"{found.problems[0].place}: {found.problems[0].fix}", findings=found.problems
        )
    return found


def describe(project: Project) -> dict[str, Any]:
    """The project for `segserve info --json`: JSON values only."""
    environment = project.environment
    return {
        "name": project.name,
        "file": project.file.name,
        "manifest": project.manifest.as_json(),
        "environment": {
            "kind": environment.kind,
            "source": environment.file or str(environment.docker.get("image", "")),
        },
        "entry_points": [_describe_entry(entry) for entry in project.entry_points.values()],
        **({"module": dict(project.module)} if project.module else {}),
    }


def _describe_entry(entry: EntryPoint) -> dict[str, Any]:
    return {
        "name": entry.name,
        "command": entry.command.strip(),
        "images_parameter": entry.images_parameter,
        "parameters": [
            {
                "name": p.name,
                "type": p.declared or str(p.type),
                "default": p.default,
                "required": p.required,
                "description": p.description,
                "min": p.minimum,
                "max": p.maximum,
                "step": p.step,
                "options": list(p.options),
                "adjustable": p.adjustable,
            }
            for p in entry.parameters.values()
        ],
        "produces": entry.produces,
        "problems": [str(problem) for problem in entry.problems],
    }


def _script(project: Project, entry: str) -> EntryPoint | None:
    program = _SCRIPTS.get(PurePosixPath(entry).suffix)
    # A name that begins with '-' would be an option of python.
    if program is None or entry.startswith("-") or not entry.isprintable():
        return None
    path = project.folder / entry
    if not path.is_file() or not path.resolve().is_relative_to(project.folder):
        return None
    return EntryPoint(entry, f"{program} {shlex.quote(entry)}", {})
