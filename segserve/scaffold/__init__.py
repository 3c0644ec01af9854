"""`segserve new`: a repository with an executor that runs as it stands, from the templates in `templates/executor`.

Three folders of templates are laid over each other: what all have, the method, the environment. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from segserve import kit, process
from segserve.errors import BackendError, UsageError, writing
from segserve.scaffold.source import Source

METHODS: Mapping[str, tuple[str, tuple[str, ...]]] = {  # name → (what it does, what it needs besides)
    "threshold": ("Finds bright objects by a threshold.", ()),
    "torch": ("Finds bright objects with a small PyTorch network.", ("torch>=2.4",)),
    "onnx": ("Finds bright objects with a small ONNX network.", ("onnx>=1.15", "onnxruntime>=1.16")),
    "cellpose": ("Finds cells with Cellpose 3.", ("cellpose>=3,<4",)),
}
MODULES: Mapping[str, str] = {  # algorithm modules, which have no MLProject: name → what it does
    "compox-segmentation": "Finds bright or dark objects by a threshold.",
    "compox-denoising": "Removes noise by non-local means.",
    "compox-registration": "Finds the shift between neighbouring images by phase correlation.",
}
ENVIRONMENTS: Mapping[str, tuple[str, str]] = {  # name → (line of the MLProject, file)
    "uv": ("python_env: python_env.yaml", "python_env.yaml"),
    "conda": ("conda_env: conda.yaml", "conda.yaml"),
    "docker": ("docker_env: {{image: {image}}}", "Dockerfile"),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_TEMPLATES = Path(__file__).parent.parent / "templates" / "executor"
# Circles of the example image: (x, y) of the middle, radius, in pixels.
_OBJECTS = ((24, 30, 9), (70, 22, 12), (110, 40, 8), (36, 84, 14), (84, 76, 10), (112, 108, 11), (60, 114, 7))


@dataclass(frozen=True, slots=True)
class Author:
    """Who git says writes here; empty when it does not know."""

    name: str = ""
    email: str = ""


def create(folder: Path, *, template: str = "threshold", env: str = "uv", source: Source | None = None) -> Path:
    """Write an executor into `folder`, which must not exist or be empty, and commit it; its absolute path.

    The last part of the path is the executor's name. From `source` its CI takes segserve, with the GitHub action, the
    GitLab include and the hook that lie there; without one, CI installs segserve from the package index.

    Raises:
        UsageError: the name cannot be one, or the folder is in use or cannot be written; `env` for a module.
        BackendError: git refuses to commit.
    """
    folder = folder.absolute()
    if not _NAME.fullmatch(folder.name):
        raise UsageError(
            f"'{folder.name}' cannot be the name of an executor.", hint="A letter, then letters, digits, - and _."
        )
    if template in MODULES and env != "uv":
        raise UsageError(
            f"{template} has no --env: a module's environment is in its pyproject.toml.", hint="Leave --env out."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"'{folder}' exists already.", hint="Choose another name, or an empty folder.")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        author = _author(folder)
        answers = {**_answers(folder.name, template, env, author), **_ci(source)}
        if template in MODULES:
            _render(folder, answers, ("every", "module", template))
        else:
            _render(folder, answers, ("every", "common", template, f"env-{env}"))
            kit.write_wheel(folder / "wheels")
        _write_example(folder / "example", pair=template == "compox-registration")
        (folder / "ci.sh").chmod(0o755)
    _commit(folder, author)
    return folder


def _answers(name: str, template: str, env: str, author: Author) -> dict[str, Any]:
    words = re.split(r"[-_]+", name)
    line, file = ENVIRONMENTS[env]
    about, needs = (MODULES[template], ()) if template in MODULES else METHODS[template]
    image = f"{name.lower()}:1"
    return {
        "dot": ".",
        "name": name,
        "title": " ".join(words).capitalize(),
        "class_name": "".join(word[:1].upper() + word[1:] for word in words),
        "template": template,
        "env": env,
        "environment": line.format(image=image),
        "environment_file": file,
        "image": image,
        "about": about,
        "needs": list(needs),
        "wheel": kit.file_name(),
        "objects": len(_OBJECTS),
        "year": datetime.now(UTC).year,
        "author": author.name or "the authors",
        "contact": re.sub(r"[\"\\]", "", author.name),
    }


def _ci(source: Source | None) -> dict[str, str]:
    if source is None:
        return dict.fromkeys(("source", "revision", "action", "include"), "") | {"requirement": "segserve"}
    return {
        "source": source.url,
        "revision": source.rev,
        "action": source.action,
        "include": source.include,
        "requirement": source.requirement,
    }


def _render(folder: Path, answers: Mapping[str, Any], layers: tuple[str, ...]) -> None:
    import copier  # takes half a second

    for layer in layers:
        data = {**answers, "layer": layer}
        copier.run_copy(str(_TEMPLATES), folder, data=data, defaults=True, quiet=True, overwrite=True, unsafe=False)


def _write_example(folder: Path, *, pair: bool) -> None:
    """A small image with bright discs on dark, slightly noisy ground: the same every time. A pair: it, and it moved."""
    image = np.random.default_rng(0).normal(30, 3, (140, 140)).astype(np.float32)
    for x, y, radius in _OBJECTS:
        cv2.circle(image, (x, y), radius, 180.0, -1, cv2.LINE_AA)
    image = cv2.GaussianBlur(image, (0, 0), 1)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    folder.mkdir()
    cv2.imwrite(str(folder / "discs.png"), pixels)
    if pair:
        moved = cv2.warpAffine(pixels, np.array([[1.0, 0, 6], [0, 1, -4]]), pixels.shape[::-1], borderValue=30)
        cv2.imwrite(str(folder / "discs-moved.png"), moved)


def _author(folder: Path) -> Author:
    asked = [
        process.run(["git", "config", "--get", f"user.{key}"], cwd=folder, check=False).stdout.strip()
        for key in ("name", "email")
    ]
    return Author(os.environ.get("GIT_AUTHOR_NAME") or asked[0], os.environ.get("GIT_AUTHOR_EMAIL") or asked[1])


def _commit(folder: Path, author: Author) -> None:
    # Git refuses to commit for nobody; whoever goes on with the repository can amend it.
    unknown = [] if author.name else ["-c", "user.name=segserve new"]
    unknown += [] if author.email else ["-c", "user.email=nobody@localhost"]
    message = "An executor, as segserve new writes it"
    try:
        for words in (["init", "--quiet", "-b", "main"], ["add", "-A"], [*unknown, "commit", "--quiet", "-m", message]):
            process.run(["git", *words], cwd=folder)
    except process.CommandFailed as failure:
        raise BackendError(
            f"The files are in '{folder}', but git did not commit them.", quote=str(failure), hint="git commit there."
        ) from None
