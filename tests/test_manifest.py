"""`segserve.toml`: what is used, what is refused, and where it stands. The text is hostile until read."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from segserve import api, inputs, manifest, project
from segserve.cli import main
from segserve.findings import Severity
from segserve.inputs import Selection
from segserve.manifest import schema
from segserve.manifest.places import locate
from segserve.pipeline.expected import mismatches
from tests.executors import make_executor

ROOT = Path(__file__).parent.parent
GOOD = """\
title = "Blobs"
description = \"\"\"Finds blobs.
And more.\"\"\"
licence = "bsd-3-clause"
contact = "A. Tester <tester@example.org>"

[citation]
text = "Tester, A. (2021). Blobs. *J. Blob* 1."
doi = "https://doi.org/10.1234/blob.1"

[input]
channels = 1
bit_depth = [8, 16]

[run]
deterministic = true
network = "first-run"

[[weights]]
name = "blob"
url = "https://example.org/blob.pt"
sha256 = "{digest}"
size = 26000000

[check]
ignore = ["pinned-dependencies"]

[entry_points.main]
description = "Segments."
""".format(digest="ab" * 32)


def rules(text: str) -> list[tuple[str, int | None, str]]:
    return [(found.rule, found.place.line, found.message) for found in manifest.parse(text.encode()).findings]


def test_a_good_one() -> None:
    loaded = manifest.parse(GOOD.encode())
    assert loaded.findings == ()
    about = loaded.manifest
    assert (about.title, about.description, about.licence) == ("Blobs", "Finds blobs. And more.", "BSD-3-Clause")
    assert str(about.citation) == "Tester, A. (2021). Blobs. *J. Blob* 1. https://doi.org/10.1234/blob.1"
    assert (about.input.channels, about.input.bit_depth, about.input.dimensions) == ([1], [8, 16], 2)
    assert (about.run.deterministic, about.run.network, about.run.whole_set) == (True, "first-run", False)
    assert about.weights[0].size == 26_000_000
    assert about.check.ignore == ["pinned-dependencies"]
    assert about.entry_points["main"].description == "Segments."
    assert json.loads(json.dumps(about.as_json()))["citation"]["doi"] == "10.1234/blob.1"


def test_everything_that_is_wrong_is_named_with_its_place_and_the_rest_is_used() -> None:
    text = """\
