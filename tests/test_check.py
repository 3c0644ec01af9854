"""`segserve check`, the static part: one broken repository per rule, each caught by exactly its rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from segserve import check
from segserve.cli import main
from segserve.errors import UsageError
from segserve.findings import Finding
from tests.corpus import BROKEN, GOOD, make

ROOT = Path(__file__).parent.parent


def found(folder: Path, **options: object) -> tuple[Finding, ...]:
    return check.examine(folder, **options).findings


def test_the_good_repository_is_clean(tmp_path: Path) -> None:
    assert found(make(tmp_path / "good")) == ()


def test_every_static_rule_has_a_broken_repository() -> None:
    assert set(BROKEN) == set(check.STATIC)
    assert len(BROKEN) >= 40


@pytest.mark.parametrize("rule", BROKEN)
def test_each_is_caught_by_exactly_its_rule(tmp_path: Path, rule: str) -> None:
    findings = found(make(tmp_path / "broken", BROKEN[rule]))
    assert {finding.rule for finding in findings} == {rule}, [str(finding) for finding in findings]
    for finding in findings:
        assert finding.severity is check.RULES[rule].severity
        assert finding.message
        assert finding.fix


@pytest.mark.parametrize("rule", BROKEN)
def test_every_rule_can_be_ignored_by_name(tmp_path: Path, rule: str) -> None:
    folder = make(tmp_path / "broken", BROKEN[rule])
    report = check.examine(folder, ignore=[rule])
    assert report.findings == ()
    assert {finding.rule for finding in report.ignored} >= {rule}


def test_the_manifest_ignores_by_name(tmp_path: Path) -> None:
    changes = {**BROKEN["no-licence"], "segserve.toml": '[check]\nignore = ["no-licence"]\n'}
    assert found(make(tmp_path / "broken", changes)) == ()


def test_a_wrong_name_to_ignore_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        check.examine(make(tmp_path / "good"), ignore=["no-license"])
    assert "no-licence" in refused.value.hint


@pytest.mark.parametrize("rule", check.RULES)
def test_every_rule_has_a_page_that_says_the_same(rule: str) -> None:
    page = (ROOT / "docs" / "rules" / f"{rule}.md").read_text(encoding="utf-8")
    known = check.RULES[rule]
    assert page.startswith(f"# {rule}\n\n*{known.severity}*")
    assert known.summary in page
    assert known.fix in page
    assert f"| [{rule}]({rule}.md) | {known.severity} |" in (ROOT / "docs" / "rules" / "README.md").read_text()


def test_no_page_is_left_of_a_rule_that_is_gone() -> None:
    assert {path.stem for path in (ROOT / "docs" / "rules").glob("*.md")} == {*check.RULES, "README"}


EXECUTORS = sorted(path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "executors").glob("*/MLProject"))


@pytest.mark.parametrize("executor", [".", *EXECUTORS])
def test_our_own_executors_pass_clean(tmp_path: Path, executor: str) -> None:
    assert main(["check", f"{ROOT}#{executor}" if executor != "." else str(ROOT), "--fail-on", "warning"]) == 0


def test_the_kit_s_runner_writes_and_logs_by_itself(tmp_path: Path) -> None:
    runner = "from segserve_sdk import Runner, parameter\n\n\nclass Tiny(Runner):\n    pass\n\n\nTiny.main()\n"
    assert found(make(tmp_path / "kit", {"main.py": runner, "info.py": "print('tiny')\n"})) == ()


def test_a_lower_bound_is_no_old_cuda_build(tmp_path: Path) -> None:
    env = GOOD["python_env.yaml"] + "  - torch>=1.7.0\n"
    assert found(make(tmp_path / "new", {"python_env.yaml": env})) == ()
    for line in ("torch==1.11.0", "torch==2.0.1+cu117"):
        old = found(make(tmp_path / line, {"python_env.yaml": env.replace("torch>=1.7.0", line)}))
        assert [finding.rule for finding in old] == ["old-cuda"]
    assert found(make(tmp_path / "cu121", {"python_env.yaml": env.replace("torch>=1.7.0", "torch==2.3.0+cu121")})) == ()


@pytest.mark.parametrize(
    ("template", "env"),
    [
        ("threshold", "uv"),
        ("threshold", "conda"),
        ("threshold", "docker"),
        ("torch", "uv"),
        ("onnx", "uv"),
        ("cellpose", "uv"),
    ],
)
def test_what_segserve_new_writes_passes_clean(tmp_path: Path, template: str, env: str) -> None:
    folder = tmp_path / "fresh"
    assert main(["new", str(folder), "--template", template, "--env", env]) == 0
    assert main(["check", str(folder), "--fail-on", "warning"]) == 0
