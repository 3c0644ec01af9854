"""The gate between an attempt and MLflow: it passes calls on the attempt's own run, and refuses everything else.

`rules` (which calls pass; no I/O) → `relay` (the small HTTP server on loopback that passes them on, with credentials
that the executor never sees). The supervisor opens it before the executor starts, and it ends with the supervisor.
"""

from __future__ import annotations

from segserve.gate.relay import Gate
from segserve.gate.rules import Rules

__all__ = ["Gate", "Rules"]
