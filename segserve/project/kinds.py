"""Kinds of parameter values: what is a value of each declared type, and the limits and options that it may have.

MLflow knows string, float, path and uri, and takes every other type for a string. These are checked by segserve:

    int, bool                                    one value
    int_range, float_range                       with `min`, `max` (both allowed) and `step` (for controls only)
    string_enum, int_enum, float_enum            with `options`
    string_list, int_list, float_list, bool_list `[1, 2, 3]` (JSON) or `1,2,3`

`min`, `max` and `options` are checked for every type that they are written for.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?)", re.I)
_TRUTH = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}


def _string(text: str) -> str:
    return text


def _int(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,300}", text.strip()):
        raise ValueError(f"'{text}' is no whole number.")
    return int(text)


def _float(text: str) -> float:
    stripped = text.strip()
    if NUMBER.fullmatch(stripped):
        return float(stripped)
    if re.fullmatch(r"[+-]?\d*,\d+", stripped):
        raise ValueError(f"'{stripped}' is no number. Write {stripped.replace(',', '.')}.")
    raise ValueError(f"'{stripped}' is no number.")


def _bool(text: str) -> bool:
    try:
        return _TRUTH[text.strip().lower()]
    except KeyError:
        raise ValueError(f"'{text}' is neither true nor false.") from None


_READERS: Mapping[str, Callable[[str], Any]] = {"string": _string, "int": _int, "float": _float, "bool": _bool}
_ALIASES = {"integer": "int", "boolean": "bool"}
_FORMS = ("", "_range", "_enum", "_list")
# Everything that is checked here; MLflow's own path and uri are not among them.
CHECKED = frozenset(
    {f"{base}{form}" for base in _READERS for form in _FORMS}
    - {"string_range", "bool_range", "bool_enum"} | set(_ALIASES)
)  # fmt: skip


def base(declared: str) -> str:
    """`int` of int, integer, int_range, int_enum and int_list; `string` for everything that is not checked."""
    kind = _ALIASES.get(declared.lower(), declared.lower())
    return kind.partition("_")[0] if kind in CHECKED else "string"


def is_list(declared: str) -> bool:
    """Whether a value is several values."""
    return declared.lower() in CHECKED and declared.lower().endswith("_list")


def read(declared: str, text: str) -> Any:
    """The value that a text stands for: str, int, float, bool or a list of one of them.

    Raises:
        ValueError: it is none of this type; the message is a sentence.
    """
    reader = _READERS[base(declared)]
    if not is_list(declared):
        return reader(text)
    return [_item(reader, item) for item in _items(text)]


def _items(text: str) -> list[Any]:
    stripped = text.strip()
    if not stripped.startswith("["):
        return [part.strip() for part in stripped.split(",")] if stripped else []
    try:
        found: list[Any] = json.loads(stripped)  # it begins with a bracket
    except (ValueError, RecursionError):
        raise ValueError(f"'{text}' is no list. Write [1, 2, 3] or 1,2,3 (texts in double quotes).") from None
    return found


def _item(reader: Callable[[str], Any], item: Any) -> Any:
    if isinstance(item, bool):
        return reader("true" if item else "false")
    if isinstance(item, (str, int, float)):
        return reader(str(item))
    raise ValueError(f"'{item}' in the list is no single value.")


def write(value: Any) -> str:
    """The text that `read` reads back: `true`, `0.5`, `["a", "b"]`."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def problem(
    declared: str,
    text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    options: tuple[str, ...] = (),
) -> str:
    """Why a text is no value of a type within its limits, in one sentence; empty if it is."""
    try:
        value = read(declared, text)
    except ValueError as error:
        return str(error)
    for single in value if isinstance(value, list) else [value]:
        found = _outside(single, minimum, maximum) or _no_option(declared, single, options)
        if found:
            return found
    return ""


def _outside(value: Any, minimum: float | None, maximum: float | None) -> str:
    if isinstance(value, (str, bool)) or (minimum is None and maximum is None):
        return ""
    low, high = -math.inf if minimum is None else minimum, math.inf if maximum is None else maximum
    if low <= value <= high:
        return ""
    if minimum is None or maximum is None:
        return f"{value:g} is {'more' if minimum is None else 'less'} than {high if minimum is None else low:g}."
    return f"{value:g} lies outside of {low:g} to {high:g}."


def _no_option(declared: str, value: Any, options: tuple[str, ...]) -> str:
    if not options:
        return ""
    reader = _READERS[base(declared)]
    known = []
    for option in options:
        try:
            known.append(reader(option))
        except ValueError:
            continue
    return "" if value in known else f"'{value}' is none of {', '.join(options)}."
