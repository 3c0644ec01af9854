"""The import roots that the guides use, found by `install()`: nothing of these names is installed.

    compox.algorithm_utils.Image2ImageRunner        and the other runners
    t3d_server.algorithm_utils.io_schemas           schemas
    algorithms.BaseRunner, algorithms.io_schemas    the oldest spelling

For `compox` and `t3d_server` this finder comes first, so that a module gets this interface whatever else is installed.
A module may have a package `algorithms` of its own: there, this finder comes last.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Optional, Sequence

from segserve_modules import runners, schemas

_UTILITIES = ("compox.algorithm_utils", "t3d_server.algorithm_utils")
_PACKAGES = ("compox", "t3d_server", "algorithms", *_UTILITIES)
SCHEMAS = "io_schemas"


def install() -> None:
    """Make the import roots importable in this process; calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(("compox", "t3d_server")))
        sys.meta_path.append(_Finder(("algorithms",)))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = roots

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        """A specification for the roots and everything below them."""
        if fullname.partition(".")[0] not in self.roots:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(), is_package=fullname in _PACKAGES)


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        """The usual empty module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Fill it: a package stays empty, a runner's module gets its class, `io_schemas` the schemas."""
        package, _, name = module.__name__.rpartition(".")
        if module.__name__ in _PACKAGES:
            return
        if package in (*_UTILITIES, "algorithms") and name in runners.RUNNERS:
            vars(module)[name] = runners.RUNNERS[name]
        elif package in (*_UTILITIES, "algorithms") and name == SCHEMAS:
            vars(module).update(schemas.SCHEMAS)
            vars(module)["__getattr__"] = _no_schema
        else:
            known = ", ".join([*runners.RUNNERS, SCHEMAS])
            raise ImportError(f"{module.__name__} is not in the documented interface; there are: {known}")


def _no_schema(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"There is no schema {name!r}: the documents name {', '.join(schemas.SCHEMAS)}. "
        f"Define it in the module: class {name}(DataSchema): …"
    )
