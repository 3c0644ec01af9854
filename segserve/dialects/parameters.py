"""`additional_parameters` → typed parameters: 13 types with ranges, options and defaults; the older spelling too."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from segserve.dialects import rules
from segserve.errors import did_you_mean
from segserve.findings import Rule
from segserve.project import Parameter, ParameterType, kinds, type_problem

Say = Callable[..., None]  # (rule, message, a text that stands in its line, fix)

TYPES = tuple(
    f"{base}{form}"
    for form, bases in {
        "": ("string", "int", "float", "bool"),
        "_range": ("int", "float"),
        "_enum": ("string", "int", "float"),
        "_list": ("string", "int", "float", "bool"),
    }.items()
    for base in bases
)
# Names of types in the older spelling and in Python → those of the guide.
OLDER = {"str": "string", "integer": "int", "number": "float", "double": "float", "boolean": "bool"}
# What the generated entry point calls its own parameters.
RESERVED = ("input_images",)
MAX_PARAMETERS = 200
_MAX_DESCRIPTION = 600
_KEYS = ("name", "description", "config")
_CONFIG_KEYS = ("type", "default", "min", "max", "step", "options", "adjustable")
_NAME = re.compile(r"[A-Za-z_][\w-]*", re.A)


def parameters(declared: Any, say: Say) -> tuple[Parameter, ...]:
    """The parameters that a module declares; what is wrong with them is said."""
    if not isinstance(declared, list) or len(declared) > MAX_PARAMETERS:
        message = f"additional_parameters is no list of up to {MAX_PARAMETERS} tables."
        say(rules.PARAMETER, message, "additional_parameters")
        return ()
    found: dict[str, Parameter] = {}
    for item in declared:
        parameter = _parameter(item, say)
        if parameter is None:
            continue
        if parameter.name in found:
            message = f"The parameter '{parameter.name}' is declared twice."
            say(rules.PARAMETER, message, parameter.name)
        found[parameter.name] = parameter
    return tuple(found.values())


def _parameter(item: Any, say: Say) -> Parameter | None:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED:
        why = "has no name of letters, digits, '_' and '-'" if name not in RESERVED else "has a name that is taken"
        say(rules.PARAMETER, f"A parameter {why}: {name!r}.", str(name or "additional_parameters"))
        return None

    def tell(rule: Rule, message: str, fix: str = "") -> None:
        say(rule, f"Parameter '{name}': {message}", f'"{name}"', fix)

    config = _config(item, tell)
    kind = _type(config.get("type"), tell)
    if kind is None:
        return None
    default = config.get("default")
    parameter = Parameter(
        name,
        ParameterType.FLOAT if kind == "float" else ParameterType.STRING,
        None if default is None else kinds.write(default),
        kind,
        " ".join(str(item.get("description", "")).split())[:_MAX_DESCRIPTION],
        minimum=_limit(config, "min", tell),
        maximum=_limit(config, "max", tell),
        step=_limit(config, "step", tell),
        options=_options(config, kind, tell),
        adjustable=config.get("adjustable", True) is not False,
    )
    problem = "" if parameter.default is None else type_problem(parameter, parameter.default)
    if problem:
        tell(rules.DEFAULT, f"the default does not fit. {problem}")
    return parameter


def _config(item: Mapping[str, Any], tell: Say) -> Mapping[str, Any]:
    """`config`, or what the older spelling has beside the name."""
    for key in item:
        if key not in (*_KEYS, *_CONFIG_KEYS):
            tell(rules.UNKNOWN_KEY, f"the key '{key}' is not known.", did_you_mean(key, _KEYS))
    beside = {key: value for key, value in item.items() if key in _CONFIG_KEYS}
    config = item.get("config", {})
    if not isinstance(config, dict):
        tell(rules.PARAMETER, "config is no table.")
        return {}
    if beside:
        fix = "Write them into config = {type = …, default = …, adjustable = true}."
        tell(rules.OLDER, f"{', '.join(beside)} stand outside of config (older spelling).", fix)
    for key in config:
        if key not in _CONFIG_KEYS:
            tell(rules.UNKNOWN_KEY, f"config has no key '{key}'.", did_you_mean(key, _CONFIG_KEYS))
    return {**beside, **config}


def _type(declared: Any, tell: Say) -> str | None:
    if declared in TYPES:
        return str(declared)
    if declared in OLDER:
        fix = f'Write type = "{OLDER[declared]}".'
        tell(rules.OLDER, f"the type '{declared}' is read as {OLDER[declared]}.", fix)
        return OLDER[declared]
    message = "it has no type." if declared is None else f"there is no type {declared!r}."
    tell(rules.PARAMETER, message, did_you_mean(str(declared or ""), TYPES))
    return None


def _limit(config: Mapping[str, Any], key: str, tell: Say) -> float | None:
    value = config.get(key)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    tell(rules.PARAMETER, f"{key} is no number.")
    return None


def _options(config: Mapping[str, Any], kind: str, tell: Say) -> tuple[str, ...]:
    options = config.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, (str, int, float)) for option in options):
        tell(rules.PARAMETER, "options is no list of values.")
        return ()
    if kind.endswith("_enum") and not options:
        tell(rules.PARAMETER, f"{kind} needs options.")
    texts = tuple(kinds.write(option) for option in options)
    for text in texts:
        if problem := kinds.problem(kind, text):
            tell(rules.PARAMETER, f"an option does not fit {kind}. {problem}")
    return texts
