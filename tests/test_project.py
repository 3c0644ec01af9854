"""MLProject files: what is read, what is refused and where, and what a value can do in a command."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from segserve import project
from segserve.errors import InvalidParameters, InvalidProject, UnknownEntryPoint, UsageError
from segserve.project import ParameterType, command, document

GOOD = """\
name: Threshold
conda_env: conda.yaml
entry_points:
  main:
    parameters:
      input_images: path
      sigma: {type: float, default: 1.5}
      count: {type: int, default: 3}
      label: {type: string, default: Cell}
    command: "python main.py {input_images} --sigma {sigma} --count {count} --label {label}"
  info:
    command: "python info.py"
  train:
    parameters: {data: path, model: {type: path, default: m.pt}, source: uri}
    command: |
      python train.py {data} {model}
"""


def make(folder: Path, text: str | bytes = GOOD, name: str = "MLProject", **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    for path, content in {"conda.yaml": "dependencies: [python=3.11]", **files}.items():
        (folder / path).write_text(content)
    return folder


def invalid(folder: Path) -> InvalidProject:
    with pytest.raises(InvalidProject) as caught:
        project.load(folder)
    return caught.value


# ------------------------------------------------------------------------------------------------------------ reading


def test_a_good_project_is_read_with_types_and_defaults(tmp_path: Path) -> None:
    loaded = project.load(make(tmp_path))
    assert (loaded.name, loaded.environment.kind, loaded.environment.file) == ("Threshold", "conda", "conda.yaml")
    main = project.select(loaded, "main")
    assert main.images_parameter == "input_images"
    assert main.parameters["sigma"].type is ParameterType.FLOAT
    assert main.parameters["sigma"].default == "1.5"
    assert main.parameters["input_images"].required
    assert project.select(loaded, "info").images_parameter is None
    assert project.select(loaded, "train").images_parameter == "data"  # the one path without a default
    assert loaded.findings == ()


def test_description_is_json_and_names_everything(tmp_path: Path) -> None:
    described = project.describe(project.load(make(tmp_path)))
    assert described["environment"] == {"kind": "conda", "source": "conda.yaml"}
    entry = described["entry_points"][0]
    count = {"name": "count", "type": "int", "default": "3", "required": False}
    assert {key: entry["parameters"][2][key] for key in count} == count
    assert __import__("json").dumps(described)


@pytest.mark.parametrize("name", ["MLproject", "mlproject", "MLPROJECT"])
def test_the_file_is_found_whatever_its_case_and_a_folder_does_not_count(tmp_path: Path, name: str) -> None:
    make(tmp_path, name=name)
    (tmp_path / ("mlProject" if name != "mlProject" else "MLProject")).mkdir()
    assert project.load(tmp_path).file.name == name


def test_two_project_files_are_refused(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, name="MLproject")
    assert "two project files" in invalid(tmp_path).message


def test_no_project_file_says_what_an_executor_needs(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("")
    error = invalid(tmp_path)
    assert "no MLProject" in error.message
    assert "entry_points" in error.hint
    assert "no folder 'absent'" in invalid(tmp_path / "absent").message


def test_links_that_leave_the_repository_are_refused_and_others_are_not(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere")
    inside = tmp_path / "repo"
    (inside / ".git").mkdir(parents=True)
    make(inside / "shared", GOOD)
    (inside / "sub").mkdir()
    (inside / "sub" / "MLProject").symlink_to("../shared/MLProject")
    (inside / "sub" / "conda.yaml").symlink_to("../shared/conda.yaml")
    assert project.load(inside / "sub").name == "Threshold"
    (inside / "MLProject").symlink_to(tmp_path / "elsewhere" / "MLProject")
    assert "leaves the repository" in invalid(inside).message


@pytest.mark.parametrize("path", ["../../x.yaml", "../outside.yaml", "/etc/hostname", "link.yaml"])
def test_an_environment_file_outside_the_repository_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "outside.yaml").write_text("")
    folder = make(tmp_path / "repo", f"name: x\nconda_env: {path}\n")
    (folder / "link.yaml").symlink_to("../outside.yaml")
    error = invalid(folder)
    assert "leaves the repository" in error.message
    assert (error.findings[0].place.line, error.findings[0].place.column) == (2, 1)


def test_an_environment_file_beside_a_subproject_is_inside(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "shared.yaml").write_text("")
    folder = make(tmp_path / "sub", "conda_env: ../shared.yaml\nentry_points: {}\n")
    assert project.load(folder).environment.file == "../shared.yaml"


@pytest.mark.parametrize(
    ("files", "kind", "file"),
    [
        ((), "none", ""),
        (("conda.yaml",), "conda", "conda.yaml"),
        (("conda.yaml", "python_env.yaml"), "python", "python_env.yaml"),
    ],
)
def test_without_an_environment_the_default_files_count_as_in_mlflow(
    tmp_path: Path, files: tuple[str, ...], kind: str, file: str
) -> None:
    (tmp_path / "MLProject").write_text("name: x\n")
    for name in files:
        (tmp_path / name).write_text("")
    environment = project.load(tmp_path).environment
    assert (environment.kind, environment.file) == (kind, file)


def test_docker_environment_is_read_and_its_structure_checked(tmp_path: Path) -> None:
    good = 'docker_env: {image: me/it, volumes: ["/a:/a"], environment: [["N", "v"], "HOME"]}\n'
    environment = project.load(make(tmp_path / "good", good)).environment
    assert (environment.kind, environment.docker["image"]) == ("docker", "me/it")
    bad = "docker_env: {volumes: /a, environment: [[1, 2, 3]], imgae: x}\n"
    error = invalid(make(tmp_path / "bad", bad))
    text = str(error)
    assert all(word in text for word in ("names no image", "volumes is no list", "environment is no list"))


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        ("", "empty-file", 1),
        ("- a\n- b\n", "structure", 1),
        ("name: [1]\n", "structure", 1),
        ("name: x\nentry_points:\n", "structure", 2),
        ("entry_points:\n  main:\n", "structure", 2),
        ("entry_points:\n  main: {parameters: {}}\n", "structure", 2),
        ("entry_points:\n  main:\n    command: [python]\n", "structure", 3),
        ("entry_points:\n  main:\n    parameters:\n    command: x\n", "structure", 3),
        ("entry_points:\n  main:\n    parameters:\n      a:\n    command: x\n", "structure", 4),
        ("conda_env: conda.yaml\npython_env: p.yaml\n", "several-environments", 2),
        ("name: x\nconda_env: missing.yaml\n", "missing-file", 2),
        ("name: x\nname: y\n", "duplicate-key", 2),
        ("name: 'x\n", "yaml", 2),
        ("name: x\n\tentry: y\n", "yaml", 2),
        ("a: &a [*a]\n", "alias", 1),
        ("name: !!python/object/apply:os.system [id]\n", "yaml", 1),
        ("name: 2001-99-99\n", "yaml", None),
        ("name: x\ndatabricks_spark_job: {python_file: a.py}\n", "unsupported", 2),
        ("[" * 5000, "too-large", None),
        ("name: " + "x" * 300_000, "too-large", None),
        (b"name: \xff\xfe\n", "encoding", None),
    ],
)
def test_every_malformed_file_is_located(tmp_path: Path, text: str | bytes, rule: str, line: int | None) -> None:
    finding = invalid(make(tmp_path, text)).findings[0]
    assert (finding.rule, finding.place.line) == (rule, line)


def test_alias_bombs_are_refused_at_once(tmp_path: Path) -> None:
    levels = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 30))
    assert invalid(make(tmp_path, f"l0: &l0 [a]\n{levels}\n")).findings[0].rule == "too-large"


def test_all_errors_are_raised_at_once_and_unknown_keys_warn(tmp_path: Path) -> None:
    text = "nmae: x\nconda_env: gone.yaml\nentry_points:\n  a: {paramters: {}, command: ls}\n  b: {}\n"
    error = invalid(make(tmp_path, text))
    assert "2 errors" in error.message
    assert "gone.yaml" in error.message
    assert "'b' has no command" in error.message
    warnings = {finding.message: finding.fix for finding in error.findings if finding.severity == "warning"}
    assert "Did you mean 'parameters'?" in warnings["MLflow ignores the key 'paramters' of a."]
    assert "Did you mean 'name'?" in warnings["MLflow ignores the key 'nmae'."]


def test_unknown_types_and_unfit_defaults_warn(tmp_path: Path) -> None:
    text = "entry_points: {main: {parameters: {a: floaty, b: {type: float, default: abc}, c.d: string}, command: x}}\n"
    rules = [finding.rule for finding in project.load(make(tmp_path, text)).findings]
    assert rules == ["unknown-type", "bad-default", "parameter-name"]


def test_mlflow_reads_the_same(tmp_path: Path) -> None:
    from mlflow.projects._project_spec import load_project

    theirs, ours = load_project(str(make(tmp_path))), project.load(tmp_path)
    assert theirs.name == ours.name
    for name, entry in ours.entry_points.items():
        other = theirs.get_entry_point(name)
        assert other.command == entry.command
        for parameter in entry.parameters.values():
            assert other.parameters[parameter.name].type == parameter.declared
            assert (other.parameters[parameter.name].default is None) == parameter.required


# ----------------------------------------------------------------------------------------------------- entry points


def test_an_unknown_entry_point_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownEntryPoint) as caught:
        project.select(project.load(make(tmp_path)), "mian")
    assert caught.value.hint == "Did you mean 'main'?"


def test_scripts_of_the_project_are_entry_points_and_others_are_not(tmp_path: Path) -> None:
    folder = make(tmp_path / "repo", **{"my tool.py": "", "go.sh": "", "-c.py": ""})
    (tmp_path / "outside.py").write_text("")
    (folder / "link.py").symlink_to("../outside.py")
    loaded = project.load(folder)
    assert project.select(loaded, "my tool.py").command == "python 'my tool.py'"
    assert project.select(loaded, "go.sh").command == "bash go.sh"
    for name in ("../outside.py", "link.py", "absent.py", "-c.py", str(tmp_path / "outside.py")):
        with pytest.raises(UnknownEntryPoint):
            project.select(loaded, name)


def test_a_broken_command_stops_its_own_entry_point_only(tmp_path: Path) -> None:
    text = """\
