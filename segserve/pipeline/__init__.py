"""One job from reference to result: `prepare` (everything cheap), `drive` (the slow part), `finish`, `publish`.

`submit` puts a request into the queue instead, `settle` takes over what nobody drives, `failure` decides what is tried
again, `retention` takes away what nobody wants to keep.
"""

from segserve.pipeline.bounds import Bounds
from segserve.pipeline.context import Context, Hold, QuietReporter, Reporter
from segserve.pipeline.drive import Drive, HandedOver, run
from segserve.pipeline.failure import end_badly, reconcile
from segserve.pipeline.prepare import Prepared, Request, prepare
from segserve.pipeline.publish import Result, Started
from segserve.pipeline.settle import adrift, cancel, go_on, settle
from segserve.pipeline.submit import origin, submit, titles

__all__ = [
    "Bounds",
    "Context",
    "Drive",
    "HandedOver",
    "Hold",
    "Prepared",
    "QuietReporter",
    "Reporter",
    "Request",
    "Result",
    "Started",
    "adrift",
    "cancel",
    "end_badly",
    "go_on",
    "origin",
    "prepare",
    "reconcile",
    "run",
    "settle",
    "submit",
    "titles",
]
