"""`--env local`: the environment of this shell as it is, for those who know what they do. Nothing is built."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from segserve.environments import pip
from segserve.environments.base import BuildOptions, Report, key_of, platform_facts
from segserve.errors import InvalidParameters
from segserve.model import Environment, EnvironmentSpec
from segserve.project import Project

kind = "local"


def detect(project: Project, options: BuildOptions) -> EnvironmentSpec | None:
    """A specification when `--env local` was given, else None.

    Raises:
        InvalidParameters: `--python` along with it.
    """
    if options.kind != kind:
        return None
    if options.python:
        raise InvalidParameters(
            "--env local takes the Python that is first on PATH.", hint="Leave --python or --env away."
        )
    python = _python()
    return EnvironmentSpec(
        kind=kind,
        source=project.environment.file,
        key=key_of(kind, {"platform": platform_facts(), "python": str(python)}),
        details={"python": str(python)},
        warnings=(f"--env local: {python} is used as it is; the project's environment is not built.",),
    )


def build(spec: EnvironmentSpec, project: Project, prefix: Path, report: Report) -> Environment:
    """Nothing but a record of what is there; `prefix` is not made."""
    del project, prefix
    python = Path(spec.details["python"])
    report(f"Using {python} as it is")
    folder = python.parent
    variables = {name: os.environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)}
    return Environment(
        spec=spec, location=str(folder.parent), path=(str(folder),), variables=variables, packages=pip.freeze(python)
    )


def health(environment: Environment) -> str | None:
    """Whether the interpreter is there."""
    python = Path(environment.spec.details["python"])
    return None if os.access(python, os.X_OK) else f"{python} is gone"


def _python() -> Path:
    found = shutil.which("python") or shutil.which("python3")
    return Path(found or sys.executable)
