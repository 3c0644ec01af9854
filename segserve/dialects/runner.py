"""What can be said about `Runner.py` by reading it. Nothing of it is run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from segserve.dialects import rules
from segserve.findings import Finding, Place

_METHODS = ("preprocess", "inference", "postprocess")
_OF_TYPE = {f"Image2{what}": f"Image2{what}Runner" for what in ("Image", "Segmentation", "Alignment", "Embedding")}
_PLAIN = ("BaseRunner", "GenericRunner")


def look(text: str, kind: str, path: str) -> Iterator[Finding]:
    """What is wrong with the class Runner of a module of type `kind`; findings call the file `path`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except SyntaxError as error:
        yield rules.RUNNER.at(f"Python cannot read it: {error.msg}.", Place(path, error.lineno, error.offset))
        return
    except (ValueError, RecursionError, MemoryError) as error:
        yield rules.RUNNER.at(f"Python cannot read it: {error}.", Place(path))
        return
    runner = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Runner"), None)
    if runner is not None:
        yield from _class(runner, kind, path)
    elif "Runner" not in _bound(tree):
        yield rules.RUNNER.at("There is no class Runner.", Place(path))


def _class(runner: ast.ClassDef, kind: str, path: str) -> Iterator[Finding]:
    bases = [base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "") for base in runner.bases]
    known = [base for base in bases if base in (*_OF_TYPE.values(), *_PLAIN)]
    wanted = _OF_TYPE.get(kind)
    place = Place(path, runner.lineno, runner.col_offset + 1)
    if not bases:
        yield rules.RUNNER.at("The class Runner inherits from nothing.", place)
    elif wanted and known and wanted not in known:
        yield rules.BASE.at(f"The algorithm_type is {kind}, and Runner inherits from {known[0]}.", place)
    methods = {node.name: node for node in runner.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for name in _METHODS:
        required = name == "inference" or (known and known[0] in _PLAIN)
        if name in methods:
            yield from _method(methods[name], path)
        elif required and known == bases:
            yield rules.METHOD.at(f"Runner has no method {name}.", place)


def _method(method: ast.FunctionDef | ast.AsyncFunctionDef, path: str) -> Iterator[Finding]:
    inputs = [*method.args.posonlyargs, *method.args.args][1:]
    required = len(inputs) - len(method.args.defaults)
    fits = required <= 2 <= len(inputs) or method.args.vararg is not None
    if not fits and not any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in method.decorator_list):
        place = Place(path, method.lineno, method.col_offset + 1)
        yield rules.METHOD.at(f"{method.name} has {len(inputs)} inputs beside self, not two.", place)


def _bound(tree: ast.Module) -> set[str]:
    """Names that imports and assignments of the module's top level give."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, (ast.If, ast.Try)):
            return {"Runner"}  # it may be defined in there
    return names
