"""What happens to requests for pipelines: images that fail, stages that crash, parameters, repetition, reprocessing.

The executors are real and small; the first request builds their environment.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.antenna_client import AntennaClient
from tests.executors import make_shell_executor
from tests.pipelines import make_moody
from tests.services import Service
from tests.tls import Answer, FileServer

pytestmark = pytest.mark.network

CONFIG = """
sync_wait_s = 200

[fetch]
allow = ["127.0.0.1"]
max_mb = 0.5
max_megapixels = 1
timeout_s = 20

[service]
residents = 3

[executors]
moody = "{folder}/moody"
shell = "{folder}/shell"

[pipelines.both]
name = "Find and name"

[[pipelines.both.stages]]
executor = "moody"
key = "finder"
batch_size = 4
config = ["size", "mood", "count", "sure"]
error_name = "MoodyError"

[[pipelines.both.stages]]
executor = "moody"
entry_point = "kinds"
key = "kinds"
classes = ["large", "small"]
batch_size = 2
config = ["limit"]
error_name = "KindsError"
"""


def picture(*, top: int = 200, objects: int = 2, size: int = 64) -> bytes:
    """A PNG with squares: at (10, 20) one of 8 pixels, at (30, 30) one of 20; `top` is the brightest value."""
    image = np.zeros((size, size), np.uint8)
    if objects > 0:
        image[20:28, 10:18] = top
    if objects > 1:
        image[30:50, 30:50] = top
    done, data = cv2.imencode(".png", image)
    assert done
    return bytes(data.tobytes())


@pytest.fixture(scope="module")
def images() -> Iterator[str]:
    known: dict[str, Answer] = {
        "/empty": (200, {}, picture(objects=0)),
        "/raises": (200, {}, picture(top=255)),
        "/crashes": (200, {}, picture(top=254)),
        "/slow": (200, {}, picture(top=253)),
        "/text": (200, {}, b"no picture at all"),
        "/large": (200, {}, b"\x89PNG\r\n\x1a\n" + bytes(600_000)),
        "/wide": (200, {}, picture(size=1100)),
        "/inside": (302, {"Location": "http://169.254.169.254/latest/"}, b""),
        "/gone": (404, {}, b""),
    }

    def answer(path: str, login: str) -> Answer:
        return known.get(path.partition("?")[0], (200, {}, picture()))

    with FileServer(answer) as server:
        yield server.url


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    make_moody(folder / "moody")
    make_shell_executor(folder / "shell", environment=True)
    (folder / "home").mkdir()
    with Service(folder / "home", folder / "service", server=CONFIG.format(folder=folder)) as running:
        yield running


@pytest.fixture(scope="module")
def antenna(service: Service) -> AntennaClient:
    client = AntennaClient(service.url)
    client.register()
    return client


def boxes(found: dict[str, Any], image: str) -> list[tuple[float, ...] | None]:
    own = [one["bbox"] for one in found["detections"] if one["source_image_id"] == image]
    return [box and tuple(box[name] for name in ("x1", "y1", "x2", "y2")) for box in own]


def names(found: dict[str, Any], image: str) -> list[str]:
    own = [one for one in found["detections"] if one["source_image_id"] == image]
    return [said["classification"] for one in own for said in one["classifications"]]


def jobs(service: Service, executor: str) -> list[dict[str, Any]]:
    """Jobs of one executor or pipeline, newest first."""
    return [one for one in service.http.get("/jobs?limit=500").json() if one["executor"] == executor]


SQUARES = [(10, 20, 18, 28), (30, 30, 50, 50)]


def test_images_that_cannot_be_had_cost_no_other(antenna: AntennaClient, images: str) -> None:
    urls = {name: f"{images}/{name}" for name in ("good", "gone", "text", "large", "wide", "inside", "empty", "raises")}
    urls |= {"dead": "http://127.0.0.1:1/a.png", "private": "http://10.0.0.1/a.png", "local": "http://[::1]/"}
    urls |= {"file": "file:///etc/passwd", "crashes": f"{images}/crashes", "last": f"{images}/last"}
    found = antenna.process("both", urls)
    for image in ("good", "last"):
        assert boxes(found, image) == SQUARES
        assert names(found, image) == ["small", "large"]
    assert boxes(found, "empty") == [None]
    errors = {text.split(":")[0].removeprefix("image "): text for text in found["errors"]}
    said = {
        "gone": "404",
        "text": "text file",
        "large": "larger than 0.5 MiB",
        "wide": "1000000 are allowed",
        "inside": "metadata",
        "dead": "nobody listens",
        "private": "private",
        "local": "this machine",
        "file": "https",
        "raises": "MoodyError: ValueError: too bright",
        "crashes": "MoodyError: ",
    }
    for image, text in said.items():
        assert text in errors.pop(image) + " begins with https://", image
        assert boxes(found, image) == []
    assert errors == {}


def test_a_stage_stays_loaded_and_takes_every_parameter(service: Service, antenna: AntennaClient, images: str) -> None:
    antenna.process("both", {"1": f"{images}/first"})
    before = {one["job"] for one in jobs(service, "moody")}
    found = antenna.process("both", {"1": f"{images}/second"}, config={"size": 100, "limit": 500})
    assert boxes(found, "1") == SQUARES[1:]
    assert names(found, "1") == ["small"]
    found = antenna.process("both", {"1": f"{images}/second"}, config={"size": 1000.0, "mood": "bad", "count": 3})
    assert boxes(found, "1") == [None]
    assert antenna.process("both", {"1": f"{images}/third"}, config={"sure": True})["errors"] is None
    assert {one["job"] for one in jobs(service, "moody")} == before
    assert [one["state"] for one in jobs(service, "moody")].count("running") == 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"size": "wide"}, "size"),
        ({"size": -1}, "size"),
        ({"size": 1e9}, "size"),
        ({"mood": "indifferent"}, "mood"),
        ({"count": 1.5}, "count"),
        ({"sure": "maybe"}, "sure"),
        ({"siez": 3}, "Did you mean 'size'"),
        ({"limit": [1]}, "limit"),
        ({"limit": None}, "limit"),
        ({"input_images": "/etc"}, "input_images"),
        ({"mood": 1, "sure": 7, "nonsense": 1}, "nonsense"),
    ],
)
def test_wrong_parameters_are_named(antenna: AntennaClient, images: str, config: dict[str, Any], said: str) -> None:
    answer = antenna.post("both", {"1": f"{images}/a"}, config=config)
    assert answer.status_code == 422
    assert all(name in answer.json()["detail"] for name in (said, *config))


def test_what_is_no_request(antenna: AntennaClient, images: str) -> None:
    unknown = antenna.post("bot", {"1": f"{images}/a"})
    assert unknown.status_code == 422
    assert "'bot'" in unknown.json()["detail"]
    assert "Did you mean 'both'" in unknown.json()["detail"]
    for body in ({}, {"pipeline": "both"}, {"pipeline": "both", "source_images": [{"id": "1"}]}, [], "text"):
        answer = antenna.http.post(f"{antenna.endpoint}/process", json=body, timeout=30)
        assert answer.status_code == 422
        assert isinstance(answer.json()["detail"], str)
    twice = {"pipeline": "both", "source_images": [{"id": "1", "url": f"{images}/{name}"} for name in "ab"]}
    assert antenna.http.post(f"{antenna.endpoint}/process", json=twice, timeout=30).status_code == 422


def test_no_images_are_no_failure(antenna: AntennaClient) -> None:
    assert antenna.process("both", {})["detections"] == []


def test_detections_that_are_there_are_classified_again(antenna: AntennaClient, images: str) -> None:
    def detection(image: str, box: tuple[int, ...] | None, crop: str | None = None) -> dict[str, Any]:
        corners = box and dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))
        source = {"id": image, "url": f"{images}/{'gone' if image == 'gone' else 'a'}"}
        algorithm = {"name": "Finder", "key": "finder"}
        return {"source_image": source, "bbox": corners, "crop_image_url": crop, "algorithm": algorithm}

    given = [
        detection("a", (0, 0, 5, 5)),
        detection("a", (0, 0, 40, 40)),
        detection("a", (500, 500, 510, 510)),
        detection("gone", (1, 1, 3, 3), f"{images}/crop"),
        detection("gone", (1, 1, 3, 3)),
    ]
    urls = {"a": f"{images}/a", "gone": f"{images}/gone", "new": f"{images}/new"}
    found = antenna.process("both", urls, detections=given)
    assert boxes(found, "a")[:2] == [(0, 0, 5, 5), (0, 0, 40, 40)]
    assert names(found, "a") == ["small", "large"]
    assert (boxes(found, "gone"), names(found, "gone")) == ([(1, 1, 3, 3)], ["large"])
    assert boxes(found, "new") == SQUARES  # nobody has looked at this one
    assert len(found["errors"]) == 2
    assert any("outside" in text for text in found["errors"])


def test_a_pipeline_in_python(antenna: AntennaClient, images: str) -> None:
    declared = antenna.pipelines["moody-python"]
    assert [one["key"] for one in declared["algorithms"]] == ["moody-finder", "moody-kinds"]
    assert [one["key"] for one in declared["stages"][0]["params"]] == ["size"]
    urls = {name: f"{images}/{name}" for name in ("good", "raises", "empty", "gone", "more")}
    found = antenna.process("moody-python", urls)
    for image in ("good", "more"):
        assert boxes(found, image) == SQUARES
        assert names(found, image) == ["small", "large"]
    assert boxes(found, "empty") == [None]
    assert sorted(text.partition(": ")[0] for text in found["errors"]) == ["image gone", "image raises"]
    assert any("LocalizationError: ValueError: too bright" in text for text in found["errors"])
    assert boxes(antenna.process("moody-python", {"1": f"{images}/1"}, config={"size": 100}), "1") == SQUARES[1:]
    known = {"source_image": {"id": "1", "url": f"{images}/1"}, "bbox": {"x1": 0, "y1": 0, "x2": 4, "y2": 4}}
    again = {**known, "algorithm": {"name": "Finder", "key": "moody-finder"}}
    found = antenna.process("moody-python", {"1": f"{images}/1"}, detections=[again])
    assert (boxes(found, "1"), names(found, "1")) == ([(0, 0, 4, 4)], ["small"])


def test_an_executor_that_knows_nothing_of_this(service: Service, antenna: AntennaClient, images: str) -> None:
    found = antenna.process("shell", {str(number): f"{images}/{number}" for number in range(3)})
    assert [boxes(found, str(number)) for number in range(3)] == [[(1, 1, 10, 10)]] * 3
    assert found["errors"] is None
    assert len(jobs(service, "shell")) == 2  # the request, and one job for all its images


def test_the_same_request_joins(service: Service, antenna: AntennaClient, images: str) -> None:
    before = len(jobs(service, "both"))
    urls = {"1": f"{images}/slow?joined"}
    body = {"pipeline": "both", "source_images": [{"id": "1", "url": urls["1"]}], "config": None}
    with pytest.raises(httpx.ReadTimeout):  # the client gives up, the job goes on
        antenna.http.post(f"{antenna.endpoint}/process", json=body, timeout=0.3)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: antenna.post("both", urls), range(3)))
    assert [boxes(one.json(), "1") for one in found] == [SQUARES] * 3
    assert len(jobs(service, "both")) == before + 1


def test_a_killed_worker_costs_time_alone(service: Service, antenna: AntennaClient, images: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(antenna.process, "both", {"1": f"{images}/slow?killed"})
        deadline = time.monotonic() + 60
        while not (owner := _owner(service)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(owner, signal.SIGKILL)
        assert boxes(waiting.result(), "1") == SQUARES


def _owner(service: Service) -> int:
    """The worker that runs a request for the pipeline."""
    with sqlite3.connect(service.home / "segserve.db") as journal:
        query = "SELECT json_extract(owner, '$.pid') FROM jobs WHERE lane = 'pipeline both' AND state = 'running'"
        row = journal.execute(query).fetchone()
    return int(row[0]) if row and row[0] else 0


def test_a_cancelled_request(service: Service, antenna: AntennaClient, images: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(antenna.post, "both", {"1": f"{images}/slow?cancelled"})
        deadline = time.monotonic() + 60
        while jobs(service, "both")[0]["state"] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        service.http.delete(f"/jobs/{jobs(service, 'both')[0]['job']}")
        answer = waiting.result()
    assert (answer.status_code, "cancelled" in answer.json()["detail"]) == (502, True)
    assert boxes(antenna.process("both", {"1": f"{images}/after"}), "1") == SQUARES


def test_no_more_pipelines_are_loaded_than_allowed(service: Service, antenna: AntennaClient, images: str) -> None:
    for slug in ("both", "moody", "moody-python", "shell"):  # one more than `residents`
        antenna.process(slug, {"1": f"{images}/{slug}"})
    deadline = time.monotonic() + 60
    while len([one for one in jobs(service, "moody") if one["state"] == "running"]) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_stages_that_nobody_asks_for_end(tmp_path: Path, images: str) -> None:
    make_moody(tmp_path / "moody")
    make_shell_executor(tmp_path / "shell", environment=True)
    (tmp_path / "home").mkdir()
    config = CONFIG.format(folder=tmp_path).replace("[service]", "[service]\nidle_s = 2", 1)
    with Service(tmp_path / "home", tmp_path / "service", server=config) as impatient:
        client = AntennaClient(impatient.url)
        client.register()
        assert boxes(client.process("moody", {"1": f"{images}/a"}), "1") == SQUARES
        deadline = time.monotonic() + 90
        while any(one["state"] == "running" for one in jobs(impatient, "moody")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert boxes(client.process("moody", {"1": f"{images}/b"}), "1") == SQUARES  # they start again
