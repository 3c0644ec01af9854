"""Algorithm modules before anything runs: what is recognised, read, refused and generated. Nothing is installed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from segserve import api, dialects, project
from segserve.errors import InvalidParameters, InvalidProject
from segserve.findings import Severity
from tests.modules import EVERY_PARAMETER, TYPES, make_module, write_module
from tests.repositories import git, make_repository


def checkout(tmp_path: Path, source: Path, subdir: str = "") -> Path:
    """A clone, as a job has it."""
    git(tmp_path, "clone", "-q", str(source), "checkout")
    return tmp_path / "checkout" / subdir


def warned(loaded: project.Project) -> dict[str, str]:
    """The messages by rule."""
    return {finding.rule: finding.message for finding in loaded.findings}


# -------------------------------------------------------------------------------------------------------- recognition


@pytest.mark.parametrize("dialect", ["compox", "t3dserver"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_module_becomes_a_project(tmp_path: Path, kind: str, dialect: str) -> None:
    loaded = dialects.load(write_module(tmp_path, kind, dialect))
    assert set(loaded.entry_points) == {"main", "check", "info"}
    main = project.select(loaded, "main")
    assert main.images_parameter == "input_images"
    assert main.produces == ("polygons" if kind == "Image2Segmentation" else "files")
    assert loaded.module["algorithm_type"] == kind
    assert loaded.module["tags"] == [kind.lower()]
    assert loaded.module["dialect"] == {"compox": "Compox", "t3dserver": "T3D"}[dialect]
    assert loaded.findings == ()


def test_git_does_not_see_what_is_generated(tmp_path: Path) -> None:
    make_module(tmp_path / "module")
    folder = checkout(tmp_path, tmp_path / "module")
    dialects.load(folder)
    assert (folder / "MLProject").exists()
    assert git(folder, "status", "--porcelain", "--untracked-files=all") == ""
    assert git(tmp_path / "module", "status", "--porcelain", "--ignored") == ""


def test_a_module_in_a_subfolder(tmp_path: Path) -> None:
    write_module(tmp_path / "repository" / "algorithms" / "a [1]")
    make_repository(tmp_path / "repository", {"README.md": "two modules"})
    folder = checkout(tmp_path, tmp_path / "repository", "algorithms/a [1]")
    assert dialects.load(folder).module["algorithm_type"] == "Image2Segmentation"
    assert git(folder, "status", "--porcelain", "--untracked-files=all") == ""


def test_an_mlproject_comes_first(tmp_path: Path) -> None:
    write_module(tmp_path)
    (tmp_path / "mlproject").write_text("name: mine\nentry_points: {main: {command: 'true'}}\n")
    loaded = dialects.load(tmp_path)
    assert loaded.name == "mine"
    assert loaded.module == {}
    assert not (tmp_path / ".segserve").exists()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda folder: (folder / "pyproject.toml").unlink(), "no pyproject.toml"),
        (lambda folder: (folder / "pyproject.toml").write_text("[tool.other]\n"), r"no \[tool.compox\]"),
    ],
)
def test_what_is_nearly_a_module_is_told_what_is_missing(tmp_path: Path, change: Any, hint: str) -> None:
    folder = write_module(tmp_path)
    change(folder)
    with pytest.raises(InvalidProject) as caught:
        dialects.load(folder)
    assert "no MLProject" in caught.value.message
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize("name", [".segserve/x", "MLProject/x"])
def test_names_that_are_taken_are_refused(tmp_path: Path, name: str) -> None:
    folder = write_module(tmp_path)
    (folder / name).parent.mkdir()
    (folder / name).write_text("")
    with pytest.raises(InvalidProject, match="of its own"):
        dialects.load(folder)


def test_links_are_not_written_through(tmp_path: Path) -> None:
    folder = write_module(tmp_path / "module")
    (tmp_path / "elsewhere").mkdir()
    (folder / ".segserve").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidProject, match="of its own"):
        dialects.load(folder)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "[tool.compox]\nx = ",
        "[tool.compox]\na = 1\na = 2\n",
        "[tool.compox]\nadditional_parameters = " + "[" * 5000 + "]" * 5000,
        "[tool.compox]\nadditional_parameters = 3\n",
        "[tool.compox]\nadditional_parameters = [3]\n",
        '[tool.compox]\nadditional_parameters = [{name = "a b", config = {type = "int"}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a$(id)", config = {type = "int"}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a", config = {type = "integr"}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a", config = 3}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a", config = {type = "int_range", min = "x"}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a", config = {type = "int_enum", options = ["x"]}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a", config = {type = "int_enum"}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "input_images", config = {type = "int"}}]\n',
        '[tool.compox]\nadditional_parameters = [{name = "a", type = "int"}, {name = "a", type = "int"}]\n',
        '[project]\ndependencies = "numpy"\n[tool.compox]\n',
        '[project]\ndependencies = ["numpy ==== 1"]\n[tool.compox]\n',
        '[project]\nrequires-python = "<3"\n[tool.compox]\n',
        '[project]\nrequires-python = "three"\n[tool.compox]\n',
    ],
)  # fmt: skip
def test_what_cannot_be_offered_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_module(tmp_path)
    (folder / "pyproject.toml").write_text(text)
    with pytest.raises(InvalidProject, match=r"pyproject\.toml"):
        dialects.load(folder)
    assert not (folder / "MLProject").exists()


def test_errors_have_their_line(tmp_path: Path) -> None:
    folder = write_module(tmp_path, parameters='\n{name = "sigma", config = {type = "flaot"}},\n')
    with pytest.raises(InvalidProject) as caught:
        dialects.load(folder)
    (finding,) = caught.value.findings
    assert "sigma" in (folder / "pyproject.toml").read_text().splitlines()[(finding.place.line or 0) - 1]
    assert "float" in finding.fix


# --------------------------------------------------------------------------------------------------------- parameters

# name → (values that fit, values that do not)
VALUES = {
    "string": (["", "hello world", "-x", "$(id)", "a=b"], ["two\nlines"]),
    "int": (["0", "-3", "+4"], ["1.5", "abc", "", "1e3"]),
    "float": (["0", "1.5", "-2e-3"], ["abc", "1,5", "nan", ""]),
    "bool": (["true", "False", "1", "no"], ["maybe", "2", ""]),
    "int_range": (["0", "100", "42"], ["-1", "101", "1.5", "x"]),
    "float_range": (["0", "10", "3.14159"], ["-0.1", "10.5", "inf", "x"]),
    "string_enum": (["hello", "world"], ["Hello", "", "other"]),
    "int_enum": (["42", "44"], ["41", "42.5", "x"]),
    "float_enum": (["3.14", "3.150"], ["3.2", "x"]),
    "string_list": (["", "a", "a,b", '["a, b", "c"]'], ['["a"', "[[1]]", '[{"a": 1}]']),
    "int_list": (["", "1", "1,2", "[1, 2]"], ["1,x", "[1.5]", "[1"]),
    "float_list": (["1,2.5", "[1, 2.5]"], ["1;2", '["x"]']),
    "bool_list": (["true,false", "[true, false]"], ["[2]", "maybe"]),
}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> project.EntryPoint:
    """The entry point of a module with the guide's own 13 parameters."""
    folder = write_module(tmp_path_factory.mktemp("every"), "Generic", parameters=EVERY_PARAMETER)
    return project.select(dialects.load(folder), "main")


