"""`segserve.toml` in an executor's root: what it is, whom to cite, what it expects. Optional, and untrusted.

`load` takes what it can use and names the rest with line and column: an executor runs with a wrong manifest as well as
with none. `segserve check` is where a mistake counts.
"""

from segserve.manifest.read import MAX_BYTES, NAME, Loaded, load, parse
from segserve.manifest.schema import NONE, Check, Citation, Entry, Input, Manifest, Run, Weights

__all__ = [
    "MAX_BYTES",
    "NAME",
    "NONE",
    "Check",
    "Citation",
    "Entry",
    "Input",
    "Loaded",
    "Manifest",
    "Run",
    "Weights",
    "load",
    "parse",
]