entry_points:
  main: {parameters: {x: string}, command: "python main.py {x}"}
  quoted:
    parameters: {x: string}
    command: python main.py "{x}"
  undeclared: {parameters: {sigma: float}, command: "python main.py {sigam}"}
  braces: {command: "awk '{print}' }"}
"""
    loaded = project.load(make(tmp_path, text))
    assert project.select(loaded, "main").problems == ()
    assert [finding.rule for finding in loaded.findings] == [
        "unsafe-placeholder",
        "undeclared-placeholder",
        "command-braces",
    ]
    for name, words in (
        ("quoted", "double quotes"),
        ("undeclared", "no declared parameter"),
        ("braces", "braces"),
    ):
        with pytest.raises(InvalidProject, match=words) as caught:
            project.select(loaded, name)
        assert caught.value.findings[0].place.line in (5, 6, 7)
        assert caught.value.hint


# ---------------------------------------------------------------------------------------------------------- commands

SAFE = [
    "echo {x}",
    "echo --size={x} a{x}b {x}{x}",
    "echo 'it is' {x} \"quoted\" {x}",
    'echo "$(basename {x})" {x}',
    "cd . && echo {x} | cat {x}; echo {x}",
    "OUT={x} FLAG=1 echo {x}",
    "env OUT={x} echo {x}",
    "if true; then echo {x}; fi",
    "echo start > log 2>&1 && echo {x} >> log",
    "echo a 2>&1 {x}",
    "cat <<< {x}",
    "cat <<EOF {x}\ntext\nEOF",
    "# don't {x}\necho {x}",
    "( echo {x} ) && echo {x}",
    "bash -c 'echo \"$1\"' name {x}",
    "echo \\\n  {x}",
    "echo $((1 + 2)) {x}",
    "echo {{}} ${{HOME}} {x}",
    "echo \"${{HOME:-none}}\" 'a' {x}",
    "for i in {x}; do echo {x}; done",
    "python3 - {x} < /dev/null",
]
DANGEROUS = [
    'echo "{x}"',
    "echo '{x}'",
    "echo \"a 'b' {x}\"",
    "echo $'{x}'",
    "echo `basename {x}`",
    "echo ${x}",
    "echo \\{x}",
    "echo $(( {x} ))",
    "echo $[ {x} ]",
    "[[ {x} -eq 1 ]]",
    "let {x}",
    "eval echo {x}",
    "\\eval echo {x}",
    "'eval' echo {x}",
    "bash -c {x}",
    "bash -lc {x}",
    "cat <<EOF\n{x}\nEOF",
    "cat <<'EOF'\na\nEOF\ncat <<EOF\n{x}\nEOF",
    'echo "${{V:-{x}}}"',
    "V=abc; echo ${{V:{x}}}",
    'echo "$(echo "{x}")"',
    "{x}",
    "true; {x}",
    "X=1 {x}",
    "test -v {x}",
    "declare -i v={x}",
    "trap {x} EXIT",
    "if [[ -v {x} ]]; then echo; fi",
    "echo {x!r}",
    "python3 -c {x}",
]
REFUSED_ONLY = ["echo {x:.3}", "echo {x[0]}", "echo {x.y}", "echo {}", "echo {0}", "echo {y}", "echo }"]
PAYLOADS = [
    "$(touch pwned)",
    "`touch pwned`",
    "touch pwned",
    "; touch pwned ;",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "' $(touch pwned) '",
    "\\'; touch pwned; \\'",
    "a[$(touch pwned)]",
    "import os; os.system('touch pwned')",
    "open(chr(112)+'wned','w')",
    "}$(touch pwned)",
    "/bin/sh -c 'touch pwned'",
    "touch${IFS}pwned",
    "./touch",
    "a`; touch pwned; `b",
    "; touch pwned #",
    "\\' \"; touch pwned #",
]


def pwned(folder: Path, template: str, value: str) -> bool:
    """Run a command as MLflow does; whether the value has run something."""
    line = template.format(x=shlex.quote(value))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, timeout=20)
    if (folder / "pwned").exists():
        (folder / "pwned").unlink()
        return True
    return False


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A folder with a program that says it was run."""
    (tmp_path / "touch").write_text("#!/bin/sh\n: > pwned\n")
    (tmp_path / "touch").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("template", SAFE)
