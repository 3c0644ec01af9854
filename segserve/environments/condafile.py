"""conda.yaml and python_env.yaml → what they ask for. Strict, located errors; nothing in them is trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from segserve.errors import InvalidProject
from segserve.findings import Finding, Place, Severity

LIMIT_BYTES = 1_000_000

# A conda part of nothing but these needs no channel: uv brings them (git is the host's).
PLAIN = frozenset({"python", "pip", "setuptools", "wheel", "git"})


@dataclass(frozen=True, slots=True)
class MatchSpec:
    """One conda requirement in its parts; `text` is as written. Empty parts are not constrained."""

    text: str
    name: str
    version: str = ""  # with its operator as conda reads it: `3.8.5` is `=3.8.5`, `>=3.8,<4`
    build: str = ""
    channel: str = ""  # `conda-forge`, a URL, `channel/linux-64`


@dataclass(frozen=True, slots=True)
class CondaFile:
    """What a conda.yaml asks for. `pip` are lines as pip's requirement files have them, in order.

    `python` is the version constraint of the conda part (None: python is not named; '': any version).
    """

    name: str
    channels: tuple[str, ...]
    dependencies: tuple[str, ...]
    pip: tuple[str, ...]
    python: str | None
    variables: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()  # what is ignored; located

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings as sentences."""
        return _sentences(self.findings)

    @property
    def specs(self) -> tuple[MatchSpec, ...]:
        """The conda dependencies, parsed."""
        return tuple(parse_spec(text) for text in self.dependencies)

    @property
    def is_plain(self) -> bool:
        """The conda part is nothing but python, pip, setuptools, wheel and git, with no build strings."""
        return all(spec.name in PLAIN and not spec.build for spec in self.specs)


@dataclass(frozen=True, slots=True)
class PythonEnv:
    """What a python_env.yaml asks for; `python` is a version ('' when absent: MLflow takes the current one)."""

    python: str
    build_dependencies: tuple[str, ...]
    dependencies: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """The findings as sentences."""
        return _sentences(self.findings)


def load(path: Path, shown: str = "") -> CondaFile:
    """Read a conda.yaml. `shown` is how messages call it (default: its name).

    Raises:
        InvalidProject: not YAML, too big, wrong types, a malformed requirement; all problems at once, located.
    """
    reader = _Reader(path, shown or path.name)
    top = reader.mapping(reader.root)
    known = {"name", "channels", "dependencies", "prefix", "variables", "platforms", "category"}
    for key, node in top.items():
        if key not in known:
            reader.warn(node, f"'{key}' is no key of a conda environment file; ignored")
    if "prefix" in top:
        reader.warn(top["prefix"], "'prefix' is ignored: environments live in segserve's own folder")
    channels = reader.texts(top.get("channels"), "channels")
    variables = {key: reader.text(node) for key, node in reader.mapping(top.get("variables")).items()}
    dependencies, pip = reader.dependencies(top.get("dependencies"))
    name = reader.text(top["name"]) if "name" in top else ""
    reader.finish()
    python = next((spec.version for spec in map(parse_spec, dependencies) if spec.name == "python"), None)
    return CondaFile(name, tuple(channels), tuple(dependencies), tuple(pip), python, variables, tuple(reader.remarks))


def load_python_env(path: Path, shown: str = "") -> PythonEnv:
    """Read MLflow's python_env.yaml.

    Raises:
        InvalidProject: as `load`.
    """
    reader = _Reader(path, shown or path.name)
    top = reader.mapping(reader.root)
    for key, node in top.items():
        if key not in {"python", "build_dependencies", "dependencies"}:
            reader.warn(node, f"'{key}' is no key of a python_env file; ignored")
    python = reader.text(top["python"]) if "python" in top else ""
    if python and not re.fullmatch(r"(cpython)?[-@]?\d+(\.\d+){0,2}", python):
        reader.error(top["python"], f"'{python}' is no Python version", 'Write it as text: python: "3.10".')
    build = reader.texts(top.get("build_dependencies"), "build_dependencies")
    dependencies = reader.texts(top.get("dependencies"), "dependencies")
    reader.finish()
    return PythonEnv(python.lstrip("cpython-@"), tuple(build), tuple(dependencies), tuple(reader.remarks))


# conda's own grammar: https://docs.conda.io/projects/conda/en/stable/dev-guide/api/conda/models/match_spec/
_SPEC = re.compile(
    r"""(?:(?P<channel>[^\s\[\]]+?)::)?
        (?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)
        (?:\s*\[(?P<brackets>[^\]]*)\]\s*$
        |\s*(?P<version>[=<>!~].*|\d\S*.*|\*.*)?)""",
    re.X,
)
_BRACKET = re.compile(r"""(?P<key>[a-z_]+)\s*=\s*(?P<value>'[^']*'|"[^"]*"|[^,\s]+)""")


