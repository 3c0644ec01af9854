"""The chain of docs/antenna.md behind `/process` beside the same two models called in one Python process, in one run.

    python benchmarks/antenna.py [--images 40] [--repeat 3]

Both have the same images (512 × 512, some dozens of shapes), models and packages. The service fetches them over HTTP,
the process reads files. Of both, the first pass is not counted: there, models are loaded. Passes alternate. Printed are
images per second and the ratio of the medians, which is to be 0.7 at least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.antenna_client import AntennaClient
from tests.services import Service
from tests.tls import FileServer

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
[fetch]
allow = ["127.0.0.1"]

[pipelines.shapes]

[[pipelines.shapes.stages]]
executor = "segserve-threshold"
parameters = { invert = "no", split = 0.5 }
batch_size = 2

[[pipelines.shapes.stages]]
executor = "segserve-shapes"
batch_size = 16
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--home", type=Path, help="keep the environments there for the next time")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segserve-bench-") as name:
        scratch = Path(name)
        folder = scratch / "images"
        folder.mkdir()
        for number in range(chosen.images):
            cv2.imwrite(str(folder / f"{number:03d}.png"), picture(number))
        home = chosen.home or scratch / "home"
        home.mkdir(exist_ok=True)
        with Service(home, scratch / "service", server=CONFIG) as service, files(folder) as server:
            python = build(home, scratch)
            client = AntennaClient(service.url)
            client.register()
            urls = {file.name: f"{server.url}/{file.name}" for file in sorted(folder.iterdir())}
            began = time.perf_counter()
            assert not client.process("shapes", urls)["errors"]
            print(f"first request: {time.perf_counter() - began:.1f} s")
            ours, theirs = [], []
            for number in range(chosen.repeat):
                speed, objects = asked(client, urls, number)
                peer, peer_objects = called(python, folder)
                ours.append(speed)
                theirs.append(peer)
                print(f"{speed:.1f} images/s ({objects} objects) · one process {peer:.1f} ({peer_objects})", flush=True)
            ratio = statistics.median(ours) / statistics.median(theirs)
            print("| service | one process | ratio |\n|---:|---:|---:|")
            print(f"| {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio:.2f}× |")


def asked(client: AntennaClient, urls: dict[str, str], number: int) -> tuple[float, int]:
    """Images per second of one request, and how many objects it found. The ids differ, so that it joins no other."""
    began = time.perf_counter()
    found = client.process("shapes", {f"{name} {number}": url for name, url in urls.items()})
    seconds = time.perf_counter() - began
    assert not found["errors"], found["errors"]
    return len(urls) / seconds, len([one for one in found["detections"] if one["bbox"]])


def called(python: str, folder: Path) -> tuple[float, int]:
    """The same of one Python process, in its second pass."""
    words = [python, str(Path(__file__).with_name("antenna_peer.py")), str(ROOT / "executors"), str(folder), "1"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    speed, objects = done.stdout.split()[-2:]
    return float(speed), int(objects)


def build(home: Path, scratch: Path) -> str:
    """Build both environments; the Python of the second, which has the packages of both."""
    config = scratch / "service" / "config.toml"
    variables = {**os.environ, "SEGSERVE_HOME": str(home), "SEGSERVE_CONFIG": str(config)}
    segserve = [sys.executable, "-m", "segserve"]
    subprocess.run([*segserve, "pipelines", "--build", "shapes"], env=variables, check=True, capture_output=True)
    listed = subprocess.run([*segserve, "env", "list", "--json"], env=variables, check=True, capture_output=True)
    for one in json.loads(listed.stdout):
        python = Path(one["location"]) / "bin" / "python"
        if subprocess.run([python, "-c", "import onnxruntime"], capture_output=True).returncode == 0:
            return str(python)
    raise SystemExit("no environment has onnxruntime")


def files(folder: Path) -> FileServer:
    """A web server of the files of a folder."""
    known = {f"/{file.name}": file.read_bytes() for file in folder.iterdir()}
    return FileServer(lambda path, login: (200, {}, known[path]))


def picture(seed: int) -> np.ndarray:
    """Discs and bars on dark ground, 512 × 512."""
    random = np.random.default_rng(seed)
    image = np.full((512, 512), 40, np.uint8)
    for row in range(40, 500, 60):
        for column in range(40, 500, 60):
            if random.random() < 0.5:
                cv2.circle(image, (column, row), int(random.integers(9, 15)), 220, -1)
            else:
                image[row - 4 : row + 4, column - 16 : column + 16] = 190
    noise = random.normal(0, 4, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 0.8) + noise, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