def test_safe_commands_are_accepted_and_bash_agrees(cell: Path, template: str) -> None:
    assert command.check(template, {"x"}) == ()
    assert not any(pwned(cell, template, value) for value in PAYLOADS)


@pytest.mark.parametrize("template", DANGEROUS)
def test_dangerous_commands_are_refused_and_bash_shows_why(cell: Path, template: str) -> None:
    assert [problem.rule for problem in command.check(template, {"x"})] == ["unsafe-placeholder"]
    assert any(pwned(cell, template, value) for value in PAYLOADS)


@pytest.mark.parametrize("template", REFUSED_ONLY)
def test_commands_that_mlflow_cannot_fill_are_refused(template: str) -> None:
    assert command.check(template, {"x"})


_PIECES = ["echo ", "{x}", '"', "'", "$(", ")", "`", ";", "\n", " ", "\\", "$", "a", "#", "((", "))", "<<", "|", "="]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from(_PIECES), min_size=1, max_size=9))
@example(pieces=["echo ", '"', "$(", '"', "{x}"])
def test_whatever_is_accepted_runs_nothing(cell: Path, pieces: list[str]) -> None:
    template = "".join(pieces)
    if "{x}" in template and command.check(template, {"x"}) == ():
        assert not any(pwned(cell, template, value) for value in PAYLOADS[::2])