@pytest.mark.parametrize("kind", VALUES)
def test_every_type_takes_what_fits_and_refuses_the_rest_by_name(every: project.EntryPoint, kind: str) -> None:
    name = f"some_{kind}_parameter"
    good, bad = VALUES[kind]
    for value in good:
        project.check_parameters(every, {name: value}, images=True)
    for value in bad:
        with pytest.raises(InvalidParameters) as caught:
            project.check_parameters(every, {name: value}, images=True)
        assert name in caught.value.message, value


def test_all_wrong_values_are_named_at_once(every: project.EntryPoint) -> None:
    wrong = {f"some_{kind}_parameter": bad[0] for kind, (_, bad) in VALUES.items()}
    with pytest.raises(InvalidParameters) as caught:
        project.check_parameters(every, wrong, images=True)
    assert all(name in caught.value.message for name in wrong)
    assert len(caught.value.findings) == len(VALUES)


def test_parameters_are_described_with_limits_and_texts(tmp_path: Path) -> None:
    folder = write_module(tmp_path, "Generic", parameters=EVERY_PARAMETER)
    described = project.describe(dialects.load(folder))
    main = next(entry for entry in described["entry_points"] if entry["name"] == "main")
    found = {parameter["name"]: parameter for parameter in main["parameters"]}
    ranged = found["some_float_range_parameter"]
    assert (ranged["type"], ranged["min"], ranged["max"], ranged["step"]) == ("float_range", 0.0, 10.0, 0.1)
    assert ranged["description"] == "This parameter ranges floats."
    assert found["some_int_enum_parameter"]["options"] == ["42", "43", "44"]
    assert found["some_string_list_parameter"]["default"] == '["hello", "world"]'
    assert found["some_bool_parameter"]["default"] == "true"
    json.dumps(described)


