"""segserve: run any segmentation repository on your images with one command.

>>> import segserve
>>> result = segserve.run("https://host/group/executor@v1#main", ["images/"])
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segserve.api import Result, images, info, run, validate

try:
    __version__ = version("segserve")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["Result", "__version__", "images", "info", "run", "validate"]


def __getattr__(name: str) -> Any:
    """Load the façade on first use: the supervisor and the shell's completion do not pay for it."""
    if name in __all__:
        from segserve import api

        return getattr(api, name)
    raise AttributeError(f"module 'segserve' has no attribute '{name}'")
