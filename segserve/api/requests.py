"""Plain values → a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segserve import config, refs, registry
from segserve.api.verbs import Verbs
from segserve.environments.base import BuildOptions
from segserve.exporters import targets
from segserve.inputs import Selection
from segserve.model import Resources
from segserve.pipeline import Request

CONFIGURED = "config.toml"


def registered(settings: config.Settings) -> dict[str, registry.Registered]:
    """Short names: those of config.toml, and those that come with segserve."""
    configured: dict[str, registry.Registered | None] = {}
    for name, entry in settings.executors.items():
        if isinstance(entry, config.ExecutorSettings):
            configured[name] = registry.Registered(name, entry.ref, entry.description, CONFIGURED)
        else:
            configured[name] = registry.Registered(name, entry, origin=CONFIGURED) if entry else None
    return registry.known(configured)


class Requests(Verbs):
    """What is asked for."""

    def request(
        self,
        ref: str,
        images: str | Path | Sequence[str | Path] = (),
        *,
        rev: str | None = None,
        entry: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        output: Path | None = None,
        detach: bool = False,
        first: int | None = None,
        channel: str | int | None = None,
        z: str | int | None = None,
        series: str | int | None = None,
        frames: str | None = None,
        depth: str | int | None = None,
        gpus: str | int = "auto",
        no_wait: bool = False,
        timeout: float | None = None,
        memory: float | None = None,
        cpus: float | None = None,
        overlays: int | None = 24,
        exports: str | None = None,
        experiment: str | None = None,
        keep: bool = False,
        reuse: bool | None = None,
        kind: str | None = None,
        python: str | None = None,
        no_lock: bool = False,
        offline: bool = False,
        committed: bool = False,
        allow_unreachable: bool = False,
        submodules: bool = False,
    ) -> Request:
        """A request from plain values.

        Raises:
            InvalidRef, UsageError: something is not what it should be.
        """
        chosen = self.ctx.settings
        parsed = refs.parse(ref, rev=rev, entry=entry)
        parsed = registry.resolve(parsed, ref, registered(chosen), entry=entry)
        limit = chosen.run.timeout_s if timeout is None else timeout
        return Request(
            ref=parsed,
            images=(str(images),) if isinstance(images, (str, Path)) else tuple(str(path) for path in images),
            parameters={name: str(value) for name, value in (parameters or {}).items()},
            selection=Selection(
                channel=channel,
                z=None if z is None else str(z),
                series=None if series is None else str(series),
                frames=frames,
                depth=None if depth is None else int(depth),
                first=first,
            ),
            build=BuildOptions(
                kind=kind,
                python=python,
                channels=chosen.environments.channels,
                mirrors=chosen.environments.mirrors,
                keep_defaults=chosen.environments.keep_defaults,
                docker_volumes=chosen.environments.docker_volumes,
                docker_variables=chosen.environments.docker_variables,
                offline=offline,
                use_lock=not no_lock,
            ),
            gpus=str(gpus),
            wait=not no_wait,
            resources=Resources(cpus=cpus or 0.0, memory_gb=memory or 0.0, timeout_s=limit),
            output=output,
            overlays=overlays,
            exports=targets(exports) if exports else (),
            experiment=experiment or "",
            attached=not detach,
            offline=offline,
            committed=committed,
            allow_unreachable=allow_unreachable,
            submodules=submodules,
            keep=keep,
            reuse=chosen.queue.reuse_results if reuse is None else reuse,
        )
