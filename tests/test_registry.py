"""Short names: what they stand for, what wins, and config.toml after it was edited."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from segserve import api, config, refs, registry
from segserve.cli import main
from segserve.errors import InvalidRef, UsageError
from segserve.registry import Registered
from tests.executors import make_executor
from tests.modules import make_module

CONFIG = """\
# What our group decided in March.
[run]
keep = true   # for Anna

[executors]
# The old one is slow.
cells = "https://example.org/group/cells@v1#batch"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "configuration" / "config.toml"
    path.parent.mkdir()
    path.write_text(CONFIG)
    monkeypatch.setenv("SEGSERVE_CONFIG", str(path))
    return path


NAMES = {
    "cells": Registered("cells", "https://example.org/group/cells@v1#batch"),
    "deep": Registered("deep", "https://example.org/group/many#executors/deep:train"),
    "loop": Registered("loop", "cells"),
}


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("cells", "https://example.org/group/cells@v1#batch"),
        ("cells@v2", "https://example.org/group/cells@v2#batch"),
        ("cells#main", "https://example.org/group/cells@v1#main"),
        ("cells@v2#other", "https://example.org/group/cells@v2#other"),
        ("deep", "https://example.org/group/many#executors/deep:train"),
        ("deep#main", "https://example.org/group/many#executors/deep:main"),
        ("https://example.org/a/b", "https://example.org/a/b#main"),
    ],
)
def test_what_the_caller_says_wins(text: str, meaning: str) -> None:
    assert str(registry.resolve(refs.parse(text), text, NAMES)) == meaning


def test_options_win_too() -> None:
    parsed = refs.parse("cells", rev="feature/x", entry="main")
    assert str(registry.resolve(parsed, "cells", NAMES, entry="main")) == (
        "https://example.org/group/cells#main --rev feature/x"
    )


def test_unknown_names_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name, hint in (("cels", "Did you mean 'cells'?"), ("here", "write ./here"), ("zzz", "segserve executors list")):
        with pytest.raises(InvalidRef) as raised:
            registry.resolve(refs.parse(name), name, NAMES)
        assert hint in raised.value.hint
    with pytest.raises(InvalidRef, match="a name again"):
        registry.resolve(refs.parse("loop"), "loop", NAMES)


def test_what_is_shipped_are_references() -> None:
    shipped = registry.known({})
    assert {"cellpose", "omnipose", "mmdetection", "yolov5", "segserve-threshold"} <= set(shipped)
    for name, entry in shipped.items():
        assert registry.check(name, entry.ref)


def test_adding_and_removing_leaves_everything_else_as_it_is(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["executors", "add", "nuclei", "https://example.org/n/n@v3"]) == 0
    assert main(["executors", "add", "mine", "https://example.org/m/m", "--description", "the new one"]) == 0
    text = file.read_text()
    assert text.startswith(CONFIG)
    assert tomllib.loads(text)["executors"] == {
        "cells": "https://example.org/group/cells@v1#batch",
        "nuclei": "https://example.org/n/n@v3#main",
        "mine": {"ref": "https://example.org/m/m#main", "description": "the new one"},
    }
    assert main(["executors", "rm", "nuclei"]) == 0
    assert main(["executors", "rm", "mine"]) == 0
    assert file.read_text() == CONFIG
    assert main(["executors", "rm", "yolov5"]) == 0
    assert config.load().executors["yolov5"] is False
    capsys.readouterr()
    assert main(["executors", "list", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert "yolov5" not in listed
    assert (listed["cells"]["origin"], listed["cellpose"]["origin"]) == ("config.toml", "shipped")
    assert listed["segserve-threshold"]["title"] == "Threshold and watershed"  # from its manifest
    assert main(["executors", "rm", "yolov6"]) == 2
    assert main(["executors", "list"]) == 0
    assert "https://example.org/group/cells@v1#batch" in capsys.readouterr().out


def test_there_need_be_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert main(["executors", "add", "cells", "https://example.org/c/c"]) == 0
    assert config.load().executors == {"cells": "https://example.org/c/c#main"}


@pytest.mark.parametrize(
    ("name", "ref", "words"),
    [
        ("a.b", "https://example.org/c/c", "no short name"),
        ("a/b", "https://example.org/c/c", "no short name"),
        ("-x", "https://example.org/c/c", "no short name"),
        ("a", "cells", "short name itself"),
        ("a", "https://token@example.org/c/c", "a user or a token"),
        ("a", "https://example.org/c/c@-x", "no name of a branch"),
    ],
)
def test_what_is_no_name_or_reference_is_refused(name: str, ref: str, words: str, file: Path) -> None:
    with api.session() as session, pytest.raises(UsageError, match=words):
        session.add_executor(name, ref)
    assert file.read_text() == CONFIG


@pytest.mark.parametrize("text", ['[executors]\n"a/b" = "https://x/y"', "[executors]\na = true", "[executors]\na = {}"])
def test_wrong_entries_of_the_file_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError, match="executors"):
        config.load(tmp_path / "config.toml")


def test_a_name_runs(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "it")
    assert main(["executors", "add", "it", str(tmp_path / "it")]) == 0
    capsys.readouterr()
    assert main(["info", "it#info", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)["entry_points"]] == ["info"]


def test_modules_are_listed_by_type_and_tag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.touch()
    for kind in ("Image2Segmentation", "Image2Image"):
        make_module(tmp_path / kind, kind)
        assert main(["executors", "add", kind.lower(), str(tmp_path / kind), "--config", str(config)]) == 0

    def listed(*words: str) -> list[str]:
        capsys.readouterr()
        assert main(["executors", "list", "--config", str(config), "--json", *words]) == 0
        return [one["name"] for one in json.loads(capsys.readouterr().out)]

    assert {"image2segmentation", "image2image", "cellpose"} <= set(listed())
    assert listed("--type", "Image2Segmentation") == ["image2segmentation"]
    assert listed("--tag", "image2image") == ["image2image"]
    assert listed("--tag", "image2image", "--type", "Image2Segmentation") == []
