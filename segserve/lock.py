"""`segserve.lock`: what exactly ran, or shall run, as TOML.

Every job writes one (`render`), and `segserve lock` writes one beside an executor's MLProject (`render_project`), which
later runs honour. Both are read by `read`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segserve import redact
from segserve.errors import UsageError
from segserve.model import Environment, Job
from segserve.refs import Pin

VERSION = 1
NAME = "segserve.lock"
MAX_BYTES = 4_000_000
# What holds learned numbers; hashed as a whole.
WEIGHTS = frozenset(
    {".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".h5", ".hdf5", ".keras", ".tflite", ".pkl", ".joblib", ".npz"}
)


@dataclass(frozen=True, slots=True)
class Lock:
    """What a lock file says. `packages` maps a platform (`linux-x86_64`) to lines that an installer takes.

    `declaration` is the hash of everything that the environment's files declare (empty in the lock of a job), `weights`
    maps paths in the project to SHA-256.
    """

    commit: str = ""
    tree: str = ""
    mlproject_sha256: str = ""
    kind: str = ""
    declaration: str = ""
    packages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)

    def here(self) -> tuple[str, ...]:
        """The packages for this platform; none if it was not locked for it."""
        return self.packages.get(platform_name(), ())


def platform_name() -> str:
    """This machine in a lock file: `linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


def weights(folder: Path) -> dict[str, str]:
    """Path (POSIX, relative) → SHA-256 of every file in a project's folder that looks like weights."""
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in WEIGHTS)
    files = [path for path in found if path.is_file() and not path.is_symlink() and ".git" not in path.parts]
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def read(path: Path) -> Lock:
    """Read a lock file, of a job or of a project.

    Raises:
        UsageError: there is none, or it is no lock file.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path} is too large for a lock file.")
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return _lock(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{path} is no lock file of segserve ({error}).", hint="`segserve lock` writes a new one."
        ) from None


def _lock(data: Mapping[str, Any]) -> Lock:
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']!r}")
    executor, environment = data["executor"], data["environment"]
    named = data.get("platform", {})
    packages = {str(name): _texts(table["packages"]) for name, table in named.items()}
    if "packages" in environment:
        packages[str(environment["platform"])] = _texts(environment["packages"])
    return Lock(
        commit=str(executor["commit"]),
        tree=str(executor.get("tree", "")),
        mlproject_sha256=str(executor["mlproject_sha256"]),
        kind=str(environment["kind"]),
        declaration=str(environment.get("declaration", "")),
        packages=packages,
        weights={str(name): str(digest) for name, digest in data.get("weights", {}).items()},
    )


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.isprintable() for item in value):
        raise ValueError("packages are no list of texts")
    return tuple(value)


def render(job: Job, environment: Environment, project_file: Path, segserve_version: str) -> str:
    """The lock of one job: pin, hashes of MLProject and environment, exact packages on this platform."""
    return _render(
        {
            "": {"version": VERSION, "segserve": segserve_version},
            "executor": _executor(job.pin, project_file),
            "environment": {
                "kind": environment.spec.kind,
                "source": environment.spec.source,
                "key": environment.spec.key,
                "platform": platform_name(),
                "packages": [redact.text(package) for package in environment.packages],
            },
        }
    )


def render_project(
    pin: Pin,
    tree: str,
    project_file: Path,
    environment: Environment,
    declaration: str,
    packages: Mapping[str, tuple[str, ...]],
    segserve_version: str,
) -> str:
    """The lock of a project. `packages`: of this platform, and those of others that an older lock had."""
    sections: dict[str, Mapping[str, Any]] = {
        "": {"version": VERSION, "segserve": segserve_version},
        "executor": {**_executor(pin, project_file), "tree": tree},
        "environment": {
            "kind": environment.spec.kind,
            "source": environment.spec.source,
            "declaration": declaration,
        },
    }
    for name, lines in sorted(packages.items()):
        sections[f"platform.{_value(name)}"] = {"packages": [redact.text(line) for line in lines]}
    found = weights(project_file.parent)
    if found:
        sections["weights"] = {_value(name): digest for name, digest in found.items()}
    return _render(sections)


def _executor(pin: Pin, project_file: Path) -> dict[str, Any]:
    return {
        "repository": pin.repo,
        "commit": pin.sha,
        "subdir": pin.subdir,
        "mlproject_sha256": _sha256(project_file),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _render(sections: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(_section(name, values) for name, values in sections.items())


def _section(name: str, values: Mapping[str, Any]) -> str:
    head = [f"[{name}]"] if name else []
    return "\n".join(head + [f"{key} = {_value(value)}" for key, value in values.items()]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_value(item)},\n" for item in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    # A JSON string is TOML's too, but for DEL, and for escapes of what is no character by itself: half an emoji, a byte
    # of a file name that is no UTF-8 (https://toml.io/en/v1.0.0#string).
    text = value.encode("utf-8", "replace").decode("utf-8")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
