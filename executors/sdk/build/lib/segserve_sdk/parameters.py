"""Parameters of a runner: annotated class attributes on one side, the command line on the other."""

import argparse
import typing
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Union


class Parameter(NamedTuple):
    """One parameter: `convert` makes a value of the text that MLflow passes."""

    name: str
    default: Any
    convert: Callable[[str], Any]
    help: str = ""
    choices: Sequence[Any] = ()


class _Described(NamedTuple):
    default: Any
    help: str
    choices: Sequence[Any]


def parameter(default: Any, help: str = "", choices: Sequence[Any] = ()) -> Any:  # noqa: A002 - argparse's word
    """A parameter with more than a default: `size: float = parameter(30, "smallest area in pixels")`."""
    return _Described(default, help, tuple(choices))


_RESERVED = ("info", "input_images", "staged", "batch_size", "settings")


def of(runner: type, base: type) -> Dict[str, Parameter]:
    """The parameters of a runner: what it and its bases below `base` annotate and give a value.

    Raises:
        TypeError: a parameter has a type that no text can be turned into, or no default.
    """
    names = [name for one in reversed(runner.__mro__) if one is not base and issubclass(one, base)
             for name in vars(one).get("__annotations__", {})]  # fmt: skip
    return _parameters(runner, [name for name in names if not name.startswith("_")], runner)


def of_settings(settings: type) -> Dict[str, Parameter]:
    """The parameters that the fields of a dataclass or NamedTuple are; each has a default.

    Raises:
        TypeError: as in `of`.
    """
    return _parameters(settings, list(settings.__annotations__), settings())


def _parameters(owner: type, names: Sequence[str], values: Any) -> Dict[str, Parameter]:
    hints = typing.get_type_hints(owner)
    return {name: _parameter(owner, name, hints[name], values) for name in names}


def _parameter(runner: type, name: str, hint: Any, values: Any) -> Parameter:
    if name in _RESERVED:
        raise TypeError(f"{runner.__name__}.{name}: a parameter cannot have this name")
    if not hasattr(values, name):
        raise TypeError(f"{runner.__name__}.{name} needs a default: `{name}: float = 1.0`")
    value = getattr(values, name)
    described = value if isinstance(value, _Described) else _Described(value, "", ())
    return Parameter(name, described.default, _converter(runner, name, hint), described.help, described.choices)


def _converter(runner: type, name: str, hint: Any) -> Callable[[str], Any]:
    inner = [one for one in getattr(hint, "__args__", ()) if one is not type(None)]
    optional = getattr(hint, "__origin__", None) is Union and len(inner) == 1
    kind = inner[0] if optional else hint
    convert = _CONVERTERS.get(kind)
    if convert is None:
        raise TypeError(f"{runner.__name__}.{name}: a parameter is a str, int, float, bool or Path, not {hint}")
    return _or_none(convert) if optional else convert


def _whole(text: str) -> int:
    """MLflow has no type for integers, so that `30.0` may come for 30."""
    number = float(text)
    if number != int(number):
        raise ValueError
    return int(number)


def _truth(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    return known[text.strip().lower()]


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: None if text.strip().lower() in ("", "none") else convert(text)


_CONVERTERS: Dict[Any, Callable[[str], Any]] = {str: str, int: _whole, float: float, bool: _truth, Path: Path}


def parser(description: Optional[str], known: Dict[str, Parameter]) -> argparse.ArgumentParser:
    """The command line: the images, `--info`, and one option per parameter (`--min-area`, also `--min_area`)."""
    made = argparse.ArgumentParser(description=description, allow_abbrev=False)
    made.add_argument("input_images", nargs="?", default=".", help="folder of PNG files, or one file")
    made.add_argument("--info", action="store_true", help="write who we are instead")
    for one in known.values():
        spellings = dict.fromkeys((f"--{one.name.replace('_', '-')}", f"--{one.name}"))
        made.add_argument(*spellings, dest=one.name, type=_for_argparse(one), default=one.default,
                          choices=one.choices or None, help=_help(one))  # fmt: skip
    return made


def _for_argparse(one: Parameter) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return one.convert(text)
        except (ValueError, KeyError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} does not fit") from None

    return convert


def _help(one: Parameter) -> str:
    text = f"{one.help} (default: {one.default})" if one.help else f"default: {one.default}"
    return text.replace("%", "%%")
