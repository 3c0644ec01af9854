"""An algorithm module as a service has it, and its result replayed: real environments, real runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands import Command
from tests.modules import make_module
from tests.repositories import git
from tests.services import Service

pytest_plugins = ["tests.command_fixtures"]
pytestmark = pytest.mark.network  # the environment comes from the configured package index


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("module")
    make_module(folder / "threshold", "Image2Segmentation", "t3dserver")
    image = np.zeros((80, 120), np.uint8)
    cv2.circle(image, (30, 40), 12, 180, -1)
    cv2.circle(image, (85, 35), 15, 220, -1)
    cv2.imwrite(str(folder / "cells.png"), image)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    server = f'[executors]\nthreshold = "{folder}/threshold"\n'
    with Service(folder / "home", folder / "config", server=server) as service:
        yield service


def test_a_module_is_served_and_replayed(
    service: Service, folder: Path, segserve: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = service.http.get("/executors", params={"algorithm_type": "Image2Segmentation"}).json()
    assert [row["name"] for row in rows] == ["threshold"]
    sent = [("images", ("cells.png", (folder / "cells.png").read_bytes()))]
    form = {"executor": "threshold", "parameters": '{"thresholding_algorithm": "li"}'}
    accepted = service.http.post("/jobs", data=form, files=sent).json()
    refused = service.http.post("/jobs", data={**form, "parameters": '{"thresholding_algorithm": "best"}'}, files=sent)
    wrong = service.wait(refused.json()["job"])
    assert (wrong["state"], "'best' is none of otsu" in wrong["error"]) == ("failed", True), wrong["error"]
    done = service.wait(accepted["job"])
    assert done["state"] == "succeeded", (done["error"], done["quote"])
    found = service.http.get(f"/jobs/{done['job']}/polygons/0").json()
    assert len(found["objects"]) == 2
    assert "li on" in service.http.get(f"/jobs/{done['job']}/log").text  # what the module itself said

    # The author goes on; the result is made again by the commit that made it.
    (folder / "threshold" / "Runner.py").write_text("raise RuntimeError('of another commit')\n")
    git(folder / "threshold", "commit", "-qam", "second")
    monkeypatch.setenv("SEGSERVE_HOME", str(folder / "home"))
    monkeypatch.chdir(tmp_path)
    replayed = segserve("replay", done["job"], "--images", folder / "cells.png", "--json")
    assert replayed.code == 0, replayed.err
    assert replayed.document["commit"] == done["commit"]
