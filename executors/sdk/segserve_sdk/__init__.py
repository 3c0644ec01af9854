"""A small kit for executors: a `Runner` that does everything around a model, and the parts that it is made of.

`from segserve_sdk import Runner, parameter` is all that most executors need; the parts are modules of their own:
`images`, `contours`, `output`, `progress`, `tracking`, `devices`, `weights`, `sources`.
"""

from segserve_sdk.parameters import parameter
from segserve_sdk.runner import Runner

__all__ = ["Runner", "parameter"]
__version__ = "0.1.0"
