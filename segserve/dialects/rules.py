"""What can be wrong with an algorithm module. `segserve run` says the same as `segserve check`."""

from __future__ import annotations

from segserve.findings import Rule, Severity

_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE

TOML = Rule("module-toml", _E, "pyproject.toml of a module cannot be read.", "Correct the line.")
TABLE = Rule("module-table", _W, "pyproject.toml has the tables of two servers; one is ignored.", "Keep the newer one.")
UNKNOWN_KEY = Rule(
    "module-unknown-key", _W, "A key is none of the guide's, and is ignored.", "Correct its spelling, or remove it."
)
NAME = Rule("module-name", _W, "The module has no name.", "Write name and version into [project].")
TYPE = Rule(
    "module-type",
    _W,
    "The algorithm_type is none of the guide's.",
    "Name Image2Image, Image2Segmentation, Image2Alignment, Image2Embedding or Generic.",
)
DEVICES = Rule(
    "module-devices",
    _W,
    "The devices do not fit each other: the module runs on the CPU.",
    "Name a default_device that is one of supported_devices (cpu, gpu, mps).",
)
VALUE = Rule("module-value", _W, "A value is not of the type that its key has, and is ignored.", "Correct the value.")
DEPENDENCIES = Rule(
    "module-dependencies", _E, "The dependencies of a module cannot be installed as written.", "Correct the line."
)
DYNAMIC = Rule(
    "module-dynamic-dependencies",
    _W,
    "Dynamic dependencies are not read: the module gets the default environment.",
    "Write them into [project].dependencies.",
)
PROVIDED = Rule(
    "module-provided",
    _N,
    "A server's own package is named as a dependency and is not installed.",
    "Remove it from the dependencies.",
)
PARAMETER = Rule(
    "module-parameter",
    _E,
    "A parameter of a module cannot be offered.",
    "Write name, description and config = {type = …, default = …, adjustable = true}.",
)
DEFAULT = Rule(
    "module-default", _W, "The default of a module's parameter does not fit.", "Correct the default or its limits."
)
OLDER = Rule(
    "module-older-spelling",
    _W,
    "A parameter is written in the older spelling.",
    "Write type, default and limits into config = {…}, with the names of types that the guide lists.",
)
OBFUSCATE = Rule(
    "module-obfuscate",
    _N,
    "obfuscate has no effect: the code runs as it stands in the recorded commit.",
    "Remove the key.",
)
HASH = Rule(
    "module-hash",
    _N,
    "hash_module and hash_assets have no effect when false: content is stored once and reused by its hash always.",
    "Remove the key.",
)
RUNNER = Rule(
    "module-runner",
    _E,
    "Runner.py has no class Runner that can be read.",
    "Write class Runner, inheriting from the runner class of the algorithm_type.",
)
BASE = Rule(
    "module-base",
    _E,
    "The class Runner inherits from the runner class of another algorithm_type.",
    "Inherit from the runner class of the algorithm_type, or correct the algorithm_type.",
)
METHOD = Rule(
    "module-method",
    _E,
    "A method of Runner is missing, or has not exactly two inputs.",
    "Write preprocess, inference and postprocess with (self, data, args).",
)
RULES = (
    *(TOML, TABLE, UNKNOWN_KEY, NAME, TYPE, DEVICES, VALUE, DEPENDENCIES, DYNAMIC, PROVIDED, PARAMETER, DEFAULT),
    *(OLDER, OBFUSCATE, HASH, RUNNER, BASE, METHOD),
)
