"""Places where an attempt can run. Each kind is a module that satisfies `base.Backend`; this is the list of them,
and mypy holds each against the Protocol.
"""

from __future__ import annotations

from collections.abc import Mapping

from segserve.backends import local
from segserve.backends.base import Backend, Handle

BACKENDS: Mapping[str, Backend] = {"local": local}

__all__ = ["BACKENDS", "Backend", "Handle"]
