"""The GitHub action, the GitLab include and the pre-commit hook, executed as their runners do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fluidattacks_core.sarif import SarifLog
from junitparser import JUnitXml
from pre_commit.clientlib import load_config, load_manifest

from segserve import api
from segserve.cli import main
from segserve.errors import UsageError
from tests.corpus import GOOD
from tests.hosted import ACTION, Container, Runner, download_action, variables
from tests.image import base_image
from tests.repositories import make_repository

ROOT = Path(__file__).parent.parent


def test_every_expression_names_something_that_exists() -> None:
    steps = ACTION["runs"]["steps"]
    known = {f"inputs.{name}" for name in ACTION["inputs"]} | {"github.action_path", "runner.os"}
    for step in steps:
        written = re.findall(r'echo "([\w-]+)=[^"]*" >> "\$GITHUB_OUTPUT"', step.get("run", ""))
        known |= {f"steps.{step['id']}.outputs.{name}" for name in written}
    for name in re.findall(r"\$\{\{ *(.*?) *\}\}", (ROOT / "action.yml").read_text()):
        assert name in known
    assert [step["uses"].split("@")[0] for step in steps if "uses" in step] == [
        "actions/setup-python",
        "actions/cache",
        "github/codeql-action/upload-sarif",
    ]


# What steps of ours call on a hosted runner, beside Python and bash.
PROGRAMS = ("git", "git-upload-pack", "mkdir", "cat", "dirname", "env", "mktemp", "rm")


@pytest.mark.docker
@pytest.mark.network
def test_the_workflow_of_a_new_repository_in_a_container(tmp_path: Path) -> None:
    """What `segserve new` writes and GitHub runs, from the action's installation on; and a bad one."""
    made = api.new(tmp_path / "blobs", ci_from="https://github.com/lab/segserve@v0.1.0")
    job = yaml.safe_load((made / ".github" / "workflows" / "check.yml").read_text())["jobs"]["check"]
    checkout, ours, own = job["steps"]
    assert (checkout["uses"].split("@")[0], ours["uses"]) == ("actions/checkout", "lab/segserve@v0.1.0")
    state, temp, home = (tmp_path / name for name in ("state", "temp", "runner"))
    for folder in (state, temp, home):
        folder.mkdir()
    environment = {
        **variables(),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "RUNNER_TEMP": str(temp),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    action = download_action(tmp_path / "_actions" / "lab" / "segserve" / "v0.1.0")
    with Container(base_image(tmp_path / "base", programs=PROGRAMS), tmp_path) as machine:
        runner = Runner(state, made, ours["with"], env=environment, action=action, inside=machine.inside)
        assert runner.run(ACTION["runs"]["steps"]) == 0, runner.log
        assert json.loads(runner.outputs["project"]["entry-points"]) == ["main", "info"]
        assert "No findings" in (tmp_path / "summary.md").read_text()
        assert "passing" in Path(runner.outputs["check"]["badge"]).read_text()
        assert re.fullmatch(r"[0-9a-f]{20}", runner.outputs["project"]["environment-key"])
        assert "upside-down" in runner.log
        assert runner.run([own]) == 0, runner.log
        _refuses(replace(runner, inputs={"ignore": "no-readme no-info"}, log=""), tmp_path)
    assert "7 objects in 1 image" in runner.log
    assert "3 passed" in runner.log


def _refuses(runner: Runner, folder: Path) -> None:
    bad = {**GOOD, "MLProject": GOOD["MLProject"].replace("--size {size}", '--size "{size}"'), "LICENSE": "x"}
    make_repository(folder / "bad", bad)
    runner.workspace = folder / "bad"
    assert runner.run([step for step in ACTION["runs"]["steps"] if step.get("name") != "Install segserve"]) == 7
    assert "::error file=MLProject,line=8,col=5,title=unsafe-placeholder::" in runner.log
    log = SarifLog.model_validate_json(Path(runner.outputs["check"]["sarif"]).read_text())
    assert [one.rule_id for one in log.runs[0].results or ()] == ["unsafe-placeholder"]
    assert JUnitXml.fromfile(runner.outputs["check"]["junit"]).failures == 1
    assert "unsafe-placeholder" in (folder / "summary.md").read_text()


def test_gitlabs_script(tmp_path: Path) -> None:
    """The include's script, with the segserve that is here instead of one that pip installs."""
    template = yaml.safe_load((ROOT / "gitlab" / "segserve-check.yml").read_text())
    job = {**template[".segserve-check"], **template["segserve-check"]}
    folder = tmp_path / "loose"
    make_repository(folder, {name: text for name, text in GOOD.items() if name != "LICENSE"})
    install, *lines = job["script"]
    assert "pip install" in install
    assert '"$SEGSERVE_SOURCE"' in install
    script = "set -eo pipefail\n" + "\n".join(lines).replace(
        "/tmp/segserve/bin/segserve", f"{sys.executable} -m segserve"
    )
    variables = {**job["variables"], "CI_PROJECT_DIR": str(folder)}
    variables["SEGSERVE_HOME"] = variables["SEGSERVE_HOME"].replace("$CI_PROJECT_DIR", str(folder))
    for options, code in (("", 0), ("--fail-on warning", 7)):
        env = {**os.environ, **variables, "SEGSERVE_OPTIONS": options}
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        assert "no-licence" in done.stdout
        for name in (job["artifacts"]["reports"]["junit"], *job["artifacts"]["paths"]):
            (folder / name).unlink()  # it is there; and the next check shall find the tree as it was


def test_the_hook_is_what_pre_commit_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hook,) = load_manifest(ROOT / ".pre-commit-hooks.yaml")
    assert hook["id"] == "segserve-check"
    assert hook["pass_filenames"] is False
    make_repository(tmp_path / "good", GOOD)
    monkeypatch.chdir(tmp_path / "good")
    words = [*hook["entry"].split()[1:], *hook["args"]]
    assert main(words) == 0
    (tmp_path / "good" / "LICENSE").unlink()
    assert main(words) == 7


