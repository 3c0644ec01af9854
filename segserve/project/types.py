"""What an MLProject says, as frozen types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from segserve.findings import Finding
from segserve.manifest import NONE, Manifest

CONVENTIONAL_IMAGES = "input_images"

POLYGONS, FILES = "polygons", "files"  # what an entry point that takes images hands back


class ParameterType(StrEnum):
    """The types that MLflow knows. It takes anything else as an opaque string."""

    STRING = "string"
    FLOAT = "float"
    PATH = "path"
    URI = "uri"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A declared parameter. `declared` is the type as written (`int`), `type` what MLflow makes of it.

    What MLflow ignores and segserve checks or shows: `minimum` and `maximum` (both allowed), `options` (texts that are
    equal to a value in its type), `step` (how far a control moves; other values are fine), `description`, `adjustable`
    (whether a page offers it to people).
    """

    name: str
    type: ParameterType
    default: str | None = None
    declared: str = ""
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    options: tuple[str, ...] = ()
    adjustable: bool = True

    @property
    def required(self) -> bool:
        """It has no default."""
        return self.default is None


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """A command with named parameters. `problems` are errors that keep this entry point alone from being run.

    `produces` is `polygons` (an output.json with one list per image) or `files` (whatever it logs is the result).
    """

    name: str
    command: str
    parameters: Mapping[str, Parameter]
    problems: tuple[Finding, ...] = ()
    produces: str = POLYGONS

    @property
    def defaults(self) -> dict[str, str]:
        """The values of parameters that nobody gives."""
        return {p.name: p.default for p in self.parameters.values() if p.default is not None}

    @property
    def images_parameter(self) -> str | None:
        """Which parameter gets the staged images: `input_images`, else the one `path` without a default, else none."""
        if CONVENTIONAL_IMAGES in self.parameters:
            return CONVENTIONAL_IMAGES
        paths = [p.name for p in self.parameters.values() if p.type is ParameterType.PATH and p.required]
        return paths[0] if len(paths) == 1 else None


@dataclass(frozen=True, slots=True)
class EnvironmentDeclaration:
    """`kind` is conda, python, docker or none; `file` is relative to the project (POSIX); `docker` is docker_env."""

    kind: str
    file: str = ""
    docker: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Project:
    """An executor's project: its folder (absolute), its MLProject file, its name (empty if the file has none).

    `manifest` is what its segserve.toml says about it. `findings` are warnings: they do not keep it from running.
    `module` is what a module of another dialect says of itself (see `segserve.dialects`): JSON values, empty for an
    MLProject of its own.
    """

    folder: Path
    file: Path
    name: str
    entry_points: Mapping[str, EntryPoint]
    environment: EnvironmentDeclaration
    manifest: Manifest = NONE
    findings: tuple[Finding, ...] = ()
    module: Mapping[str, Any] = field(default_factory=dict)
