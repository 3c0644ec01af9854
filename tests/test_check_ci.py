"""The GitHub action, the GitLab include and the pre-commit hook, executed as their runners do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from fluidattacks_core.sarif import SarifLog
from junitparser import JUnitXml
from pre_commit.clientlib import load_manifest

from segserve.cli import main
from tests.corpus import GOOD
from tests.repositories import make_repository

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())


@dataclass
class Runner:
    """GitHub's runner as far as a composite action sees it: files for env, path and output, expressions in `env`.

    What begins with `uses` is another action; it is not executed here.
    """

    folder: Path
    workspace: Path
    inputs: Mapping[str, str]
    env: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    log: str = ""

    def run(self, steps: list[dict[str, Any]]) -> int:
        """The exit code of the first step that fails, else 0."""
        for number, step in enumerate(steps):
            if "run" in step:
                code = self._step(step, number)
                if code:
                    return code
        return 0

    def _step(self, step: dict[str, Any], number: int) -> int:
        assert step["shell"] == "bash"
        script = self.folder / f"{number}.sh"
        script.write_text(step["run"])
        assert "${{" not in step["run"], "expressions belong into env: there they are no code"
        files = {name: self.folder / f"{number}.{name}" for name in ("GITHUB_ENV", "GITHUB_PATH", "GITHUB_OUTPUT")}
        for file in files.values():
            file.touch()
        given = {name: self.value(str(text)) for name, text in step.get("env", {}).items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            env={**self.env, **given, **{name: str(file) for name, file in files.items()}},
            capture_output=True,
            text=True,
        )
        self.log += done.stdout + done.stderr
        self.env |= _pairs(files["GITHUB_ENV"])
        self.env["PATH"] = os.pathsep.join([*files["GITHUB_PATH"].read_text().split(), self.env["PATH"]])
        self.outputs[step.get("id", str(number))] = _pairs(files["GITHUB_OUTPUT"])
        return done.returncode

    def value(self, text: str) -> str:
        """`text` with its expressions evaluated."""

        def look_up(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("inputs."):
                return self.inputs.get(name[7:], ACTION["inputs"][name[7:]]["default"])
            if name.startswith("steps."):
                _, step, _, output = name.split(".")
                return self.outputs.get(step, {}).get(output, "")
            return {"github.action_path": str(ROOT)}[name]

        return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", look_up, text)


def _pairs(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


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


@pytest.mark.network
def test_the_actions_steps_as_the_hosted_runner_takes_them(tmp_path: Path) -> None:
    """A clean virtual environment, from the action's own folder, then a good executor and a bad one."""
    make_repository(tmp_path / "good", GOOD)
    bad = {**GOOD, "MLProject": GOOD["MLProject"].replace("--size {size}", '--size "{size}"')}
    make_repository(tmp_path / "bad", {**bad, "LICENSE": "x"})
    temp, state = tmp_path / "temp", tmp_path / "state"
    for folder in (temp, state, tmp_path / "home"):
        folder.mkdir()
    base = {
        **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "GIT_"))},
        "PATH": f"{Path(sys.base_prefix) / 'bin'}{os.pathsep}/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "RUNNER_TEMP": str(temp),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    runner = Runner(state, tmp_path / "good", {"fail-on": "warning"}, env=base)
    assert runner.run(ACTION["runs"]["steps"]) == 0, runner.log
    assert json.loads(runner.outputs["project"]["entry-points"]) == ["main", "info"]
    assert re.fullmatch(r"[0-9a-f]{20}", runner.outputs["project"]["environment-key"])
    assert "passing" in Path(runner.outputs["check"]["badge"]).read_text()
    assert "No findings" in (tmp_path / "summary.md").read_text()

    again = Runner(state, tmp_path / "bad", {"ignore": "no-readme no-info"}, env=runner.env)
    assert again.run([step for step in ACTION["runs"]["steps"] if step.get("name") != "Install segserve"]) == 7
    assert "::error file=MLProject,line=8,col=5,title=unsafe-placeholder::" in again.log
    log = SarifLog.model_validate_json(Path(again.outputs["check"]["sarif"]).read_text())
    assert [one.rule_id for one in log.runs[0].results or ()] == ["unsafe-placeholder"]
    assert JUnitXml.fromfile(again.outputs["check"]["junit"]).failures == 1
    assert "unsafe-placeholder" in (tmp_path / "summary.md").read_text()


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
