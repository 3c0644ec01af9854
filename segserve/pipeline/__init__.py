"""One job from reference to result: `prepare` (everything cheap), `drive` (the slow part), `publish`, `settle`."""

from segserve.pipeline.context import Context, QuietReporter, Reporter
from segserve.pipeline.drive import Started, run
from segserve.pipeline.prepare import Prepared, Request, prepare
from segserve.pipeline.publish import Result
from segserve.pipeline.settle import cancel, settle

__all__ = [
    "Context",
    "Prepared",
    "QuietReporter",
    "Reporter",
    "Request",
    "Result",
    "Started",
    "cancel",
    "prepare",
    "run",
    "settle",
]
