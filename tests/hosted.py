"""GitHub's hosted runner as far as a composite action and a plain job see it: on this machine, or in a container."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segserve.environments.indexes import pip_settings

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


@dataclass
class Runner:
    """Files for env, path and output; expressions in `env` alone. `inside` are the words that lead into a container.

    Of actions it knows our own, which lies in `action`; what other actions would do is not executed here.
    """

    folder: Path
    workspace: Path
    inputs: Mapping[str, str]
    env: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    log: str = ""
    action: Path = ROOT
    inside: Sequence[str] = ()

    def run(self, steps: Sequence[Mapping[str, Any]]) -> int:
        """The exit code of the first step that fails, else 0."""
        for number, step in enumerate(steps):
            if "run" in step:
                code = self._step(step, number)
                if code:
                    return code
        return 0

    def _step(self, step: Mapping[str, Any], number: int) -> int:
        script = self.folder / f"{number}.sh"
        script.write_text(step["run"])
        assert "${{" not in step["run"], "expressions belong into env: there they are no code"
        files = {name: self.folder / f"{number}.{name}" for name in ("GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT")}
        for file in files.values():
            file.write_text("")
        given = {name: self.value(str(text)) for name, text in step.get("env", {}).items()}
        env = {**self.env, **given, **{name: str(file) for name, file in files.items()}}
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        if self.inside:
            words = [
                *self.inside,
                "env",
                "-i",
                "-C",
                str(self.workspace),
                *(f"{k}={v}" for k, v in env.items()),
                *words,
            ]
        done = subprocess.run(
            words, cwd=self.workspace, env=None if self.inside else env, capture_output=True, text=True
        )
        self.log += done.stdout + done.stderr
        self.env |= _pairs(files["GITHUB_ENV"])
        self.env["PATH"] = os.pathsep.join([*files["GITHUB_PATH"].read_text().split(), self.env["PATH"]])
        self.outputs[step.get("id", str(number))] = _pairs(files["GITHUB_OUTPUT"])
        return done.returncode

    def value(self, text: str) -> str:
        """`text` with its expressions evaluated."""

        def look_up(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("inputs."):
                return self.inputs.get(name[7:], ACTION["inputs"][name[7:]]["default"])
            if name.startswith("steps."):
                _, step, _, output = name.split(".")
                return self.outputs.get(step, {}).get(output, "")
            return {"github.action_path": str(self.action)}[name]

        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", look_up, text)


def _pairs(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def download_action(folder: Path) -> Path:
    """The tracked files of this repository in `folder`, as the runner unpacks an action before the job."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():  # not yet committed: removed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@dataclass
class Container:
    """A machine of its own that sees `folder` (read and write, at its own path) and the package index of this one."""

    image: str
    folder: Path
    name: str = ""

    def __enter__(self) -> Container:
        words = ["docker", "run", "--rm", "-d", "--init", "--network", "host", "--label", "segserve.test"]
        words += ["-v", f"{self.folder}:{self.folder}"]
        for path in _named():
            words += ["-v", f"{path}:{path}"]
        done = subprocess.run([*words, self.image, "sleep", "900"], check=True, capture_output=True, text=True)
        self.name = done.stdout.strip()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["docker", "kill", self.name], check=True, capture_output=True)

    @property
    def inside(self) -> list[str]:
        """The words that run a command in it."""
        return ["docker", "exec", self.name]


def variables() -> dict[str, str]:
    """How this machine reaches its package index, and uv's cache, in the words of pip and uv."""
    found = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in pip_settings().items()}
    return found | {
        name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "UV_CACHE_DIR") if name in os.environ
    }


def _named() -> set[Path]:
    """Files and folders that `variables` name: certificates, wheels, the cache. An index links to files beside it."""
    words = " ".join(variables().values()).split()
    indexes = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")}
    plain = {Path(part) for word in words if "://" not in word for part in word.split(":")}
    return {path for path in indexes | plain if path.is_absolute() and len(path.parts) > 1 and path.exists()}