def test_the_older_spelling_is_read_with_a_warning(tmp_path: Path) -> None:
    older = '{name = "some_user_defined_args", type = "str", default = "hello", description = "An argument."},'
    loaded = dialects.load(write_module(tmp_path, "Generic", "t3dserver", parameters=older))
    found = project.select(loaded, "main").parameters["some_user_defined_args"]
    assert (found.declared, found.default, found.description) == ("string", "hello", "An argument.")
    rules = [finding.rule for finding in loaded.findings]
    assert rules == ["module-older-spelling"] * 2
    assert "outside of config" in loaded.findings[0].message
    assert "read as string" in loaded.findings[1].message


def test_a_default_that_does_not_fit_is_said(tmp_path: Path) -> None:
    wrong = '{name = "x", config = {type = "int_range", default = 7, min = 0, max = 5}}'
    loaded = dialects.load(write_module(tmp_path, parameters=wrong))
    assert "0 to 5" in warned(loaded)["module-default"]


def test_parameters_that_people_need_not_see(tmp_path: Path) -> None:
    hidden = '{name = "x", config = {type = "int", default = 7, adjustable = false}}'
    main = project.select(dialects.load(write_module(tmp_path, parameters=hidden)), "main")
    assert main.parameters["x"].adjustable is False
    assert project.check_parameters(main, {"x": "8"}, images=True) == {"x": "8"}


# ------------------------------------------------------------------------------------------ devices and other settings


@pytest.mark.parametrize(
    ("settings", "supported", "default", "warns"),
    [
        ("", ["cpu"], "cpu", False),
        ('supported_devices = ["cpu", "gpu"]\ndefault_device = "gpu"', ["cpu", "gpu"], "gpu", False),
        ('supported_devices = ["gpu"]', ["gpu"], "gpu", False),
        ('supported_devices = ["cpu", "mps"]', ["cpu", "mps"], "cpu", False),
        ('supported_devices = ["cpu"]\ndefault_device = "gpu"', ["cpu"], "cpu", True),
        ('supported_devices = ["cpu", "tpu"]', ["cpu"], "cpu", True),
    ],
)
def test_devices(tmp_path: Path, settings: str, supported: list[str], default: str, warns: bool) -> None:
    loaded = dialects.load(write_module(tmp_path, settings=settings))
    assert loaded.module["supported_devices"] == supported
    assert loaded.module["default_device"] == default
    assert ("module-devices" in warned(loaded)) is warns
    assert project.select(loaded, "main").parameters["device"].options == ("auto", *supported)


def test_obfuscate_is_reported_as_without_effect(tmp_path: Path) -> None:
    settings = "obfuscate = true\nhash_module = true\nhash_assets = false\n"
    loaded = dialects.load(write_module(tmp_path, settings=settings))
    assert {finding.severity for finding in loaded.findings} == {Severity.NOTE}
    assert "recorded commit" in warned(loaded)["module-obfuscate"]
    assert "hash_assets" in warned(loaded)["module-hash"]


