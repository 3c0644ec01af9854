"""Files of runs and models that an executor creates in a sandbox, where MLflow keeps artifacts in folders.

A sandbox shows the artifact folder of the job's own run; those of runs that are created later cannot be shown any more.
So what the executor hears of them is another place, which it may write, and at the end the files go where they belong.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Elsewhere:
    """`folder` is that other place: below it a folder for each run and model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._belongs: dict[str, Path] = {}  # id of a run or model → its artifact folder

    def created(self, answer: bytes) -> None:
        """Take note of a run or model that was created through the gate (MLflow's answer)."""
        for info in _infos(json.loads(answer)):
            name, place = _id(info), urlsplit(str(info.get("artifact_uri", "")))
            if place.scheme in ("", "file") and place.path.startswith("/"):
                self._belongs[name] = Path(unquote(place.path))
                (self._folder / name).mkdir(parents=True, exist_ok=True)

    def shown(self, answer: bytes) -> bytes:
        """MLflow's answer about a run or model, with the other place in it if it is one of those."""
        message = json.loads(answer)
        for info in _infos(message):
            if _id(info) in self._belongs:
                info["artifact_uri"] = str(self._folder / _id(info))
        return json.dumps(message).encode()

    def bring(self) -> None:
        """Bring the files where they belong. Nobody writes them any more.

        Raises:
            OSError: the disk is full, for one.
        """
        for name, folder in self._belongs.items():
            source = self._folder / name
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, folder, ignore=_no_files, copy_function=_link, dirs_exist_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def _infos(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for kind in ("run", "model"):
        info = message.get(kind, {}).get("info")
        if isinstance(info, dict):
            yield info


def _id(info: dict[str, Any]) -> str:
    return str(info.get("run_id") or info.get("model_id"))


def _no_files(folder: str, names: list[str]) -> list[str]:
    """Whatever an executor has left that is neither a file nor a folder: links lead anywhere."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if path.is_symlink() or not (path.is_file() or path.is_dir())]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system
        shutil.copyfile(source, target, follow_symlinks=False)