def parse_spec(text: str) -> MatchSpec:
    """`python=3.8.5`, `python>=3.8`, `numpy 1.21 py38_0`, `torch=1.9=cuda*`, `conda-forge::numpy`, `x[version='>=1']`.

    Raises:
        ValueError: it is no match specification.
    """
    written = text.split("#", 1)[0].strip() if " #" in text else text.strip()
    match = _SPEC.fullmatch(written)
    if match is None or any(ord(sign) < 32 for sign in written):
        raise ValueError(f"'{text}' is no conda requirement")
    channel = match["channel"] or ""
    if match["brackets"] is not None:
        parts = {entry["key"]: entry["value"].strip("'\"") for entry in _BRACKET.finditer(match["brackets"])}
        version, build = parts.get("version", ""), parts.get("build", "")
        return MatchSpec(written, match["name"].lower(), version, build, parts.get("channel", channel))
    version, build = _version_and_build((match["version"] or "").strip())
    return MatchSpec(written, match["name"].lower(), version, build, channel)


def _version_and_build(text: str) -> tuple[str, str]:
    # `=1.9=cuda*`, `==1.9=h1`, ` 1.9 cuda*`, `>=1.8,<2`, `=1.9`; blanks around operators are allowed.
    squeezed = re.sub(r"\s*([<>=!~]=?|,|\|)\s*", r"\1", text)
    version, _, build = squeezed.partition(" ")
    if not build:
        head = re.match(r"==?(?!=)", version)
        body = version[head.end() :] if head else version
        if "=" in body and not re.search(r"[<>!~,|]", body):
            body, _, build = body.partition("=")
            version = (head.group() if head else "") + body
    if re.match(r"\d", version):
        version = f"={version}"
    return ("" if version in ("*", "=*", "=", "==*") else version), ("" if build == "*" else build)


class _Reader:
    """Walks YAML nodes, so that every complaint has its line; collects complaints and warnings."""

    def __init__(self, path: Path, shown: str) -> None:
        self.shown = shown
        self.findings: list[Finding] = []
        self.remarks: list[Finding] = []
        self.root = self._compose(path)

    def _compose(self, path: Path) -> yaml.Node | None:
        try:
            if path.stat().st_size > LIMIT_BYTES:
                raise self._refused(f"{self.shown} is larger than {LIMIT_BYTES // 1000} kB.")
            return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        except (FileNotFoundError, IsADirectoryError):
            raise self._refused(f"The environment file '{self.shown}' does not exist.") from None
        except UnicodeDecodeError:
            raise self._refused(f"{self.shown} is not UTF-8.") from None
        except RecursionError:
            raise self._refused(f"{self.shown} is nested too deeply.") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = Place(self.shown, mark.line + 1, mark.column + 1) if mark else Place(self.shown)
            problem = getattr(error, "problem", None) or "cannot be read"
            finding = Finding("yaml", Severity.ERROR, f"not YAML: {problem}", place)
            raise InvalidProject(str(finding), hint=_AUTHOR, findings=[finding]) from None

    def _refused(self, message: str) -> InvalidProject:
        finding = Finding("environment-file", Severity.ERROR, message, Place(self.shown))
        return InvalidProject(message, hint=_AUTHOR, findings=[finding])

    def error(self, node: yaml.Node, message: str, fix: str = "") -> None:
        self.findings.append(Finding("environment-file", Severity.ERROR, message, self._place(node), fix))

    def warn(self, node: yaml.Node, message: str) -> None:
        self.remarks.append(Finding("environment-key", Severity.WARNING, message, self._place(node)))

    def finish(self) -> None:
        if self.findings:
            text = "\n".join(str(finding) for finding in self.findings)
            raise InvalidProject(text, hint=_AUTHOR, findings=self.findings)

    def mapping(self, node: yaml.Node | None) -> dict[str, yaml.Node]:
        if node is None or _is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.error(node, "expected 'key: value' lines")
            return {}
        result: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key)
            if name in result:
                self.error(key, f"'{name}' stands here twice")
            result[name] = value
        return result

    def texts(self, node: yaml.Node | None, what: str) -> list[str]:
        return [self.text(entry) for entry in self._entries(node, what)]

    def text(self, node: yaml.Node) -> str:
        # The text as written, whatever YAML would make of it: an unquoted 3.10 stays 3.10 and does not become 3.1.
        if not isinstance(node, yaml.ScalarNode):
            self.error(node, "expected a text")
            return ""
        value = str(node.value).strip()
        if any(ord(sign) < 32 for sign in value):
            self.error(node, "control characters (a line break?) are not allowed here")
            return ""
        return value

    def dependencies(self, node: yaml.Node | None) -> tuple[list[str], list[str]]:
        conda, pip = list[str](), list[str]()
        for entry in self._entries(node, "dependencies"):
            if isinstance(entry, yaml.MappingNode):
                for key, value in self.mapping(entry).items():
                    if key == "pip":
                        pip += [line for line in self.texts(value, "pip") if line]
                    else:
                        self.error(entry, f"only 'pip:' may have a list of its own, not '{key}:'")
                continue
            text = self.text(entry)
            try:
                conda.append(parse_spec(text).text)
            except ValueError as error:
                self.error(entry, str(error), "Write it as name, name=1.2 or name>=1.2.")
        return conda, pip

    def _entries(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        if node is None or _is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.error(node, f"'{what}' has to be a list", "Begin every entry with '- '.")
            return []
        return list(node.value)

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.shown, node.start_mark.line + 1, node.start_mark.column + 1)


_AUTHOR = "The author of the executor has to correct this file."


def _sentences(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(f"{finding.place}: {finding.message}." for finding in findings)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