@pytest.mark.slow
@pytest.mark.network
def test_the_hook_as_pre_commit_runs_it(tmp_path: Path) -> None:
    """`pre-commit run` installs segserve from a repository into an environment of its own, once, and runs the hook."""
    published = download_action(tmp_path / "segserve")
    hooks = {"repo": str(published), "rev": make_repository(published, {}), "hooks": [{"id": "segserve-check"}]}
    checked = tmp_path / "good"
    make_repository(checked, {**GOOD, ".pre-commit-config.yaml": yaml.safe_dump({"repos": [hooks]})})
    # Without pip's compilation of all that it installs (a minute): Python compiles what the hook imports.
    quick = {"PIP_COMPILE": "0", "PRE_COMMIT_HOME": str(tmp_path / "hooks")}

    def run() -> subprocess.CompletedProcess[str]:
        words = [str(Path(sys.executable).with_name("pre-commit")), "run", "--all-files", "--color", "never"]
        environment = {**os.environ, **variables(), **quick}
        return subprocess.run(words, cwd=checked, env=environment, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"segserve check\.+Passed", done.stdout)
    (checked / "LICENSE").unlink()
    done = run()
    assert done.returncode == 1
    assert "exit code: 7" in done.stdout
    assert "no-licence" in done.stdout


@pytest.mark.parametrize(
    ("source", "action", "include"),
    [
        (
            "https://github.com/lab/segserve@v0.1.0",
            "lab/segserve@v0.1.0",
            "https://raw.githubusercontent.com/lab/segserve/v0.1.0/",
        ),
        ("https://gitlab.example.org/a/b/segserve@v2", "", "https://gitlab.example.org/a/b/segserve/-/raw/v2/"),
    ],
)
def test_ci_of_a_new_repository_takes_segserve_from_where_one_says(
    source: str, action: str, include: str, tmp_path: Path
) -> None:
    made = api.new(tmp_path / "blobs", ci_from=source)
    steps = yaml.safe_load((made / ".github" / "workflows" / "check.yml").read_text())["jobs"]["check"]["steps"]
    if action:
        assert steps[1]["uses"] == action
        assert set(steps[1]["with"]) <= set(ACTION["inputs"])
    else:
        assert steps[2]["run"] == f'pip install "git+{source}" pytest'
    pipeline = yaml.safe_load((made / ".gitlab-ci.yml").read_text())
    (remote,) = pipeline["include"]
    assert remote["remote"].startswith(include)
    assert (ROOT / remote["remote"].removeprefix(include)).is_file()
    included = yaml.safe_load((ROOT / "gitlab" / "segserve-check.yml").read_text())
    assert pipeline["segserve-check"]["variables"]["SEGSERVE_SOURCE"] == f"git+{source}"
    assert set(pipeline["segserve-check"]["variables"]) <= set(included[".segserve-check"]["variables"])
    config = load_config(made / ".pre-commit-config.yaml")
    (hook,) = config["repos"]
    assert f"{hook['repo']}@{hook['rev']}" == source
    assert [one["id"] for one in hook["hooks"]] == [load_manifest(ROOT / ".pre-commit-hooks.yaml")[0]["id"]]


def test_without_a_source_ci_installs_from_the_index(tmp_path: Path) -> None:
    made = api.new(tmp_path / "blobs")
    assert "uses: actions/setup-python" in (made / ".github" / "workflows" / "check.yml").read_text()
    assert 'pip install "segserve" pytest' in (made / ".gitlab-ci.yml").read_text()
    assert load_config(made / ".pre-commit-config.yaml")["repos"][0]["repo"] == "local"
    for wrong in ("https://github.com/lab/segserve", "lab/segserve@v1", "git@github.com:lab/segserve@v1"):
        with pytest.raises(UsageError):
            api.new(tmp_path / "other", ci_from=wrong)


def test_keys_for_caches_follow_what_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "good"
    make_repository(folder, GOOD)
    keys = []
    for text in (GOOD["python_env.yaml"], GOOD["python_env.yaml"], GOOD["python_env.yaml"].replace("2.1.0", "2.1.1")):
        (folder / "python_env.yaml").write_text(text)
        assert main(["env", "key", str(folder)]) == 0
        keys.append(capsys.readouterr().out.strip())
    assert keys[0] == keys[1] != keys[2]
    assert re.fullmatch(r"[0-9a-f]{20}", keys[0])
