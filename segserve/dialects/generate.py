"""The files that make a module an executor, written into a checkout of ours where `git status` does not show them.

MLProject                 main, check, info; the module's parameters with their types and limits
.segserve/python_env.yaml what to install
.segserve/module.json     what the guest package has to know
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segserve import manifest
from segserve.dialects import guest
from segserve.dialects.module import RUNNER, Module
from segserve.errors import InvalidProject
from segserve.project import CONVENTIONAL_IMAGES, Parameter, kinds, repository_root

FOLDER = ".segserve"
DEVICE = "device"
_AUTO = "auto"  # the module's default device, where this machine has it


def write(module: Module) -> None:
    """Write the generated files.

    Raises:
        InvalidProject: the repository has something of these names itself.
    """
    folder = module.folder
    project, own = folder / "MLProject", folder / FOLDER
    for path in (project, own):
        if path.is_symlink() or path.exists():
            raise InvalidProject(
                f"The module has a '{path.name}' of its own, where segserve writes what it generates.",
                hint="Rename it in the module's repository.",
            )
    _hide_from_git(folder)
    own.mkdir()
    installed = [*module.requirements.lines, *guest.install(own)]
    _write_yaml(
        own / "python_env.yaml", {"python": module.requirements.python, "dependencies": list(dict.fromkeys(installed))}
    )
    (own / "module.json").write_text(json.dumps(_facts(module), indent=1), encoding="utf-8")
    _write_yaml(
        project,
        {"name": module.name, "python_env": f"{FOLDER}/python_env.yaml", "entry_points": _entry_points(module)},
    )


def _hide_from_git(folder: Path) -> None:
    root = repository_root(folder)
    inside = folder.relative_to(root).as_posix()
    prefix = "/" if inside == "." else f"/{''.join(f'[{c}]' if c in '*?[' else c for c in inside)}/"
    exclude = root / ".git" / "info" / "exclude"
    if exclude.parent.parent.is_dir():
        exclude.parent.mkdir(exist_ok=True)
        with exclude.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{prefix}MLProject\n{prefix}{FOLDER}/\n__pycache__/\n")


def _write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False, width=10_000, allow_unicode=True), encoding="utf-8")


def _facts(module: Module) -> dict[str, Any]:
    return {
        "name": module.name,
        "version": module.version,
        "type": module.type,
        "runner": RUNNER,
        "check_importable": module.check_importable,
        "whole_set": manifest.load(module.folder, repository_root(module.folder)).manifest.run.whole_set,
        "supported_devices": list(module.supported),
        "default_device": module.default,
        "parameters": {p.name: {"base": kinds.base(p.declared), "list": kinds.is_list(p.declared)}
                       for p in module.parameters},
        "module_sha256": module.code,
        "assets_sha256": module.assets,
    }  # fmt: skip


def _entry_points(module: Module) -> dict[str, Any]:
    values: dict[str, Any] = {CONVENTIONAL_IMAGES: "path"}
    words = ["python -m segserve_modules run", f"{{{CONVENTIONAL_IMAGES}}}"]
    if all(parameter.name != DEVICE for parameter in module.parameters):
        values[DEVICE] = {
            "type": "string_enum",
            "default": _AUTO,
            "options": [_AUTO, *module.supported],
            "description": f"Where it runs; {_AUTO}: {module.default}",
        }
        words.append(f"--device={{{DEVICE}}}")
    for parameter in module.parameters:
        values[parameter.name] = _declared(parameter)
        words.append(f"--set={parameter.name}={{{parameter.name}}}")
    return {
        "main": {"parameters": values, "command": " ".join(words), "produces": module.produces},
        "check": {"command": "python -m segserve_modules check"},
        "info": {"command": "python -m segserve_modules info"},
    }


def _declared(parameter: Parameter) -> dict[str, Any]:
    kinds_of = {
        "type": parameter.declared,
        "default": parameter.default,
        "description": parameter.description or None,
        "min": parameter.minimum,
        "max": parameter.maximum,
        "step": parameter.step,
        "options": list(parameter.options) or None,
        "adjustable": None if parameter.adjustable else False,
    }
    return {key: value for key, value in kinds_of.items() if value is not None}
