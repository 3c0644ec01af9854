"""Parameter values: from the text that segserve has checked to what a module expects in `args`."""

import json
from typing import Any, Callable, Dict, Mapping, Sequence

_READERS: Dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": int,
    "float": float,
    "bool": lambda text: text.strip().lower() in ("true", "yes", "on", "1"),
}


def arguments(given: Sequence[str], declared: Mapping[str, Mapping[str, Any]]) -> Dict[str, Any]:
    """`name=text` pairs as the `args` of a runner: str, int, float, bool or lists of them."""
    pairs = (pair.partition("=") for pair in given)
    return {name: value(text, **declared[name]) for name, _, text in pairs}


def value(text: str, base: str, **form: bool) -> Any:
    """One value of a type; `list=True`: several, as JSON or with commas."""
    reader = _READERS[base]
    if not form.get("list"):
        return reader(text)
    if text.strip().startswith("["):
        items = json.loads(text)
    else:
        items = [part.strip() for part in text.split(",")] if text.strip() else []
    return [item if base == "bool" and isinstance(item, bool) else reader(str(item)) for item in items]
