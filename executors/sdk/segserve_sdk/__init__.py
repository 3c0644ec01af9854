"""A small kit for executors: a `Runner` that does everything around a model, and the parts that it is made of.

`from segserve_sdk import Runner, parameter` is all that most executors need, `Classifier` for those that classify; the
parts are modules of their own: `images`, `contours`, `output`, `progress`, `tracking`, `devices`, `weights`, `sources`,
`serving` (executors that stay) and `pipeline` (chains of algorithms in one repository).
"""

from segserve_sdk.classifier import Classifier
from segserve_sdk.parameters import parameter
from segserve_sdk.runner import Runner

__all__ = ["Classifier", "Runner", "parameter"]
__version__ = "0.1.0"
