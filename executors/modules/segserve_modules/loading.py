"""From a module's folder to a runner that is ready: import, constructor in either form, assets once, then locked."""

import importlib
import importlib.util
import inspect
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, Type

from segserve_sdk import tracking

from segserve_modules import roots, runners
from segserve_modules.session import ModuleError, Session

# The module's folder is a package of this name, so that `from .part import name` works beside `from part import name`.
PACKAGE = "segserve_module"
_SKIPPED = ("__pycache__", ".segserve", ".git", "tests")
_NO_PART = ("__main__.py", "conftest.py", "setup.py", "Runner.py")


def import_runner(folder: Path, kind: str, *, everything: bool) -> Type[runners.BaseRunner]:
    """The class `Runner` of the module in `folder`, whose algorithm type is `kind`.

    everything: its other Python files are imported too (`check_importable`), but for tests.

    Raises:
        ModuleError: an import fails, or the class is not what its type asks for.
    """
    roots.install()
    sys.path.insert(0, str(folder))
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    if everything:
        for path in _files(folder):
            _import(path, folder)
    module = _import(folder / "Runner.py", folder)
    return _class(module, kind)


def _files(folder: Path) -> Iterator[Path]:
    """The module's own Python files: beside Runner.py, and in packages (folders with `__init__.py`); no tests."""
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder).parts
        if path.name in _NO_PART or any(part in _SKIPPED for part in inner) or path.name.startswith("test_"):
            continue
        if path.parent == folder and path.name == "__init__.py":
            continue
        if all((parent / "__init__.py").is_file() for parent in path.parents if folder in parent.parents):
            yield path


def _import(path: Path, folder: Path) -> ModuleType:
    inner = path.relative_to(folder).with_suffix("")
    names = [name for name in inner.parts if name != "__init__"]
    try:
        # Absolute names are what the guides use; one module object for each file.
        return importlib.import_module(".".join([PACKAGE, *names] if inner.parts == ("Runner",) else names))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or (folder / missing).exists() or (folder / f"{missing}.py").exists():
            raise ModuleError(f"{inner.as_posix()}.py cannot be imported: {error}.") from error
        raise ModuleError(
            f"{inner.as_posix()}.py cannot be imported: there is no '{missing}' in the environment. "
            "Name its package in [project].dependencies of pyproject.toml."
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ModuleError(f"{inner.as_posix()}.py cannot be imported: {text}") from error


def _class(module: ModuleType, kind: str) -> Type[runners.BaseRunner]:
    found = getattr(module, "Runner", None)
    wanted = runners.OF_TYPE.get(kind, runners.BaseRunner)
    if not isinstance(found, type) or not issubclass(found, runners.BaseRunner):
        raise ModuleError("Runner.py has no class Runner that inherits from one of the runner classes.")
    if not issubclass(found, wanted):
        bases = ", ".join(base.__name__ for base in found.__bases__)
        raise ModuleError(f"The algorithm_type is {kind}, so Runner has to inherit {wanted.__name__}, not {bases}.")
    for name in ("preprocess", "inference", "postprocess"):
        if getattr(found, name) is getattr(runners.BaseRunner, name):
            raise ModuleError(f"Runner has no method {name}.")
    return found


def start(kind: Type[runners.BaseRunner], session: Session, device: str) -> runners.BaseRunner:
    """A runner with its assets loaded: constructed in the form that it declares, `load_assets` called once."""
    runner = kind.__new__(kind)
    object.__setattr__(runner, "_session", session)
    form = _parameters(kind.__init__)
    if "task_handler" in form or len(form) > 1 or "*" in form:
        _call(runner.__init__, session, device, "task_handler")
    else:
        runner.__init__()
        _call(runner.initialize, session, device, "task_handler")
    before = dict(vars(runner))
    began = time.monotonic()
    runner.load_assets()
    seconds = time.monotonic() - began
    if session.assets_read:
        tracking.log_metrics({"seconds.load_assets": seconds, "mb.assets": session.assets_bytes / 1e6})
    changed = [name for name, value in vars(runner).items() if name not in before or before[name] is not value]
    object.__setattr__(runner, "_locked", frozenset(changed))
    if changed:
        names = ", ".join(changed)
        session.log_message(f"load_assets took {seconds:.2f} s; it set {names}, locked from now on")
    return runner


def _parameters(function: Any) -> "dict[str, inspect.Parameter]":
    """Parameters by name, without `self`; `*args` counts as `*`."""
    found = list(inspect.signature(function).parameters.values())[1:]
    return {"*" if one.kind is one.VAR_POSITIONAL else one.name: one for one in found}


def _call(function: Any, session: Session, device: str, first: str) -> None:
    """Call a bound constructor or `initialize` with what it names: the session, the device, or both."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    values = {first: session, "device": device}
    positional: "list[Any]" = []
    named: "dict[str, Any]" = {}
    rest = [session, device] if len(parameters) > 1 or any(p.name == first for p in parameters) else [device]
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional.extend([session, device][len(positional) :])
        elif parameter.name in values:
            named[parameter.name] = values[parameter.name]
        elif rest and not named:
            positional.append(rest[len(positional)])
    function(*positional, **named)