titel = "x"
title = 3
license = "BSD"
[input]
channels = 0
bit_depth = [8, 12]
[[weights]]
name = "no https"
url = "http://example.org/x"
[[weights]]
name = "no url"
[[weights]]
name = "fine"
url = "https://example.org/x"
sha265 = ""
[check]
ignore = ["fine", "Not fine"]
[run]
network = "sometimes"
deterministic = "yes"
[entry_points.main]
descripton = "x"
[citation]
text = "Tester"
doi = "ten"
"""
    found = rules(text)
    unknown = [(line, message) for rule, line, message in found if rule == "manifest-unknown-key"]
    assert [line for line, _ in unknown] == [1, 15, 22]
    assert sorted(line or 0 for rule, line, _ in found if rule == "manifest-value") == [
        2,
        3,
        5,
        6,
        9,
        10,
        17,
        19,
        20,
        25,
    ]
    fixes = [finding.fix for finding in manifest.parse(text.encode()).findings]
    assert {"Did you mean 'title'?", "Did you mean 'sha256'?", "Did you mean 'description'?"} <= set(fixes)
    assert manifest.parse(text.encode()).manifest.as_json() == {
        "citation": {"text": "Tester"},
        "input": {"bit_depth": [8]},
        "weights": [{"name": "fine", "url": "https://example.org/x"}],
        "check": {"ignore": ["fine"]},
        "entry_points": {"main": {}},
    }


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"a = ", "manifest-toml"),
        (b"title = 'x'\ntitle = 'y'", "manifest-toml"),
        (b"\xff", "manifest-encoding"),
        (b"a = " + b"[" * 5000, "manifest-toml"),
        (b"a = " + b"9" * 5000, "manifest-toml"),
        (b"#" * (manifest.MAX_BYTES + 1), "manifest-too-large"),
        (b'title = "a\\u001b[2Jb"', "manifest-value"),
        (b'[citation]\ntext = "a\\u0000"', "manifest-value"),
        (b"run = 1", "manifest-value"),
        (b"weights = 1", "manifest-value"),
        (b"entry_points = []", "manifest-value"),
        (b'title = "' + b"x" * 300 + b'"', "manifest-value"),
    ],
)
def test_hostile_texts_end_in_a_finding(content: bytes, rule: str) -> None:
    loaded = manifest.parse(content)
    assert rule in [finding.rule for finding in loaded.findings]
    assert all(finding.severity is Severity.ERROR for finding in loaded.findings if finding.rule == rule)
    assert loaded.manifest == manifest.NONE


_KEYS = st.sampled_from(
    [*schema.Manifest.model_fields, *schema.Weights.model_fields, *schema.Run.model_fields, "x.y", ""]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value) if value is not None else "''"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _VALUES, max_size=6))
def test_any_structure_is_read_without_a_crash_and_what_is_left_is_right(raw: dict[str, object]) -> None:
    text = "\n".join(f"{json.dumps(key)} = {_toml(value)}" for key, value in raw.items())
    loaded = manifest.parse(text.encode("utf-8", "surrogatepass"))
    again = schema.Manifest.model_validate(loaded.manifest.as_json())
    assert again == loaded.manifest


def test_places_are_those_of_the_text() -> None:
    text = 'a = 1\n[b]\n  "c d".e = """\n[x]\ny = 2 """ # [z]\n[[f]]\ng = [\n 1, # ]\n]\n[[f]]\n[f.h]\ni = {j = 1}\n'
    tomllib.loads(text)
    assert locate(text) == {
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", "c d"): (3, 3),
        ("b", "c d", "e"): (3, 3),
        ("f", 0): (6, 1),
        ("f", 0, "g"): (7, 1),
        ("f", 1): (10, 1),
        ("f", 1, "h"): (11, 1),
        ("f", 1, "h", "i"): (12, 1),
    }


def test_a_link_out_of_the_repository_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("title = 'secret'")
    repository = tmp_path / "repository"
    make_executor(repository)
    (repository / manifest.NAME).symlink_to(tmp_path / "secret")
    loaded = project.load(repository)
    assert loaded.manifest == manifest.NONE
    assert [finding.rule for finding in loaded.findings] == ["manifest-outside"]


def test_a_wrong_one_is_a_warning_of_the_project(tmp_path: Path) -> None:
    make_executor(tmp_path / "it", **{manifest.NAME: "title = 1"})
    (finding,) = project.load(tmp_path / "it").findings
    assert (finding.severity, finding.place.path, finding.place.line) == (Severity.WARNING, manifest.NAME, 1)


def test_info_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "it", **{manifest.NAME: GOOD})
    assert main(["info", str(tmp_path / "it")]) == 0
    text = capsys.readouterr().out
    shown = ("Blobs", "Finds blobs.", "10.1234/blob.1", "BSD-3-Clause", "tester@example.org", "1 channel(s), 8 or 16")
    for word in (*shown, "deterministic, network in its first run", "blob.pt, 26 MB", "Segments."):
        assert word in text
    assert main(["info", "--json", str(tmp_path / "it")]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["title"] == "Blobs"


@pytest.mark.network
def test_the_citation_is_in_every_report_and_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cite = '[citation]\ntext = "Tester & *Co* (2021)"\ndoi = "10.1234/blob.1"\n'
    make_executor(tmp_path / "it", **{manifest.NAME: f'title = "Blobs"\nlicence = "MIT"\n{cite}'})
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 60), np.uint8))
    with api.session() as session:
        try:
            result = session.run(session.request(str(tmp_path / "it"), [tmp_path / "a.png"]))
            assert isinstance(result, api.Result)
            record = session.ctx.journal.get(result.job_id)
            tags = MlflowClient(result.run_url.partition("/#")[0]).get_run(record.run_id).data.tags
        finally:
            session.stop_ui()
    assert tags["segserve.citation"] == "Tester & *Co* (2021) https://doi.org/10.1234/blob.1"
    assert (tags["segserve.title"], tags["segserve.licence"]) == ("Blobs", "MIT")
    page = (result.folder / "report" / "index.html").read_text()
    assert "Tester &amp; *Co* (2021) https://doi.org/10.1234/blob.1" in page
    assert "Tester &amp; \\*Co\\* (2021)" in (result.folder / "report" / "summary.md").read_text()


def test_every_key_is_documented_and_the_documented_file_is_right() -> None:
    text = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")
    example = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert example
    loaded = manifest.parse(example.group(1).encode())
    assert loaded.findings == ()
    said = tomllib.loads(example.group(1))
    for name in schema.Manifest.model_fields:
        assert name in said, name
    for name, model in (
        ("citation", schema.Citation),
        ("input", schema.Input),
        ("run", schema.Run),
        ("check", schema.Check),
    ):
        assert set(said[name]) == set(model.model_fields), name
    assert set(said["weights"][0]) == set(schema.Weights.model_fields)


@pytest.mark.parametrize("file", sorted(ROOT.glob("**/segserve.toml")), ids=lambda file: file.parent.name)
def test_our_own_are_right(file: Path) -> None:
    assert manifest.parse(file.read_bytes()).findings == ()


def _pictures(folder: Path) -> list[Path]:
    grey, colour = np.zeros((40, 60), np.uint8), np.zeros((40, 60, 3), np.uint8)
    for name, pixels in (("grey", grey), ("colour", colour), ("deep", grey.astype(np.uint16))):
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return [folder / f"{name}.png" for name in ("grey", "colour", "deep")]


@pytest.mark.parametrize(
    ("expected", "selection", "found"),
    [
        ("channels = [1, 3]\nbit_depth = [8, 16]", Selection(), []),
        ("", Selection(), []),
        ("channels = 1", Selection(), ["expects grey images; 1 of 3 are colour, {}/colour.png for one. --channel"]),
        ("channels = 1", Selection(channel=0), []),
        ("channels = 3", Selection(), ["expects colour images; 2 of 3 are grey, {}/grey.png for one."]),
        ("bit_depth = 8", Selection(), ["expects 8-bit images; 1 of 3 are 16-bit, {}/deep.png for one. --depth 8"]),
        ("bit_depth = 8", Selection(depth=8), []),
        ("dimensions = 3", Selection(), ["made for volumes"]),
        ("channels = 4\nbit_depth = 16", Selection(), ["4-channel images", "4-channel images", "expects 16-bit"]),
    ],
)
def test_images_unlike_those_that_are_expected(
    expected: str, selection: Selection, found: list[str], tmp_path: Path
) -> None:
    plan = inputs.plan(_pictures(tmp_path), selection)
    said = mismatches(manifest.parse(f"[input]\n{expected}\n".encode()).manifest, plan)
    assert len(said) == len(found)
    for sentence, part in zip(said, found, strict=True):
        assert part.format(tmp_path) in sentence


def test_a_run_warns_of_unlike_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_executor(tmp_path / "it", **{manifest.NAME: 'title = "Blobs"\n[input]\nchannels = 1\n'})
    pictures = [str(path) for path in _pictures(tmp_path)]
    assert main(["run", str(tmp_path / "it"), *pictures, "--dry-run", "--json"]) == 0
    said = capsys.readouterr()
    warning = f"Blobs expects grey images; 1 of 3 are colour, {pictures[1]} for one."
    assert warning in said.err
    assert any(warning in one for one in json.loads(said.out)["warnings"])
