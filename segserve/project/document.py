"""YAML text → plain values and the line and column of each. Hostile text ends in a finding, never in a crash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from segserve.findings import Finding, Place, Severity

# An MLProject has a few kilobytes. PyYAML reads some 50 kB/s, and aliases make small texts grow without bound.
MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000


class Unreadable(Exception):
    """The text is no YAML that we take; `finding` says why and where."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(finding.message)


@dataclass(frozen=True)
class Document:
    """A parsed YAML file: `value` as `yaml.safe_load` gives it, and where everything stands."""

    name: str
    value: Any
    root: yaml.Node

    def place(self, *keys: str | int) -> Place:
        """Line and column (1-based) of the key at the end of a path, or of the nearest thing above that is there."""
        node, mark = self.root, self.root.start_mark
        for key in keys:
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == str(key)), None)
                if pair is None:
                    break
                node, mark = pair[1], pair[0].start_mark
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                node = node.value[key]
                mark = node.start_mark
            else:
                break
        return Place(self.name, mark.line + 1, mark.column + 1)


def parse(name: str, content: bytes) -> Document:
    """Read YAML.

    Raises:
        Unreadable: too large, not UTF-8, not YAML, a duplicate key, or aliases that grow without bound.
    """
    if len(content) > MAX_BYTES:
        raise _unreadable(f"The file has {len(content):,} bytes; {MAX_BYTES:,} are allowed.", Place(name), "too-large")
    try:
        text = content.decode("utf-8-sig")
        root = yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise _unreadable(f"The file is not UTF-8 (byte {error.start}).", Place(name), "encoding") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(name, mark.line + 1, mark.column + 1) if mark else Place(name)
        raise _unreadable(f"This is no valid YAML: {error.problem or error.context}.", place) from None
    except yaml.YAMLError as error:
        raise _unreadable(f"This is no valid YAML: {' '.join(str(error).split())}.", Place(name)) from None
    except RecursionError:
        raise _unreadable("Lists or mappings are nested too deeply.", Place(name), "too-large") from None
    if root is None:
        raise _unreadable("The file is empty.", Place(name, 1, 1), "empty-file")
    _check_nodes(name, root)
    try:
        return Document(name, yaml.safe_load(text), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or root.start_mark
        place = Place(name, mark.line + 1, mark.column + 1)
        raise _unreadable(f"A value cannot be read: {error.problem}.", place) from None
    except (ValueError, RecursionError) as error:  # 2001-99-99, a number of thousands of digits
        raise _unreadable(f"A value cannot be read: {error}.", Place(name)) from None


def _unreadable(message: str, place: Place, rule: str = "yaml") -> Unreadable:
    return Unreadable(Finding(rule, Severity.ERROR, message, place))


def _check_nodes(name: str, root: yaml.Node) -> None:
    """Refuse duplicate keys, values that hold themselves, and more values than anybody writes (aliases count fully)."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            raise _unreadable("A value holds itself by an alias.", _place(name, node), "alias")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            _refuse_duplicates(name, node)
            sizes[id(node)] = 1 + sum(size(child) for child in _children(node))
            open_nodes.remove(id(node))
        if sizes[id(node)] > MAX_VALUES:
            raise _unreadable(f"The file holds more than {MAX_VALUES:,} values.", _place(name, node), "too-large")
        return sizes[id(node)]

    size(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse_duplicates(name: str, node: yaml.Node) -> None:
    seen: set[str] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen and key.value != "<<":
                raise _unreadable(f"The key '{key.value}' is there twice.", _place(name, key), "duplicate-key")
            seen.add(key.value)


def _place(name: str, node: yaml.Node) -> Place:
    return Place(name, node.start_mark.line + 1, node.start_mark.column + 1)
