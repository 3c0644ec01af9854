"""`Bounds`: what a request from elsewhere may reach on this machine, and how large it may be.

They are checked when the request comes in and, where only the worker can see it (what a folder holds, of which type a
parameter is, what an image declares), before anything is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segserve.errors import AccessDenied, TooLarge
from segserve.inputs import InputPlan, inside
from segserve.project import EntryPoint, ParameterType

_HINT = "Upload it; or whoever runs the server adds the folder to config.toml: [data_roots]"


@dataclass(frozen=True, slots=True)
class Bounds:
    """`roots`: folders (resolved) in which images and parameters may lie; None: anywhere. `images`: the most of one
    job, however many files they come in; `pixels`: the most of one image.
    """

    roots: tuple[str, ...] | None
    images: int
    pixels: int

    def check_path(self, path: str) -> None:
        """Refuse a path outside the roots, links followed.

        Raises:
            AccessDenied: it lies elsewhere, or is not named in full.
        """
        if self.roots is not None and not inside(path, self.roots):
            raise AccessDenied(f"'{path}' may not be read here.", hint=_HINT)

    def check_parameters(self, entry: EntryPoint, values: Mapping[str, str]) -> None:
        """Refuse parameters that name a file of this machine outside the roots.

        Raises:
            AccessDenied: one does.
        """
        for name, value in values.items():
            kind = entry.parameters[name].type if name in entry.parameters else None
            if kind not in (ParameterType.PATH, ParameterType.URI):
                continue
            local = value.removeprefix("file:")
            if local != value or ("://" not in value and not _is_other(kind, value)):
                self.check_path(local.removeprefix("//") if local.startswith("///") else local)

    def check_images(self, plan: InputPlan) -> None:
        """Refuse too many images, or too large ones, by what their headers declare.

        Raises:
            TooLarge: they are.
        """
        if plan.count > self.images:
            raise TooLarge(
                f"These are {plan.count} images; {self.images} is the limit.",
                hint="Take some of them (first, frames), or send several requests. (config.toml: server.max_images)",
            )
        for request in plan.requests:
            source = plan.sources[request.source]
            rows, columns = source.series[request.series].shape
            if rows * columns > self.pixels:
                raise TooLarge(
                    f"{Path(source.given).name} declares {columns} × {rows} pixels; {self.pixels} is the limit.",
                    hint="Cut it into tiles. (config.toml: server.max_megapixels)",
                )


def _is_other(kind: ParameterType, value: str) -> bool:
    """Whether it names no file: `runs:/…`, `models:/…`, and for a URI anything with a scheme."""
    return value.startswith(("runs:/", "models:/")) or (kind is ParameterType.URI and not value.startswith("/"))
