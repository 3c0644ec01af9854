"""The MLflow run of a job: the embedded tracking server and a small client. Importing this does not import mlflow.

`record` (what is known of the embedded server) → `embedded` (start, find, hold, stop it; `__main__` is the server
itself) → `address` (which server) → `rest` (HTTP) → `client` (runs). `transfer` moves artifacts that lie elsewhere.
"""

from __future__ import annotations

from segserve.tracking.address import PASSWORD, USERNAME, TrackingServer, external, on_loopback, resolve
from segserve.tracking.client import RunHandle, Tracker, local_path, open_tracker
from segserve.tracking.embedded import ServerStatus, ensure_server, hold, server_status, stop_server, ui

# Where things lie in a run's artifacts. MLflow's UI previews these kinds of file; tif and webp it does not.
OUTPUT = "output.json"
RESULTS = "results.json"
OBJECTS = "report/objects.csv"
SUMMARY = "report/summary.md"
REPORT = "report/index.html"
OVERLAYS = "overlays"
VALIDATION = "validation.json"
EXECUTOR_LOG = "logs/executor.log"

__all__ = [
    "EXECUTOR_LOG",
    "OBJECTS",
    "OUTPUT",
    "OVERLAYS",
    "PASSWORD",
    "REPORT",
    "RESULTS",
    "SUMMARY",
    "USERNAME",
    "VALIDATION",
    "RunHandle",
    "ServerStatus",
    "Tracker",
    "TrackingServer",
    "ensure_server",
    "external",
    "hold",
    "local_path",
    "on_loopback",
    "open_tracker",
    "resolve",
    "server_status",
    "stop_server",
    "ui",
]
