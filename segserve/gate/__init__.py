"""The gate between an attempt and MLflow: it passes calls on the attempt's own run, and refuses everything else.

`rules` (which calls pass; no I/O) → `relay` (the small HTTP server on loopback that passes them on, with credentials
that the executor never sees). In a sandbox it listens on a socket of the sandbox's own network (`door`), and beside it,
if the executor was granted the network, the way `outside`; files of runs that it creates go `elsewhere` first. The
supervisor opens the gate before the executor starts; it ends with the supervisor.
"""

from __future__ import annotations

from segserve.gate.door import Door
from segserve.gate.elsewhere import Elsewhere
from segserve.gate.outside import Outside
from segserve.gate.relay import Gate
from segserve.gate.rules import Rules, runs_named

__all__ = ["Door", "Elsewhere", "Gate", "Outside", "Rules", "runs_named"]
