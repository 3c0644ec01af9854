"""Other kinds of module → a generated MLProject, so that everything behind it is the same for all executors.

`load` is what reads a project, whatever its dialect: an MLProject as it is; a Compox or T3D algorithm module (a folder
with `Runner.py` and `pyproject.toml`) by files that are written into the job's own checkout, where git does not see
them. The person's repository is never touched. What is supported stands in docs/modules.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segserve import project
from segserve.dialects.generate import write
from segserve.dialects.module import RUNNER, Module, near_miss, read, recognise
from segserve.dialects.rules import RULES
from segserve.dialects.runner import look
from segserve.errors import InvalidProject
from segserve.project import Project

__all__ = ["RULES", "RUNNER", "Module", "load", "look", "read", "recognise"]


def load(folder: Path) -> Project:
    """Read the project in `folder`, a folder of a checkout that belongs to us.

    Raises:
        InvalidProject: as `project.load`, and a module whose pyproject.toml is wrong; `findings` has every problem.
    """
    if recognise(folder):
        module = read(folder)
        write(module)
        loaded = project.load(folder)
        # What there is to say about the generated file was said about pyproject.toml, which its author can change.
        others = [finding for finding in loaded.findings if finding.place.path != loaded.file.name]
        return replace(loaded, findings=(*module.findings, *others), module=module.described())
    try:
        return project.load(folder)
    except InvalidProject as error:
        if hint := near_miss(folder):
            error.hint = hint
        raise
