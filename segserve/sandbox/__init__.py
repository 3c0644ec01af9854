"""Shutting an executor in with bubblewrap: what it sees of this machine, everything at its own path.

`bubblewrap` (whether it works here; its arguments) · `doorway` (a script of its own that runs inside, makes the
listening sockets of the gate, sets limits and becomes the executor) · `shell` (the program that MLflow takes for bash).
"""

from __future__ import annotations

from segserve.sandbox.bubblewrap import DOORWAY, HTTP_PROXIES, OUTSIDE_PORT, command, enter, proxies, require
from segserve.sandbox.shell import take_over

__all__ = ["DOORWAY", "HTTP_PROXIES", "OUTSIDE_PORT", "command", "enter", "proxies", "require", "take_over"]