def test_content_hashes_tell_code_from_assets(tmp_path: Path) -> None:
    first = dialects.read(write_module(tmp_path / "a"))
    write_module(tmp_path / "b")
    (tmp_path / "b" / "files").mkdir()
    (tmp_path / "b" / "files" / "weights.bin").write_bytes(b"1")
    second = dialects.read(tmp_path / "b")
    assert (first.code == second.code, first.assets == second.assets) == (True, False)
    (tmp_path / "b" / "Runner.py").write_text("")
    assert dialects.read(tmp_path / "b").code != second.code


@pytest.mark.parametrize(
    ("declared", "kind"),
    [('algorithm_type = "Image2Imgae"', "Generic"), ("", "Image2Segmentation")],
)
def test_other_algorithm_types(tmp_path: Path, declared: str, kind: str) -> None:
    folder = write_module(tmp_path)
    text = (folder / "pyproject.toml").read_text().replace('algorithm_type = "Image2Segmentation"', declared)
    (folder / "pyproject.toml").write_text(text)
    loaded = dialects.load(folder)
    assert loaded.module["algorithm_type"] == kind
    assert "module-type" in warned(loaded)


# -------------------------------------------------------------------------------------------------------- environment


def lines(folder: Path) -> tuple[str, list[str]]:
    """Python and requirements of the generated environment, without segserve's own."""
    document = yaml.safe_load((folder / ".segserve" / "python_env.yaml").read_text())
    return document["python"], [line for line in document["dependencies"] if "segserve" not in line]


def test_own_dependencies_win(tmp_path: Path) -> None:
    own = 'requires-python = ">=3.9,<3.11"\ndependencies = ["numpy<2", "scikit-image", "compox>=1"]'
    loaded = dialects.load(write_module(tmp_path, project=own))
    assert lines(tmp_path) == ("3.10", ["numpy<2", "scikit-image"])
    assert "guest package" in warned(loaded)["module-provided"]
    assert loaded.module["requirements_from"] == "[project].dependencies"


def test_the_default_environment_has_what_the_guides_use(tmp_path: Path) -> None:
    dialects.load(write_module(tmp_path))
    python, found = lines(tmp_path)
    assert python == "3.11"
    assert {"numpy", "scikit-image", "scipy", "opencv-python-headless"} <= set(found)
    assert "torch" not in found


def test_large_packages_come_when_they_are_imported(tmp_path: Path) -> None:
    dialects.load(write_module(tmp_path, imports="import torch.nn as nn  # noqa\nfrom sklearn import svm"))
    _, found = lines(tmp_path)
    assert {"torch", "scikit-learn"} <= set(found)
    assert "onnxruntime" not in found


def test_the_documents_say_what_the_default_environment_holds() -> None:
    from segserve.dialects import environment

    text = (Path(__file__).parent.parent / "docs" / "modules.md").read_text(encoding="utf-8")
    assert all(f"`{package}`" in text for package in (*environment.DEFAULT, *environment.ON_IMPORT.values()))


def test_content_is_stored_once_and_reused_by_its_hash(tmp_path: Path) -> None:
    """A second commit changes the code: the asset is not stored again, and the environment is the same one."""
    folder = tmp_path / "module"
    make_module(folder, settings="hash_module = true\nhash_assets = true")
    (folder / "files").mkdir()
    (folder / "files" / "weights.bin").write_bytes(random.Random(1).randbytes(3_000_000))
    make_repository(folder, {})
    hashes, environments, sizes = [], [], []
    with api.session() as session:
        for text in ("", "\n# changed\n"):
            make_repository(folder, {"Runner.py": (folder / "Runner.py").read_text() + text})
            request = session.request(f"{folder}#check")
            hashes.append(session.info(request)["module"])
            environments.append(session.plan(request)["environment"])
            (mirror,) = session.ctx.store.mirrors()
            sizes.append(mirror.size)
    assert hashes[0]["assets_sha256"] == hashes[1]["assets_sha256"]
    assert hashes[0]["module_sha256"] != hashes[1]["module_sha256"]
    assert environments[0] == environments[1]
    assert sizes[0] > 3_000_000
    assert sizes[1] - sizes[0] < 300_000
