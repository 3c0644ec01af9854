"""Parameter values: what fits which type, and everything that is wrong with what was given, at once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from segserve.errors import InvalidParameters, UsageError, did_you_mean
from segserve.findings import Finding, Severity
from segserve.project import kinds
from segserve.project.types import EntryPoint, Parameter, ParameterType

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")


def check_parameters(entry: EntryPoint, given: Mapping[str, str], *, images: bool) -> dict[str, str]:
    """The given values, normalised: numbers without blanks, local paths absolute. Defaults are left to MLflow.

    images: whether images are staged for `entry.images_parameter`.

    Raises:
        InvalidParameters: unknown, missing, of the wrong type, not there; the message names every problem.
        UsageError: the entry point takes images and got none.
    """
    findings = [_unknown(entry, name) for name in given if name not in entry.parameters]
    known = {name: value for name, value in given.items() if name in entry.parameters}
    for name, value in known.items():
        problem = type_problem(entry.parameters[name], value) or _missing_path(entry.parameters[name], value)
        if problem:
            findings.append(_finding("parameter-value", f"{name}: {problem}"))
    findings += _images(entry, given, images=images)
    supplied = {*given, *([entry.images_parameter] if images else [])}
    missing = [name for name, parameter in entry.parameters.items() if parameter.required and name not in supplied]
    if missing == [entry.images_parameter] and not findings:
        raise UsageError(f"Entry point '{entry.name}' takes images, and there are none.", hint=_give_images(entry))
    for name in missing:
        fix = _give_images(entry) if name == entry.images_parameter else f"Give -P {name}=…"
        kind = entry.parameters[name].declared
        findings.append(_finding("missing-parameter", f"{name} ({kind}) has no value and no default.", fix))
    if findings:
        raise _invalid(entry, findings)
    return {name: _normal(entry.parameters[name], value) for name, value in known.items()}


def type_problem(parameter: Parameter, value: str) -> str:
    """Why a value does not fit the type of a parameter, in one sentence; empty if it fits."""
    if "\0" in value or "\n" in value or "\r" in value:
        return "A value is one line of text."
    declared = parameter.declared or str(parameter.type)
    problem = kinds.problem(
        declared, value, minimum=parameter.minimum, maximum=parameter.maximum, options=parameter.options
    )
    if problem:
        return problem
    if parameter.type is ParameterType.URI and not _has_scheme(value):
        return f"'{value}' is no URI: it has no scheme like https:."
    if parameter.type is ParameterType.PATH and not value.strip():
        return "A path is not empty."
    return ""


def _has_scheme(value: str) -> bool:
    return _SCHEME.match(value) is not None


def _local(value: str) -> Path | None:
    """The local file or folder that a `path` value names; None for something remote."""
    if not _has_scheme(value) or Path(value).exists():
        return Path(value).expanduser()
    if value.startswith("file:"):
        return Path(unquote(urlsplit(value).path))
    return None


def _missing_path(parameter: Parameter, value: str) -> str:
    if parameter.type is not ParameterType.PATH:
        return ""
    try:
        path = _local(value)
        return "" if path is None or path.exists() else f"There is no '{value}'."
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a user that does not exist
        return f"'{value[:80]}' is no path: {error}."


def _normal(parameter: Parameter, value: str) -> str:
    if parameter.type is ParameterType.PATH:
        path = _local(value)
        return value if path is None else str(path.resolve())
    return value.strip() if kinds.base(parameter.declared or str(parameter.type)) != "string" else value


def _images(entry: EntryPoint, given: Mapping[str, str], *, images: bool) -> list[Finding]:
    if not images:
        return []
    if entry.images_parameter is None:
        names = ", ".join(entry.parameters) or "none"
        message = f"Entry point '{entry.name}' takes no images. Its parameters: {names}."
        fix = "Leave the images out, or hand a folder to one of its parameters by -P."
        return [_finding("takes-no-images", message, fix)]
    if entry.images_parameter in given:
        message = f"{entry.images_parameter} is given by -P and by positional images."
        return [_finding("parameter-twice", message, "Leave one of them out.")]
    return []


def _unknown(entry: EntryPoint, name: str) -> Finding:
    if not entry.parameters:
        return _finding("unknown-parameter", f"{name}: entry point '{entry.name}' has no parameters.", "Leave it out.")
    fix = did_you_mean(name, entry.parameters)
    return _finding("unknown-parameter", f"{name}: entry point '{entry.name}' has no such parameter.", fix)


def _finding(rule: str, message: str, fix: str = "") -> Finding:
    return Finding(rule, Severity.ERROR, message, fix=fix)


def _give_images(entry: EntryPoint) -> str:
    return f"Name files or folders behind the executor, or one folder by -P {entry.images_parameter}=…"


def _invalid(entry: EntryPoint, findings: list[Finding]) -> InvalidParameters:
    if len(findings) == 1:
        return InvalidParameters(findings[0].message, hint=findings[0].fix or _show(entry), findings=findings)
    lines = "\n".join(f"  {finding.message}" + (f" {finding.fix}" if finding.fix else "") for finding in findings)
    message = f"{len(findings)} problems with the parameters of '{entry.name}':\n{lines}"
    return InvalidParameters(message, hint=_show(entry), findings=findings)


def _show(entry: EntryPoint) -> str:
    described = ", ".join(
        f"{p.name} ({p.declared}{'' if p.default is None else f', default {p.default}'})"
        for p in entry.parameters.values()
    )
    return f"Parameters of '{entry.name}': {described}." if described else f"'{entry.name}' has no parameters."
