"""`segserve bench`: real executors in their environments, real MLflow runs, on images whose truth is known."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from segserve.bench import Row, expand, markdown, split_values
from segserve.bench.pages import html
from segserve.bench.rows import Benchmark, ranked
from segserve.errors import InvalidParameters, UsageError
from segserve.pipeline import Request
from segserve.refs import parse
from tests.commands import SEGSERVE, Command, run_of, status_of
from tests.executors import make_executor
from tests.repositories import make_repository
from tests.servers import call
from tests.waiting import wait_for

pytest_plugins = ["tests.command_fixtures"]


def request(text: str) -> Request:
    return Request(parse(text))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", ("a",)),
        ("1,2,3", ("1", "2", "3")),
        ("a, b", ("a", "b")),
        (r"x\,y,z", ("x,y", "z")),
        ("a,a", ("a",)),
        ("", ("",)),
    ],
)
def test_values_are_parted_by_commas(text: str, values: tuple[str, ...]) -> None:
    assert split_values(text) == values


def test_an_empty_value_among_others_is_refused() -> None:
    with pytest.raises(InvalidParameters, match="empty value"):
        split_values("a,,b")


def test_every_executor_gets_every_combination_of_what_it_knows() -> None:
    one, two = request("https://host.example/one@v1"), request("https://host.example/two#fast")
    grid = {"size": ("1", "2"), "mode": ("x", "y"), "seed": ("7",)}
    found = expand([one, two], [{"size", "mode", "seed"}, {"size"}], grid)
    assert [candidate.name for candidate in found] == [
        "one@v1 size=1 mode=x",
        "one@v1 size=1 mode=y",
        "one@v1 size=2 mode=x",
        "one@v1 size=2 mode=y",
        "two#fast size=1",
        "two#fast size=2",
    ]
    assert dict(found[0].request.parameters) == {"size": "1", "mode": "x", "seed": "7"}
    assert dict(found[-1].request.parameters) == {"size": "2"}


def test_a_parameter_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidParameters, match="No executor has a parameter 'sise'") as caught:
        expand([request("https://host.example/one")], [{"size"}], {"sise": ("1",)})
    assert "size" in caught.value.hint


def test_an_executor_that_cannot_be_read_is_one_candidate() -> None:
    found = expand(
        [request("https://host.example/one"), request("https://host.example/two")], [None, {"a"}], {"a": ("1", "2")}
    )
    assert [candidate.name for candidate in found] == ["one", "two a=1", "two a=2"]


def test_executors_of_one_name_are_told_apart() -> None:
    found = expand([request("https://a.example/one"), request("https://b.example/one")], [set(), set()], {})
    assert [candidate.name for candidate in found] == ["https://a.example/one#main", "https://b.example/one#main"]
    with pytest.raises(UsageError, match="there twice"):
        expand([request("https://a.example/one")] * 2, [set(), set()], {})


def test_too_many_are_refused() -> None:
    with pytest.raises(UsageError, match="10000 candidates"):
        expand([request("https://a.example/one")], [{"a", "b"}], {name: [str(i) for i in range(100)] for name in "ab"})


def row(number: int, **facts: object) -> Row:
    return replace(Row(number, f"c{number}", "e", {}), **facts)


def test_the_best_is_first_and_the_failed_are_last() -> None:
    rows = [
        row(1, error="no"),
        row(2, ap=0.5, mean_ap=0.3, seconds=1.0),
        row(3, ap=0.9, mean_ap=0.2, seconds=1.0),
        row(4, ap=0.5, mean_ap=0.4, seconds=9.0),
        row(5, ap=0.5, mean_ap=0.4, seconds=2.0),
        row(6, ap=math.nan, seconds=1.0),
    ]
    assert [one.number for one in ranked(rows, "ap")] == [3, 5, 4, 2, 6, 1]
    assert [one.number for one in ranked(rows, "mean-ap")] == [5, 4, 2, 3, 6, 1]


def test_hostile_names_stay_texts() -> None:
    evil = row(1, error="<script>alert(1)</script> | x", name="a|b <i>", ap=math.nan)
    made = Benchmark((evil,), "i", "t", 1, 1, "d" * 64, 0.5, "ap", Path("r"), "id", "url")
    assert "<script>" not in html(made)
    assert "<i>" not in markdown(made)
    line = next(line for line in markdown(made).splitlines() if "a\\|b" in line)
    assert line.replace("\\|", "").count("|") == 11
    assert json.loads(json.dumps(made.as_dict()))["candidates"][0]["ap"] is None


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[Path, Path]:
    """Three images, and the squares of 10 pixels that `tests.executors` finds in them with size=10."""
    for name in ("images", "truth"):
        (tmp_path / name).mkdir()
    for index in range(3):
        labels = np.zeros((40, 60), np.uint8)
        labels[1:12, 1:12] = 1
        if index % 2:
            labels[1:12, 20:31] = 2
        cv2.imwrite(str(tmp_path / "images" / f"i{index}.png"), np.full((40, 60), 50, np.uint8))
        cv2.imwrite(str(tmp_path / "truth" / f"i{index}.png"), labels)
    return tmp_path / "images", tmp_path / "truth"


@pytest.mark.network
def test_executors_and_values_are_ranked(here: Path, annotated: tuple[Path, Path], segserve: Command) -> None:
    images, truth = annotated
    make_executor(here / "good")
    make_executor(here / "broken", "crash")
    (here / "nothing").mkdir()
    (here / "nothing" / "README.md").write_text("no executor")
    done = segserve(
        *("bench", "./good", "./broken", "./nothing", "--images", images, "--truth", truth),
        *("-P", "size=8,10", "-o", "out", "--json", "--gpus", "none"),
    )
    assert done.code == 0, done.err
    found = done.document
    rows = found["candidates"]
    assert [(one["rank"], one["name"]) for one in rows[:2]] == [(1, "good size=10"), (2, "good size=8")]
    best, second = rows[:2]
    assert (best["ap"], best["pq"], best["f1"], best["mean_ap"]) == (1, 1, 1, 1)
    assert second["ap"] == 1  # 81 of 121 pixels: IoU 0.67
    assert second["mean_ap"] == pytest.approx(0.4)
    assert best["seconds"] > 0
    assert best["memory_mb"] > 10
    assert len(found["data"]) == 64
    failed = rows[2:]
    assert [one["name"] for one in failed] == ["broken size=8", "broken size=10", "nothing"]
    assert all("the model file is empty" in one["error"] for one in failed[:2])
    assert "MLProject" in failed[2]["error"]

    server, parent = found["mlflow"].split("/#/")[0], run_of(found["mlflow"])
    assert parent["info"]["status"] == "FINISHED"
    tags = {tag["key"]: tag["value"] for tag in parent["data"]["tags"]}
    assert tags["segserve.best"] == "good size=10"
    assert tags["segserve.data"] == found["data"]
    nested = call(
        server,
        "POST",
        "runs/search",
        {
            "experiment_ids": [parent["info"]["experiment_id"]],
            "filter": f"tags.`mlflow.parentRunId` = '{parent['info']['run_id']}'",
        },
    )["runs"]
    assert {run["info"]["run_id"] for run in nested} == {one["run_id"] for one in rows}
    assert {run["info"]["run_name"] for run in nested} == {one["name"] for one in rows}
    statuses = {run["info"]["run_id"]: run["info"]["status"] for run in nested}
    assert [statuses[one["run_id"]] for one in rows] == ["FINISHED"] * 2 + ["FAILED"] * 3
    own = next(run["data"] for run in nested if run["info"]["run_id"] == best["run_id"])
    metrics = {metric["key"]: metric["value"] for metric in own["metrics"]}
    assert metrics["ap"] == metrics["pq"] == metrics["f1"] == 1
    assert metrics["memory.mb"] == pytest.approx(best["memory_mb"])
    assert next(tag["value"] for tag in own["tags"] if tag["key"] == "segserve.data") == found["data"]

    logged = call(server, "GET", f"artifacts/list?run_id={parent['info']['run_id']}")["files"]
    assert {file["path"] for file in logged} == {"bench.html", "bench.json", "bench.md", "disagreement"}
    out = here / "out"
    assert len(list((out / "disagreement" / "01-good-size=8").glob("*.png"))) == 3
    assert (out / "results" / "02-good-size=10" / "output.json").exists()
    assert "<script" not in (out / "bench.html").read_text()
    assert "| 1 | good size=10 | 1.000 |" in (out / "bench.md").read_text()


@pytest.mark.network
def test_all_failed_is_a_no(here: Path, annotated: tuple[Path, Path], segserve: Command) -> None:
    make_executor(here / "broken", "no_output")
    done = segserve("bench", "./broken", "--images", annotated[0], "--truth", annotated[1], "--gpus", "none")
    assert done.code == 7
    assert "No candidate gave a result" in done.err
    assert "broken" in done.out
    assert (here / "segserve-results" / ".gitignore").exists()


def test_images_without_truth_are_refused_before_anything_runs(
    here: Path, annotated: tuple[Path, Path], segserve: Command
) -> None:
    make_executor(here / "good")
    images, truth = annotated
    (truth / "i1.png").unlink()
    done = segserve("bench", "./good", "--images", images, "--truth", truth)
    assert done.code == 2
    assert "has 3 image(s), the truth" in done.err
    done = segserve("bench", "./good", "--images", images, "--truth", images, "-P", "colour=1")
    assert done.code == 2
    assert "No executor has a parameter 'colour'" in done.err
    assert not (here / "segserve-results").exists()


@pytest.mark.network
def test_commits_are_candidates(here: Path, annotated: tuple[Path, Path], segserve: Command) -> None:
    first = make_executor(here / "good")
    changed = (here / "good" / "MLProject").read_text().replace("default: 10", "default: 4")
    second = make_repository(here / "good", {"MLProject": changed}, message="worse")
    words = (
        "--images",
        annotated[0],
        "--truth",
        annotated[1],
        "--by",
        "pq",
        "--iou",
        "0.75",
        "--json",
        "--gpus",
        "none",
    )
    done = segserve("bench", f"./good@{second[:12]}", f"./good@{first}", *words)
    assert done.code == 0, done.err
    rows = done.document["candidates"]
    assert [(one["commit"], one["pq"]) for one in rows] == [(first, 1), (second, 0)]
    assert [one["name"] for one in rows] == [f"good@{first}", f"good@{second[:12]}"]
    assert (done.document["iou"], done.document["ranked_by"]) == (0.75, "pq")


@pytest.mark.network
def test_an_interrupt_ends_candidate_and_parent(here: Path, annotated: tuple[Path, Path], segserve: Command) -> None:
    make_executor(here / "stuck", "hang")
    words = ("bench", "./stuck", "--images", str(annotated[0]), "--truth", str(annotated[1]), "--gpus", "none")
    with subprocess.Popen([*SEGSERVE, *words], stderr=subprocess.PIPE, text=True) as process:
        try:
            job = wait_for(lambda: segserve("ps", "--json").document, seconds=120)[0]["job"]
            wait_for(lambda: "sleeping" in segserve("logs", job).out, seconds=120)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()  # a test that failed must not wait for it
    assert process.returncode == 130
    assert "Traceback" not in err
    shown = segserve("show", job, "--json").document
    assert shown["state"] == "cancelled"
    nested = run_of(shown["mlflow"])
    parent = next(tag["value"] for tag in nested["data"]["tags"] if tag["key"] == "mlflow.parentRunId")
    assert nested["info"]["status"] == "KILLED"
    assert status_of(shown["mlflow"].replace(nested["info"]["run_id"], parent)) == "KILLED"
