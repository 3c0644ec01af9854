"""Libraries for the formats of microscope vendors: an extra, because few need them."""

from __future__ import annotations

import importlib
from typing import Any

from segserve.inputs.base import Unusable


def library(name: str, kind: str) -> Any:
    """Import a library of the extra `microscopes`, or say how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unusable(
            "image-missing-library",
            f"is a {kind} file, and the library that reads these ({name}) is not installed",
            "Run: pip install 'segserve[microscopes]'",
        ) from error
