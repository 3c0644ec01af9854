"""What people look at, over HTTP: images, polygons, exports, what an executor takes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segserve import conversion
from segserve.exporters import EXPORTERS, export_all
from tests import modules
from tests.executors import make_shell_executor
from tests.services import Service


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    make_shell_executor(folder / "executor")
    modules.make_module(folder / "module", parameters=modules.EVERY_PARAMETER)
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    (folder / "config").mkdir()
    server = f'[executors]\nsquares = "{folder}/executor"\nevery = {{ref = "{folder}/module", prewarm = false}}\n'
    with Service(folder / "home", folder / "config", server=server) as service:
        yield service


def encoded(image: np.ndarray[Any, Any], suffix: str = ".png") -> bytes:
    return bytes(cv2.imencode(suffix, image)[1])


def dim() -> np.ndarray[Any, Any]:
    """16 bits, of which only the levels 1000 to 1400 are used."""
    return np.linspace(1000, 1400, 40 * 60).reshape(40, 60).astype(np.uint16)


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    large = np.zeros((100, 3000), np.uint8)
    large[:, 1500:] = 200
    sent = [("images", ("dim.png", encoded(dim()))), ("images", ("large.tif", encoded(large, ".tif")))]
    answer = service.http.post("/jobs", data={"executor": "squares", "env": "local", "gpus": "0"}, files=sent)
    assert answer.status_code == 202, answer.text
    done = service.wait(answer.json()["job"])
    assert done["state"] == "succeeded", done
    return str(done["job"])


def test_images_are_stretched_and_bounded(service: Service, job: str) -> None:
    listed = service.http.get(f"/jobs/{job}/images").json()
    assert [(one["name"], one["width"], one["height"], one["objects"]) for one in listed] == [
        ("dim.png", 60, 40, 1),
        ("large.tif", 3000, 100, 1),
    ]
    for _ in range(2):  # drawn, then kept
        answer = service.http.get(f"/jobs/{job}/images/0")
        assert (answer.headers["content-type"], float(answer.headers["x-scale"])) == ("image/png", 1.0)
        shown = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert (shown.dtype, shown.shape) == (np.uint8, (40, 60))
        assert (shown[0, 0], shown[-1, -1]) == (0, 255)
        assert np.all(np.diff(shown.ravel().astype(int)) >= 0)
    answer = service.http.get(f"/jobs/{job}/images/1", params={"size": 300})
    shown = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (shown.shape, float(answer.headers["x-scale"])) == ((10, 300), pytest.approx(0.1))
    assert (shown[5, 100], shown[5, 200]) == (0, 255)
    answer = service.http.get(f"/jobs/{job}/images/1", params={"size": 300, "region": "1450,0,100,50"})
    shown = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (shown.shape, shown[25, 49], shown[25, 50]) == ((50, 100), 0, 255)
    for wrong, status in (
        ("2", 404),
        ("-1", 422),
        ("0?size=1", 422),
        ("0?region=1,2,3", 422),
        ("0?region=70,0,9,9", 404),
    ):
        assert service.http.get(f"/jobs/{job}/images/{wrong}").status_code == status, wrong


def test_polygons_of_one_image(service: Service, job: str) -> None:
    found = service.http.get(f"/jobs/{job}/polygons/1").json()
    assert (found["index"], found["width"], found["height"], found["origin"]) == (1, 3000, 100, "pixel centres")
    assert found["objects"] == [{"label": "Cell", "score": None, "points": [[1, 1], [1, 9], [9, 9], [9, 1]]}]
    assert service.http.get(f"/jobs/{job}/polygons/2").status_code == 404


@pytest.mark.parametrize("target", EXPORTERS)
def test_exports_are_those_of_the_command(
    service: Service, folder: Path, job: str, tmp_path: Path, target: str
) -> None:
    answer = service.http.get(f"/jobs/{job}/exports/{target}")
    assert answer.status_code == 200, answer.text
    own = folder / "home" / "jobs" / job
    loaded = conversion.load(own / "result", staged=own / "inputs.json")
    written = export_all(loaded.results, [target], tmp_path)
    expected = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    if len(written.paths) == 1 and written.paths[0].is_file():
        name = f"{job}-{target}{written.paths[0].suffix}"
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert abs(len(answer.content) - written.paths[0].stat().st_size) < 100  # identifiers and times differ
        return
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(archive.namelist()) == expected
        assert archive.testzip() is None
    assert not list((folder / "home" / "tmp").iterdir())


def test_a_job_without_result_has_nothing_to_show(service: Service) -> None:
    answer = service.http.post(
        "/jobs",
        data={"executor": "squares", "env": "local", "gpus": "0", "parameters": '{"mark": "crash"}'},
        files=[("images", ("a.png", encoded(dim())))],
    )
    done = service.wait(answer.json()["job"])
    assert done["state"] == "failed"
    assert [one["objects"] for one in service.http.get(f"/jobs/{done['job']}/images").json()] == [None]
    for what in ("polygons/0", "exports/coco"):
        answer = service.http.get(f"/jobs/{done['job']}/{what}")
        assert answer.status_code == 502
        assert "the model file is empty" in answer.json()["quote"] + answer.json()["detail"]
    assert service.http.get(f"/jobs/{done['job']}/exports/nothing").status_code == 422


def test_what_an_executor_takes(service: Service, folder: Path) -> None:
    found = service.http.get("/executors/squares").json()
    (entry,) = found["entry_points"]
    assert (entry["name"], entry["takes_images"], entry["produces"]) == ("main", True, "polygons")
    nap, mark = entry["parameters"]
    assert (nap["name"], nap["kind"], nap["default"], nap["required"]) == ("nap", "float", "0", False)
    assert (mark["kind"], mark["many"]) == ("string", False)
    by_ref = service.http.get("/executor", params={"ref": f"{folder}/executor"}).json()
    assert by_ref["entry_points"] == found["entry_points"]
    assert service.http.get("/executors/nothing").status_code == 404
    wrong = service.http.get("/executor", params={"ref": f"{folder}/nothing"})
    assert wrong.status_code in (400, 404), wrong.text
    assert json.loads(wrong.text)["detail"]


def test_a_module_s_parameters_of_all_types(service: Service) -> None:
    found = service.http.get("/executors/every").json()
    assert (found["algorithm_type"], found["tags"]) == ("Image2Segmentation", ["image2segmentation"])
    parameters = {one["type"]: one for one in found["entry_points"][0]["parameters"]}
    assert len(parameters) == 13
    ranged = parameters["float_range"]
    assert (ranged["kind"], ranged["min"], ranged["max"], ranged["step"]) == ("float", 0, 10, 0.1)
    assert parameters["int_enum"]["options"] == ["42", "43", "44"]
    assert parameters["bool_list"]["many"]
    assert parameters["bool"]["description"] == "This parameter bools."
    names = [
        row["name"] for row in service.http.get("/executors", params={"algorithm_type": "Image2Segmentation"}).json()
    ]
    assert names == ["every"]
    assert service.http.get("/executors", params={"tag": ["image2segmentation", "other"]}).json() == []
