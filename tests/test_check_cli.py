"""`segserve check` as a command: formats that others read, thresholds, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from fluidattacks_core.sarif import SarifLog
from junitparser import JUnitXml

from segserve import findings
from segserve.check import RULES
from segserve.check.badge import badge
from segserve.cli import main
from segserve.findings import Finding, Place, Severity
from tests.corpus import BROKEN, GOOD, make
from tests.repositories import git, make_repository


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Without a licence (warning) and with a command that can run values (error)."""
    folder = tmp_path / "broken"
    files = {**GOOD, "MLProject": GOOD["MLProject"].replace("--size {size}", '--size "{size}"')}
    del files["LICENSE"]
    make_repository(folder, files)
    return folder


def test_a_good_executor_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_repository(tmp_path / "good", GOOD)
    assert main(["check", str(tmp_path / "good"), "--fail-on", "warning"]) == 0
    assert "good: no findings" in capsys.readouterr().out


def test_this_folder_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(tmp_path / "good", GOOD)
    monkeypatch.chdir(tmp_path / "good")
    assert main(["check"]) == 0
    assert "no findings" in capsys.readouterr().out


def test_findings_and_failures_have_exit_codes_of_their_own(
    tmp_path: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(broken)]) == 7
    out, err = capsys.readouterr()
    assert "MLProject:8:5: error[unsafe-placeholder]" in out
    assert "1 error, 1 warning" in err
    assert main(["check", str(broken), "--ignore", "unsafe-placeholder"]) == 0
    assert main(["check", str(broken), "--ignore", "unsafe-placeholder", "--fail-on", "warning"]) == 7
    assert main(["check", str(broken), "--fail-on", "never"]) == 0
    assert main(["check", str(broken), "--ignore", "no-license"]) == 2
    assert "no-licence" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert main(["check", f"{broken}@nowhere"]) == 3
    assert main(["check", (tmp_path / "gone.git").as_uri()]) == 6


def test_what_git_ignores_is_not_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "good"
    make_repository(folder, {**GOOD, ".gitignore": "mlruns/\n"})
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "meta.yaml").write_text("x: 1\n")
    assert main(["check", str(folder), "--fail-on", "warning"]) == 0
    git(folder, "add", "-f", "mlruns")
    assert main(["check", str(folder), "--fail-on", "warning"]) == 7


def test_a_project_in_a_subdirectory_is_called_by_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"models/tiny/{name}": content for name, content in GOOD.items()}
    files["models/tiny/python_env.yaml"] = GOOD["python_env.yaml"].replace("numpy==2.1.0", "numpy")
    files["models/tiny/main.py"] = GOOD["main.py"].replace('"*.png"', '"*.tif"')
    make_repository(tmp_path / "several", files)
    assert main(["check", f"{tmp_path / 'several'}#models/tiny"]) == 7
    out = capsys.readouterr().out
    assert "models/tiny/python_env.yaml:4:5: warning[unpinned-dependency]" in out
    assert "models/tiny/main.py:13:61: error[glob-misses-images]" in out
    assert "2 findings" not in out


def test_a_link_that_leaves_the_repository_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "broken", BROKEN["escaping-link"])
    (folder / ".git").rmdir()
    make_repository(folder, {})
    assert main(["check", str(folder)]) == 7
    assert "error[escaping-link]" in capsys.readouterr().out


def test_json_has_all_of_it(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(broken), "--json", "--ignore", "no-licence"]) == 7
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "segserve-check"
    assert document["commit"] == git(broken, "rev-parse", "HEAD")
    assert [one["rule"] for one in document["findings"]] == ["unsafe-placeholder"]
    assert [one["rule"] for one in document["ignored"]] == ["no-licence"]


def test_sarif_is_what_its_schema_says(broken: Path, tmp_path: Path) -> None:
    assert main(["check", str(broken), "--report", f"sarif={tmp_path / 'check.sarif'}"]) == 7
    log = SarifLog.model_validate_json((tmp_path / "check.sarif").read_text())
    run = log.runs[0]
    assert [result.rule_id for result in run.results or ()] == ["unsafe-placeholder", "no-licence"]
    assert [rule.id for rule in run.tool.driver.rules or ()] == ["no-licence", "unsafe-placeholder"]
    place = (run.results or [])[0].model_dump(by_alias=True, mode="json")["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "MLProject"
    assert (place["region"]["startLine"], place["region"]["startColumn"]) == (8, 5)


def test_sarif_of_every_rule_and_of_odd_places() -> None:
    odd = [Place(), Place("a b/ü#?.py", 3), Place("x.py", 3, 7, "$.a", "cell.png")]
    found = [rule.at("a message", place) for rule in RULES.values() for place in odd]
    found.append(Finding("of-nobody", Severity.NOTE, "no rule is known"))
    log = SarifLog.model_validate_json(findings.as_sarif(found, RULES, tool="segserve", version="1"))
    assert len(log.runs[0].results or ()) == len(found)


def test_junit_is_read_by_others(broken: Path, tmp_path: Path) -> None:
    report = tmp_path / "check.xml"
    assert main(["check", str(broken), "--report", f"junit={report}"]) == 7
    suite = JUnitXml.fromfile(str(report))
    assert (suite.tests, suite.failures) == (2, 1)
    assert main(["check", str(broken), "--report", f"junit={report}", "--fail-on", "warning"]) == 7
    assert JUnitXml.fromfile(str(report)).failures == 2


def test_github_gets_ten_of_each_kind_and_the_rest_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = "".join(f"  - package{number}\n" for number in range(14))
    files = {**GOOD, "python_env.yaml": GOOD["python_env.yaml"] + packages}
    make_repository(tmp_path / "loose", {**files, "MLProject": GOOD["MLProject"].replace(">-", "|")})
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert main(["check", str(tmp_path / "loose"), "--format", "github"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("::warning ") for line in lines) == 10
    assert sum(line.startswith("::notice ") for line in lines) == 1
    assert "::warning file=python_env.yaml,line=5,col=5,title=unpinned-dependency::'package0'" in lines[0]
    assert summary.read_text().count("| warning |") == 14


def test_annotations_and_summary_escape_what_executors_bring() -> None:
    evil = Finding("rule", Severity.ERROR, "100%\n::stop-commands::x", Place("a:b,c.py", 1), "<script>|`x`")
    line = findings.as_annotations([evil])
    assert line == "::error file=a%3Ab%2Cc.py,line=1,title=rule::100%25%0A::stop-commands::x <script>|`x`"
    table = findings.as_summary([evil], "a|b")
    assert "<script>" not in table
    assert len(table.splitlines()[-1].split("|")) == 7


def test_a_badge_says_how_it_stands() -> None:
    for rules, text in (((), "passing"), (("no-readme",), "1 warning"), (("yaml", "no-readme"), "1 error")):
        drawn = ET.fromstring(badge([RULES[rule].at("x") for rule in rules]))
        assert drawn.attrib["aria-label"] == f"segserve: {text}"


def test_wrong_reports_are_refused(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(broken), "--report", "html=x"]) == 2
    assert "sarif" in capsys.readouterr().err


def test_the_list_of_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--rules"]) == 0
    assert set(RULES) <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}
