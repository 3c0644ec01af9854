"""Short names of executors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segserve import config, manifest, refs, registry
from segserve.api.requests import CONFIGURED, Requests, registered
from segserve.errors import NotFound, SegserveError, did_you_mean


class Names(Requests):
    """Short names: list, add, remove."""

    def executors(self, *, algorithm_type: str = "", tags: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Short names of executors: what each stands for, its description, the title in its manifest, who says so.

        With a type or tags, only the algorithm modules of that type that have all the tags. Of remote ones, those are
        known that have been fetched before.
        """
        names = registered(self.ctx.settings).values()
        rows = [{**asdict(name), "title": _title(name)} for name in names]
        if not algorithm_type and not tags:
            return rows
        modules = [(row, self._known_module(row["ref"])) for row in rows]
        return [
            {**row, "algorithm_type": module["algorithm_type"], "tags": module["tags"]}
            for row, module in modules
            if module and algorithm_type in ("", module["algorithm_type"]) and set(tags) <= set(module["tags"])
        ]

    def _known_module(self, ref: str) -> dict[str, Any]:
        """What an algorithm module says of itself; empty for executors, and for what was never fetched."""
        try:
            with self._loaded(self.request(ref, offline=True)) as (_, loaded, _notes):
                return dict(loaded.module)
        except SegserveError:
            return {}

    def add_executor(self, name: str, ref: str, *, description: str = "") -> dict[str, str]:
        """Let a short name stand for a reference, in config.toml.

        Raises:
            UsageError: no name, or no reference; config.toml cannot be written.
        """
        text, before = str(registry.check(name, ref)), registered(self.ctx.settings).get(name)
        file = self.config or config.default_path()
        config.edit_executor(file, name, {"ref": text, "description": description} if description else text)
        return {"name": name, "ref": text, "file": str(file), "before": before.ref if before else ""}

    def remove_executor(self, name: str) -> dict[str, str]:
        """Forget a short name of config.toml, or hide one that comes with segserve.

        Raises:
            NotFound: there is no such name.
        """
        names = registered(self.ctx.settings)
        if name not in names:
            raise NotFound(f"No executor is registered under '{name}'.", hint=did_you_mean(name, names))
        file, ours = self.config or config.default_path(), names[name].origin == CONFIGURED
        config.edit_executor(file, name, None if ours else False)
        return {"name": name, "what": "is forgotten" if ours else "is hidden", "file": str(file)}


def _title(name: registry.Registered) -> str:
    """The title in the manifest of an executor in a folder here; those of others are not fetched for a list."""
    target = refs.parse(name.ref)
    if target.kind is not refs.RepoKind.PATH:
        return ""
    root = Path(target.repo)
    return manifest.load(root / target.subdir, root).manifest.title