# -------------------------------------------------------------------------------------------------------- parameters


@pytest.fixture
def main(tmp_path: Path) -> project.EntryPoint:
    return project.select(project.load(make(tmp_path / "repo")), "main")


def test_good_values_come_back_normalised_and_defaults_are_left_out(main: project.EntryPoint) -> None:
    given = {"sigma": " 2e-1 ", "count": "7"}
    assert project.check_parameters(main, given, images=True) == {"sigma": "2e-1", "count": "7"}
    assert project.check_parameters(main, {"label": " as is "}, images=True) == {"label": " as is "}


def test_a_local_path_becomes_absolute_and_a_uri_stays(main: project.EntryPoint, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert project.check_parameters(main, {"input_images": "images"}, images=False) == {
        "input_images": str(tmp_path / "images")
    }
    for uri in ("runs:/abc/data", "https://host/x.zip", (tmp_path / "images").as_uri()):
        checked = project.check_parameters(main, {"input_images": uri}, images=False)["input_images"]
        assert checked in (uri, str(tmp_path / "images"))


def test_all_problems_are_named_at_once(main: project.EntryPoint) -> None:
    given = {"sigam": "1", "sigma": "abc", "count": "1.5", "label": "a\nb"}
    with pytest.raises(InvalidParameters) as caught:
        project.check_parameters(main, given, images=True)
    text = caught.value.message
    for words in ("sigam", "Did you mean 'sigma'?", "'abc' is no number", "'1.5' is no whole number", "one line"):
        assert words in text
    assert len(caught.value.findings) == 4


@pytest.mark.parametrize("value", ["nan", "1,5", "", "1_000", "0x10", "1e", "--", "1 2"])
def test_what_is_no_float(main: project.EntryPoint, value: str) -> None:
    with pytest.raises(InvalidParameters, match="no number"):
        project.check_parameters(main, {"sigma": value}, images=True)


@pytest.mark.parametrize("value", ["1", "-1.", ".5", "1e-3", "inf", "+2.5E+4"])
def test_what_is_a_float(main: project.EntryPoint, value: str) -> None:
    assert project.check_parameters(main, {"sigma": value}, images=True)


def test_missing_values_and_images(tmp_path: Path, main: project.EntryPoint) -> None:
    with pytest.raises(UsageError, match="takes images") as caught:
        project.check_parameters(main, {}, images=False)
    assert "input_images" in caught.value.hint
    train = project.select(project.load(tmp_path / "repo"), "train")
    with pytest.raises(InvalidParameters) as missing:
        project.check_parameters(train, {}, images=False)
    assert "data (path)" in missing.value.message
    assert "source (uri)" in missing.value.message


def test_images_for_an_entry_point_without_images(tmp_path: Path, main: project.EntryPoint) -> None:
    info = project.select(project.load(tmp_path / "repo"), "info")
    with pytest.raises(InvalidParameters, match="takes no images"):
        project.check_parameters(info, {}, images=True)
    with pytest.raises(InvalidParameters, match=r"-P and by positional"):
        project.check_parameters(main, {"input_images": str(tmp_path)}, images=True)
    with pytest.raises(InvalidParameters, match="no parameters"):
        project.check_parameters(info, {"x": "1"}, images=False)


def test_paths_and_uris_are_checked(tmp_path: Path, main: project.EntryPoint) -> None:
    train = project.select(project.load(tmp_path / "repo"), "train")
    with pytest.raises(InvalidParameters) as caught:
        project.check_parameters(train, {"data": "absent", "source": "plain"}, images=False)
    assert "There is no 'absent'" in caught.value.message
    assert "'plain' is no URI" in caught.value.message
    with pytest.raises(InvalidParameters, match="is no path"):
        project.check_parameters(main, {"input_images": "x" * 5000}, images=False)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_text_crashes_the_reader(content: bytes) -> None:
    with contextlib.suppress(document.Unreadable):
        document.parse("MLProject", content)
