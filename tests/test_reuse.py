"""The same request again gets the earlier result: opt-in, deterministic executors, never across users."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from segserve.layout import Home
from segserve.tokens import Tokens
from tests.repositories import make_repository
from tests.services import Service

PROJECT = """\
name: clock
entry_points:
  main:
    parameters:
      input_images: path
      size: {type: float, default: 5}
      model: {type: path, default: ""}
    command: "sh segment.sh {input_images} {size} {model}"
"""
# Its label is the time: whoever gets the same label has the same output.
SCRIPT = """\
point='[[1, 1], [1, 9], [9, 9]]'
one="[{\\"label\\": \\"$(date +%s%N)\\", \\"type\\": \\"Polygon\\", \\"contour_coordinates\\": $point}]"
for image in "$1"/*.png; do list="$list${list:+, }$one"; done
echo "{\\"model\\": \\"clock\\", \\"format_version\\": \\"0.2\\", \\"segmentation_data\\": [$list]}" > output.json
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuse")
    files = {"MLproject": PROJECT, "segment.sh": SCRIPT}
    make_repository(folder / "clock", {**files, "segserve.toml": "[run]\ndeterministic = true\n"})
    make_repository(folder / "dice", files)
    return folder


@pytest.fixture(scope="module")
def people(folder: Path) -> Iterator[tuple[Service, dict[str, httpx.Client]]]:
    home = Home(folder / "home")
    home.path.mkdir()
    tokens = {name: Tokens(home.tokens).add(name)[1] for name in ("anna", "ben")}
    server = "[repositories]\nallow = []\n[executors]\n"
    server += "".join(f'{name} = {{ref = "{folder}/{name}", prewarm = false}}\n' for name in ("clock", "dice"))
    with Service(home.path, folder / "config", server=server) as service:
        yield service, {name: service.as_(token) for name, token in tokens.items()}


def png(value: int) -> bytes:
    return bytes(cv2.imencode(".png", np.full((40, 60), value, np.uint8))[1])


def ask(
    service: Service, http: httpx.Client, values: tuple[int, ...] = (1, 2), **fields: Any
) -> tuple[dict[str, Any], Any]:
    """What is known of the job, and its output.json."""
    form = {"executor": "clock", "env": "local", "gpus": "0", "reuse": "true", **fields}
    sent = [("images", (f"{fields.get('z', 'a')}{number}.png", png(value))) for number, value in enumerate(values)]
    accepted = http.post("/jobs", data=form, files=sent)
    assert accepted.status_code == 202, accepted.text
    facts = service.wait(accepted.json()["job"], http)
    assert facts["state"] == "succeeded", (facts["error"], facts["quote"])
    return facts, http.get(accepted.json()["result"]).json()


def test_the_same_request_gets_the_earlier_result_and_says_whose(people: Any) -> None:
    service, clients = people
    anna, ben = clients["anna"], clients["ben"]
    first, output = ask(service, anna)
    again, same = ask(service, anna)
    assert again["job"] != first["job"]
    assert (again["reused"], same) == (first["job"], output)
    assert any(first["job"] in warning for warning in again["warnings"])
    assert again["mlflow"] != first["mlflow"]
    listed = {file["name"] for file in anna.get(f"/jobs/{again['job']}/files").json()}
    assert {"output.json", "objects.csv", "segserve.lock", "report/index.html"} <= listed  # a whole result of its own
    assert "Running command" in anna.get(f"/jobs/{first['job']}/log").text
    assert "Running command" not in anna.get(f"/jobs/{again['job']}/log").text  # nothing ran
    third, still = ask(service, anna)
    assert (third["reused"], still) == (first["job"], output)
    # Nobody gets, or learns of, what somebody else has had segmented.
    others, another = ask(service, ben)
    assert (others["reused"], another == output) == ("", False)


def test_what_is_another_request_runs(people: Any) -> None:
    service, clients = people
    anna = clients["anna"]
    _, output = ask(service, anna, (7, 8))
    for values, fields in (
        ((8, 7), {}),  # another order
        ((7, 9), {}),
        ((7, 8), {"parameters": '{"size": 6}'}),
        ((7, 8), {"reuse": "false"}),
    ):
        facts, other = ask(service, anna, values, **fields)
        assert (facts["reused"], other == output) == ("", False), fields
    facts, _ = ask(service, anna, (7, 8), parameters='{"size": "5"}')  # the default, said
    assert facts["reused"]


def test_only_what_declares_itself_deterministic(people: Any) -> None:
    service, clients = people
    for _ in range(2):
        facts, _ = ask(service, clients["anna"], executor="dice")
        assert facts["reused"] == ""


def test_a_result_that_was_removed_is_made_again(people: Any, folder: Path) -> None:
    service, clients = people
    first, _ = ask(service, clients["anna"], (20,))
    (folder / "home" / "jobs" / first["job"] / "result" / "output.json").unlink()
    second, _ = ask(service, clients["anna"], (20,))
    assert second["reused"] == ""
    third, _ = ask(service, clients["anna"], (20,))
    assert third["reused"] == second["job"]
