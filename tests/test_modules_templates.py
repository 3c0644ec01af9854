"""`segserve new` for algorithm modules: what it writes is right as it stands, and passes its own CI."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from segserve import api, dialects, scaffold
from segserve.check.probes import course
from segserve.cli import main
from segserve.cli.new import TEMPLATES
from tests.pythons import need_python
from tests.repositories import git

pytest_plugins = ["tests.command_fixtures"]

TYPES = {
    "compox-segmentation": "Image2Segmentation",
    "compox-denoising": "Image2Image",
    "compox-registration": "Image2Alignment",
}


@pytest.mark.parametrize("template", scaffold.MODULES)
def test_what_it_writes_is_right(template: str, tmp_path: Path) -> None:
    made = api.new(tmp_path / "My-module_2", template=template)
    assert git(made, "status", "--porcelain") == ""
    for name in git(made, "ls-files").splitlines():
        if not name.endswith(".png"):
            assert not re.search(r"\{\{|\{%|[ \t]$", (made / name).read_text(), re.MULTILINE), name
    assert main(["check", str(made), "--fail-on", "warning"]) == 0
    loaded = dialects.load(made)
    assert loaded.findings == ()
    assert loaded.module["algorithm_type"] == TYPES[template]
    assert not (made / "wheels").exists()


def test_the_command_offers_every_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(TEMPLATES) == {*scaffold.METHODS, *scaffold.MODULES}
    assert main(["new", str(tmp_path / "x"), "--template", "compox-denoising", "--env", "docker"]) == 2
    assert "pyproject.toml" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.network
@pytest.mark.usefixtures("here", "python_on_path")
@pytest.mark.parametrize("template", scaffold.MODULES)
def test_an_untouched_template_passes_its_own_ci(template: str, tmp_path: Path) -> None:
    made = api.new(tmp_path / "module", template=template)
    done = subprocess.run(["./ci.sh"], cwd=made, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert git(made, "status", "--porcelain") == ""


@pytest.mark.network
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("template", "probes"),
    [("compox-segmentation", ["one", "sizes", "16-bit"]), ("compox-registration", course.ALIGNING["Image2Alignment"])],
)
def test_check_runs_modules(
    template: str,
    probes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(course.PROBES, "quick", ("one", "sizes", "16-bit"))
    made = api.new(tmp_path / "module", template=template)
    assert main(["check", str(made), "--run", "--fail-on", "warning", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["findings"] == []
    assert [one["probe"] for one in checked["probes"]] == [*probes, "info"]
    assert {one["state"] for one in checked["probes"]} == {"succeeded"}


@pytest.mark.network
@pytest.mark.parametrize("python", ["3.8", "3.12"])
@pytest.mark.usefixtures("here")
def test_modules_run_on_old_and_new_pythons(python: str, tmp_path: Path) -> None:
    need_python(python)
    made = api.new(tmp_path / "module", template="compox-segmentation")
    result = api.run(str(made), [made / "example"], python=python, output=tmp_path / "result")
    assert result.counts == (7,)
    assert f"Python {python}" in " ".join(result.warnings)
