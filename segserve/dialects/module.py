"""`pyproject.toml` and `Runner.py` of an algorithm module → Module. Hostile text ends in a finding."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segserve.dialects import rules
from segserve.dialects.environment import Requirements, requirements
from segserve.dialects.parameters import parameters
from segserve.errors import InvalidProject, did_you_mean
from segserve.findings import Finding, Place, Rule, errors_in
from segserve.project import FILES, POLYGONS, Parameter, find_project_file

RUNNER, PYPROJECT = "Runner.py", "pyproject.toml"
# The table in pyproject.toml → how people call the dialect.
DIALECTS: Mapping[str, str] = {"compox": "Compox", "t3dserver": "T3D"}
GENERIC, SEGMENTATION = "Generic", "Image2Segmentation"
TYPES = (GENERIC, "Image2Image", SEGMENTATION, "Image2Alignment", "Image2Embedding")
DEVICES = ("cpu", "gpu", "mps")
KEYS = (
    "algorithm_type",
    "tags",
    "description",
    "supported_devices",
    "default_device",
    "additional_parameters",
    "check_importable",
    "obfuscate",
    "hash_module",
    "hash_assets",
)
MAX_BYTES = 256 * 1024
_TABLE = re.compile(r"^\s*\[+\s*tool\s*\.\s*(compox|t3dserver)\b", re.M)
_SKIPPED = frozenset({"__pycache__", ".git", ".segserve"})


@dataclass(frozen=True, slots=True)
class Module:
    """An algorithm module. `folder` is absolute, `table` its key in DIALECTS; `code` and `assets` are content hashes.

    `supported` and `default` are devices (cpu, gpu, mps); `check_importable` asks for every file to be imported first.
    """

    folder: Path
    table: str
    name: str
    version: str
    type: str
    description: str
    tags: tuple[str, ...]
    supported: tuple[str, ...]
    default: str
    parameters: tuple[Parameter, ...]
    requirements: Requirements
    check_importable: bool
    code: str
    assets: str
    findings: tuple[Finding, ...] = ()

    @property
    def produces(self) -> str:
        """What a run of it hands back: polygons or files."""
        return POLYGONS if self.type == SEGMENTATION else FILES

    def described(self) -> dict[str, Any]:
        """For `segserve info` and lists: JSON values."""
        return {
            "dialect": DIALECTS[self.table],
            "name": self.name,
            "version": self.version,
            "algorithm_type": self.type,
            "tags": list(self.tags),
            "description": self.description,
            "supported_devices": list(self.supported),
            "default_device": self.default,
            "requirements": list(self.requirements.lines),
            "requirements_from": self.requirements.source,
            "module_sha256": self.code,
            "assets_sha256": self.assets,
        }


def recognise(folder: Path) -> bool:
    """Whether a folder is a module and no MLProject. Cheap: looks at two names and one short file."""
    if not (folder / RUNNER).is_file() or not (folder / PYPROJECT).is_file():
        return False
    if find_project_file(folder) is not None:
        return False
    with (folder / PYPROJECT).open("rb") as stream:
        return _TABLE.search(stream.read(MAX_BYTES).decode("utf-8", "replace")) is not None


def near_miss(folder: Path) -> str:
    """What is missing in a folder that looks like a module and is none; empty for other folders."""
    if not (folder / RUNNER).is_file() or find_project_file(folder) is not None:
        return ""
    lacks = f"no [tool.compox] in {PYPROJECT}" if (folder / PYPROJECT).is_file() else f"no {PYPROJECT} beside it"
    return f"There is a {RUNNER}, but {lacks}: with it, this would be an algorithm module."


def read(folder: Path) -> Module:
    """Read the module in `folder`.

    Raises:
        InvalidProject: no TOML, no `[tool.compox]`, or parameters that cannot be offered; `findings` has everything.
    """
    folder = folder.resolve()
    reader = _Reader(folder, _text(folder / PYPROJECT))
    module = reader.read()
    if errors_in(module.findings):
        raise _invalid(module.findings)
    return module


def _invalid(findings: Sequence[Finding]) -> InvalidProject:
    errors = errors_in(findings)
    message = f"{PYPROJECT} is invalid: {errors[0].message}"
    if len(errors) > 1:
        message = f"{PYPROJECT} has {len(errors)} errors:\n" + "\n".join(f"  {error}" for error in errors)
    return InvalidProject(message, hint=errors[0].fix, findings=findings)


def _text(file: Path) -> str:
    if file.stat().st_size > MAX_BYTES:
        raise _unreadable(f"The file has more than {MAX_BYTES // 1024} kB.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(f"The file is not UTF-8 (byte {error.start}).") from None


def _unreadable(message: str) -> InvalidProject:
    return _invalid([rules.TOML.at(message, Place(PYPROJECT))])


@dataclass
class _Reader:
    folder: Path
    text: str
    findings: list[Finding] = field(default_factory=list)

    def read(self) -> Module:
        document = self._document()
        table = next(name for name in DIALECTS if isinstance(document.get("tool", {}).get(name), dict))
        settings: Mapping[str, Any] = document["tool"][table]
        if all(isinstance(document["tool"].get(name), dict) for name in DIALECTS):
            self.say(rules.TABLE, f"[tool.{table}] is read, the other table is not.", "tool")
        for key in settings:
            if key not in KEYS:
                fix = did_you_mean(key, KEYS)
                self.say(rules.UNKNOWN_KEY, f"[tool.{table}] has no key '{key}'.", key, fix)
        supported, default = self._devices(settings)
        self._without_effect(settings)
        metadata = document.get("project")
        metadata = metadata if isinstance(metadata, dict) else {}
        code, assets = _hashes(self.folder)
        return Module(
            self.folder,
            table,
            self._label(metadata),
            self._plain(metadata, "version"),
            self._type(settings, table),
            self._plain(settings, "description"),
            self._texts(settings, "tags"),
            supported,
            default,
            parameters(settings.get("additional_parameters", []), self.say),
            requirements(metadata, self.folder, self.say),
            self._flag(settings, "check_importable"),
            code,
            assets,
            tuple(self.findings),
        )

    def say(self, rule: Rule, message: str, near: str = "", fix: str = "") -> None:
        """Add a finding; its line is the first one that holds the text `near`."""
        lines = self.text.splitlines()
        line = next((number for number, text in enumerate(lines, 1) if near and near in text), None)
        self.findings.append(rule.at(message, Place(PYPROJECT, line), fix))

    def _document(self) -> dict[str, Any]:
        try:
            document = tomllib.loads(self.text)
        except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
            raise _unreadable(f"This is no valid TOML: {error}.") from None
        tool = document.get("tool")
        if not isinstance(tool, dict) or not any(isinstance(tool.get(name), dict) for name in DIALECTS):
            raise _unreadable("There is no table [tool.compox] or [tool.t3dserver].")
        return document

    def _label(self, metadata: Mapping[str, Any]) -> str:
        name = metadata.get("name")
        if isinstance(name, str) and name.strip() and name.isprintable():
            return name.strip()
        self.say(rules.NAME, "[project] has no name; the folder's is taken.", "[project]")
        return self.folder.name

    def _type(self, settings: Mapping[str, Any], table: str) -> str:
        declared = settings.get("algorithm_type")
        if declared in TYPES:
            return str(declared)
        if declared is None:
            found = re.search(r"\bImage2(Image|Segmentation|Alignment|Embedding)Runner\b", self._runner())
            kind = f"Image2{found[1]}" if found else GENERIC
            message = f"[tool.{table}] has no algorithm_type; {kind} is read from {RUNNER}."
        else:
            kind = GENERIC
            message = f"The algorithm_type {declared!r} is none of the documents'; its outputs are kept as HDF5."
        fix = did_you_mean(str(declared), TYPES) if declared is not None else f'algorithm_type = "{kind}"'
        self.say(rules.TYPE, message, "algorithm_type", fix)
        return kind

    def _runner(self) -> str:
        with (self.folder / RUNNER).open("rb") as stream:
            return stream.read(MAX_BYTES).decode("utf-8", "replace")

    def _devices(self, settings: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
        named = self._texts(settings, "supported_devices")
        for device in named:
            if device not in DEVICES:
                fix = f"Known are {', '.join(DEVICES)}."
                self.say(rules.DEVICES, f"There is no device '{device}'.", "supported_devices", fix)
        supported = tuple(device for device in named if device in DEVICES) or ("cpu",)
        default = settings.get("default_device", "cpu" if "cpu" in supported else supported[0])
        if default in supported:
            return supported, str(default)
        message = f"default_device {default!r} is not among the supported devices; it runs on the CPU."
        self.say(rules.DEVICES, message, "default_device", "Name one of supported_devices.")
        return supported, "cpu"

    def _without_effect(self, settings: Mapping[str, Any]) -> None:
        if self._flag(settings, "obfuscate"):
            message = (
                "obfuscate has no effect: the code runs as it stands in the recorded commit, "
                "so that people can read and replay what made a result."
            )
            self.say(rules.OBFUSCATE, message, "obfuscate")
        for key in ("hash_module", "hash_assets"):
            if key in settings and not self._flag(settings, key):
                message = f"{key} = false has no effect: content is stored once and reused by its hash always."
                self.say(rules.HASH, message, key)

    def _flag(self, settings: Mapping[str, Any], key: str) -> bool:
        value = settings.get(key, False)
        if not isinstance(value, bool):
            self.say(rules.VALUE, f"{key} is neither true nor false.", key)
        return value is True

    def _plain(self, table: Mapping[str, Any], key: str) -> str:
        value = table.get(key, "")
        return " ".join(str(value).split())[:2000] if isinstance(value, (str, int, float)) else ""

    def _texts(self, settings: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = settings.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.say(rules.VALUE, f"{key} is no list of texts.", key)
        return ()


def _hashes(folder: Path) -> tuple[str, str]:
    """SHA-256 over names and contents: of the Python files with pyproject.toml, and of everything else (the assets)."""
    code, assets = hashlib.sha256(), hashlib.sha256()
    for path in sorted(_files(folder)):
        relative = path.relative_to(folder).as_posix()
        digest = code if path.suffix == ".py" or relative == PYPROJECT else assets
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{relative}\0{content}\0".encode("utf-8", "surrogateescape"))
    return code.hexdigest(), assets.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _SKIPPED or path.is_symlink():
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path
