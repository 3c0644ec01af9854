"""The chain that ships, as Antenna uses it: real environments, a real service, images from a real web server."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segserve.cli.serve import serve_command
from tests.antenna_client import AntennaClient
from tests.services import Service
from tests.tls import Answer, FileServer

pytestmark = pytest.mark.network

DOCUMENT = (Path(__file__).parent.parent / "docs" / "antenna.md").read_text(encoding="utf-8")
# The service is the one of the documentation: its first block is the pipeline.
CONFIG = """
sync_wait_s = 400

[fetch]
allow = ["127.0.0.1"]

[service]
name = "Test bench"

""" + DOCUMENT.partition("```toml\n")[2].partition("```")[0]
CONSOLE = [block.partition("```")[0] for block in DOCUMENT.split("```console\n")[1:]]
BUILD = next(line for line in DOCUMENT.splitlines() if line.startswith("$ segserve pipelines --build"))
DISCS = [(24, 30), (70, 24), (100, 90)]
BARS = [(30, 80), (64, 60)]


def picture(*, empty: bool = False) -> np.ndarray:
    """Discs and bars on dark ground, 128 × 128; or only ground."""
    image = np.full((128, 128), 40, np.uint8)
    if not empty:
        for centre in DISCS:
            cv2.circle(image, centre, 11, 220, -1)
        for column, row in BARS:
            image[row - 4 : row + 4, column - 14 : column + 14] = 190
    noise = np.random.default_rng(1).normal(0, 3, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.8) + noise, 0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", image)
    assert done
    return bytes(data.tobytes())


@pytest.fixture(scope="module")
def images() -> Iterator[str]:
    """A web server with pictures, and with what is none."""
    whole = png(picture())
    known: dict[str, Answer] = {
        "/empty.png": (200, {}, png(picture(empty=True))),
        "/broken.png": (200, {}, whole[: len(whole) // 2]),
        "/text.png": (200, {}, b"this is no picture"),
        "/large.png": (200, {}, b"\x89PNG\r\n\x1a\n" + bytes(1_100_000)),
        "/inside": (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b""),
        "/colour.png": (200, {}, png(cv2.cvtColor(picture(), cv2.COLOR_GRAY2BGR))),
    }

    def answer(path: str, login: str) -> Answer:
        return known.get(path) or ((404, {}, b"") if "gone" in path else (200, {}, whole))

    with FileServer(answer) as server:
        yield server.url


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("antenna")
    (folder / "home").mkdir()
    with Service(folder / "home", folder / "service", server=CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def unprepared(service: Service) -> dict[str, Any]:
    """What the service says before anything is built."""
    client = AntennaClient(service.url)
    client.register()
    return {"ready": client.ready(), "pipelines": client.pipelines, "algorithms": client.algorithms}


@pytest.fixture(scope="module")
def antenna(service: Service, unprepared: dict[str, Any]) -> AntennaClient:
    """A client of a service whose pipeline is ready."""
    config = service.home.parent / "service" / "config.toml"
    variables = {**os.environ, "SEGSERVE_HOME": str(service.home), "SEGSERVE_CONFIG": str(config)}
    words = [sys.executable, "-m", *BUILD.removeprefix("$ ").partition("#")[0].split()]
    subprocess.run(words, env=variables, check=True, capture_output=True, timeout=400)
    client = AntennaClient(service.url)
    client.register()
    deadline = time.monotonic() + 60
    while "shapes" not in client.ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return client


def boxes(found: dict[str, Any], image: str) -> list[tuple[float, ...]]:
    return sorted(
        tuple(one["bbox"][name] for name in ("x1", "y1", "x2", "y2"))
        for one in found["detections"]
        if one["source_image_id"] == image and one["bbox"]
    )


def test_before_anything_is_built(unprepared: dict[str, Any]) -> None:
    assert "shapes" not in unprepared["ready"]
    pipeline = unprepared["pipelines"]["shapes"]
    assert (pipeline["name"], pipeline["version"]) == ("Discs and bars", 1)
    assert [stage["key"] for stage in pipeline["stages"]] == ["threshold", "disc-or-bar"]
    params = [[one["key"] for one in stage["params"]] for stage in pipeline["stages"]]
    assert params == [["min_area", "diameter"], []]
    assert unprepared["algorithms"]["disc-or-bar"]["category_map"]["labels"] == ["bar", "disc"]
    assert "segserve-threshold" in unprepared["pipelines"]  # every registered executor is a pipeline


def test_ten_images_one_of_them_broken(antenna: AntennaClient, images: str) -> None:
    urls = {f"{number}": f"{images}/{number}.png" for number in range(8)}
    urls |= {"broken": f"{images}/broken.png", "empty": f"{images}/empty.png"}
    found = antenna.process("shapes", urls)
    for number in range(8):
        assert len(boxes(found, str(number))) == len(DISCS) + len(BARS), found["errors"]
    first = [one for one in found["detections"] if one["source_image_id"] == "0"]
    discs = {(24, 30), (70, 24), (100, 90)}
    for detection in first:
        box = detection["bbox"]
        centre = ((box["x1"] + box["x2"]) / 2, (box["y1"] + box["y2"]) / 2)
        near_disc = any(abs(centre[0] - x) < 4 and abs(centre[1] - y) < 4 for x, y in discs)
        (said,) = detection["classifications"]
        assert said["classification"] == ("disc" if near_disc else "bar")
        assert said["terminal"]
        assert said["inference_time"] > 0
        assert detection["inference_time"] > 0
        assert max(said["scores"]) == said["scores"][said["labels"].index(said["classification"])]
    (nothing,) = [one for one in found["detections"] if one["source_image_id"] == "empty"]
    assert nothing["bbox"] is None
    assert nothing["classifications"] == []
    (error,) = found["errors"]
    assert error.startswith("image broken: ")
    assert not [one for one in found["detections"] if one["source_image_id"] == "broken"]


def test_the_documented_calls(service: Service, antenna: AntennaClient, images: str) -> None:
    """Every `curl` of docs/antenna.md, as it stands there but for the two addresses."""
    commands = [
        command
        for block in CONSOLE
        for command in block.replace("\\\n", " ").splitlines()
        if command.startswith("$ curl ")
    ]
    ready, processed = (_shell(command.removeprefix("$ "), service.url, images) for command in commands)
    assert "shapes" in ready["status"]
    assert processed["errors"] is None
    assert len(boxes(processed, "1")) == len(DISCS) + len(BARS)
    (start,) = (line for block in CONSOLE for line in block.splitlines() if line.startswith("$ segserve serve"))
    parsed = serve_command.make_context("serve", start.split()[3:])
    assert parsed.params["port"] == 2000


def _shell(command: str, service: str, images: str) -> dict[str, Any]:
    for written, here in (("http://127.0.0.1:2000", service), ("https://example.org", images)):
        command = command.replace(written, here)
    done = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True, timeout=300)
    return dict(json.loads(done.stdout))


# What the page leaves to its reader.
GIVEN = """\
import numpy as np

def find(image):
    rows, columns = np.nonzero(image > 100)
    yield columns.min(), rows.min(), columns.max() + 1, rows.max() + 1

def load():
    return lambda crops: [(float(crop.mean()), 1 - float(crop.mean())) for crop in crops]

def normalised(crop):
    return crop / 255

"""


def test_the_documented_pipeline_in_python(tmp_path: Path) -> None:
    source = GIVEN + DOCUMENT.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "pipeline.py").write_text(source)
    words = [sys.executable, "pipeline.py", "--manifest"]
    manifest = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    (said,) = tomllib.loads(manifest)["pipelines"]
    assert (said["slug"], [one["key"] for one in said["algorithms"]]) == ("shapes-in-python", ["blobs", "kinds"])
    names = runpy.run_path(str(tmp_path / "pipeline.py"))
    image = np.zeros((9, 12), np.uint8)
    image[2:5, 3:10] = 255
    (found,) = names["Shapes"]().run([image])
    (detection,) = found.detections
    assert detection.box[:4] == (3, 2, 10, 5)
    assert list(detection.classifications[0].scores) == [1.0, 0.0]
