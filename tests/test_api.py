"""The Python API says what the command line says, in the same words."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import segserve
from segserve import api, errors
from segserve.cli.run import run_command
from segserve.errors import SegserveError, UnreadableImage
from tests.commands import Command, status_of
from tests.executors import make_executor
from tests.repositories import make_repository

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.usefixtures("here")

ROOT = Path(__file__).parent.parent
# What only a terminal needs, or what is another function.
OF_THE_TERMINAL = {"as_json", "verbose", "quiet", "open_report", "dry_run", "config", "server"}


@pytest.fixture
def segserve_here(here: Path) -> Path:
    make_executor(here / "executor")
    return here / "executor"


def test_the_options_have_the_words_of_the_command_line() -> None:
    words = set(inspect.signature(api.Session.request).parameters) - {"self"}
    assert {parameter.name for parameter in run_command.params} - OF_THE_TERMINAL == words


def test_what_is_exported_is_there() -> None:
    for name in segserve.__all__:
        assert getattr(segserve, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        segserve.rnu  # noqa: B018


@pytest.mark.network
def test_run(segserve_here: Path, images: Path) -> None:
    result = segserve.run(
        str(segserve_here), [images], parameters={"size": 5}, output=Path("out"), first=2, overlays=1, gpus="none"
    )
    assert result.folder == Path("out").absolute()
    assert result.counts == (1, 2)
    assert [Path(image.source).name for image in result.images] == ["cells1.png", "cells10.png"]
    document = result.document
    assert document is not None
    assert document.coordinates.shape == (12, 2)
    assert document.offsets.tolist() == [0, 4, 8, 12]
    assert document.image_index.tolist() == [0, 1, 1]
    assert np.array_equal(document.coordinates[0], (1, 1))
    assert result.entry == "main"
    assert result.seconds["executor"] > 0
    assert status_of(result.run_url) == "FINISHED"
    assert json.loads(json.dumps(result.as_json()))["objects"] == 3
    assert len(list((result.folder / "overlays").iterdir())) == 1


@pytest.mark.network
def test_one_path_needs_no_list(segserve_here: Path, images: Path) -> None:
    assert segserve.run(str(segserve_here), images / "cells2.png").counts == (1,)
    assert segserve.run(str(segserve_here), str(images / "cells2.png")).counts == (1,)


@pytest.mark.network
def test_an_entry_point_without_images_has_no_document(segserve_here: Path) -> None:
    result = segserve.run(str(segserve_here), entry="info")
    assert result.document is None
    assert result.counts == ()
    assert (result.folder / "artifacts" / "output.json").exists()


def test_errors_have_attributes(segserve_here: Path, images: Path) -> None:
    (images / "notes.txt").write_text("no image")
    with pytest.raises(UnreadableImage) as caught:
        segserve.run(str(segserve_here), [images])
    error = caught.value
    assert isinstance(error, errors.UsageError)
    assert error.exit_code == 2
    assert "notes.txt" in error.message == str(error)
    assert error.hint
    assert error.quote == ""
    assert [finding.place.path.endswith("notes.txt") for finding in error.findings] == [True]


def test_words_that_mean_nothing_are_refused(segserve_here: Path) -> None:
    with pytest.raises(TypeError, match="chanel"):
        segserve.run(str(segserve_here), [], chanel=1)
    with pytest.raises(SegserveError, match="short name 'zebrafish'"):
        segserve.run("zebrafish")


def test_run_waits(segserve_here: Path, images: Path) -> None:
    with pytest.raises(errors.UsageError, match="waits"):
        segserve.run(str(segserve_here), [images], detach=True)


def test_info_says_what_the_command_says(segserve: Command, segserve_here: Path) -> None:
    facts = api.info(str(segserve_here))
    assert facts == segserve("info", segserve_here, "--json").document
    assert [entry["name"] for entry in facts["entry_points"]] == ["main", "info"]
    assert facts["entry_points"][0]["images_parameter"] == "input_images"


def test_images_and_validate(images: Path, tmp_path: Path) -> None:
    described = api.images([images])
    assert [(entry["kind"], entry["series"][0]["rows"]) for entry in described] == [("png", n) for n in (41, 42, 50)]
    (tmp_path / "bad.json").write_text("{")
    findings = api.validate([tmp_path / "bad.json"])
    assert findings
    assert str(findings[0].place).startswith(str(tmp_path / "bad.json"))
    with pytest.raises(errors.NotFound, match=r"none\.json"):
        api.validate(["none.json"])


@pytest.mark.network
def test_the_documented_example(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/running.md, word for word, in a copy of what the repository's root needs."""
    program = re.findall(r"```python\n(import segserve\n.*?)```", (ROOT / "docs" / "running.md").read_text(), re.DOTALL)
    assert len(program) == 1
    names = ("MLProject", "conda.yaml", "executors", "examples/images")
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (here / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, here / "copy" / name)
    make_repository(here / "copy", {})
    monkeypatch.chdir(here / "copy")
    names_in_it: dict[str, object] = {}
    exec(compile(program[0], "docs/running.md", "exec"), names_in_it)
    result = names_in_it["result"]
    assert isinstance(result, segserve.Result)
    assert sum(result.counts) > 10
    assert len(result.counts) == len(api.images(["examples/images"]))
