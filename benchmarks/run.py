"""`segserve run` beside `mlflow run --env-manager local`, in one run, on the same repository and images.

    python benchmarks/run.py [--quick] [--repeat N]

The peer is what a person without segserve would type: MLflow's own launcher, its default sqlite store, a prepared
environment. segserve's tracking server is warm, as for a user's second command. Wall seconds are medians of alternating
runs; the ratio is segserve / mlflow. At 256 images the extra per image is set against writing one overlay.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.executors import PYTHON_ENV, make_executor
from tests.repositories import git

SHAPE = (512, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, 1 and 16 images only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segserve-bench-") as scratch:
        bench = Bench(Path(scratch))
        repeat = 2 if arguments.quick else arguments.repeat
        print("| images | mlflow run (s) | segserve run (s) | ratio |\n|---:|---:|---:|---:|")
        walls = {}
        for count in (1, 16) if arguments.quick else (1, 16, 256):
            walls[count] = bench.compare(count, repeat)
            peer, ours = walls[count]
            print(f"| {count} | {peer:.2f} | {ours:.2f} | {ours / peer:.2f}× |", flush=True)
        if 256 in walls:
            extra = (walls[256][1] - walls[1][1]) / 255
            overlay = seconds_of_one_overlay(bench.images(1))
            print(f"\nextra per image at 256: {extra * 1e3:.1f} ms; writing one overlay: {overlay * 1e3:.1f} ms; "
                  f"ratio {extra / overlay:.2f}×")  # fmt: skip
        bench.close()


class Bench:
    """One executor, one home, image folders by count."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.repository = scratch / "executor"
        # The whole mlflow: its sqlite store, which the peer uses, is not in mlflow-skinny.
        make_executor(self.repository, python_env=PYTHON_ENV.replace("mlflow-skinny", "mlflow"))
        git(self.repository, "remote", "add", "origin", "https://example.org/executor.git")  # executors ask for it
        self.environment = {**os.environ, "SEGSERVE_HOME": str(scratch / "home")}
        self.segserve = [sys.executable, "-m", "segserve"]
        self.number = 0
        self.ours(1)  # builds the environment, starts the tracking server

    def images(self, count: int) -> Path:
        folder = self.scratch / f"images-{count}"
        if not folder.exists():
            folder.mkdir()
            noise = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
            for index in range(count):
                cv2.imwrite(str(folder / f"cells{index:04d}.png"), np.roll(noise, index))
        return folder

    def ours(self, count: int) -> float:
        self.number += 1
        target = self.scratch / f"result-{self.number}"
        words = ["run", str(self.repository), str(self.images(count)), "-q", "--gpus", "none", "-o", str(target)]
        seconds = timed(lambda: self.call([*self.segserve, *words]))
        shutil.rmtree(target)
        return seconds

    def peer(self, count: int) -> float:
        """On the repository in place; MLflow's default store is a new sqlite file in a folder of each run."""
        self.number += 1
        work = self.scratch / f"mlflow-{self.number}"
        work.mkdir()
        python = next((self.scratch / "home" / "envs").glob("*/*/prefix/bin/python"))
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        mlflow = [sys.executable, "-m", "mlflow", "run", str(self.repository), "--env-manager", "local"]
        words = [*mlflow, "-P", f"input_images={self.images(count)}"]
        seconds = timed(lambda: self.call(words, cwd=work, env={**os.environ, "PATH": path}))
        shutil.rmtree(work)
        return seconds

    def call(self, words: list[str], **options: object) -> None:
        options.setdefault("env", self.environment)
        done = subprocess.run(words, capture_output=True, text=True, check=False, **options)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)}\n{done.stdout}\n{done.stderr}")

    def compare(self, count: int, repeat: int) -> tuple[float, float]:
        pairs = [(self.peer(count), self.ours(count)) for _ in range(repeat)]
        return statistics.median(p for p, _ in pairs), statistics.median(o for _, o in pairs)

    def close(self) -> None:
        subprocess.run([*self.segserve, "ui", "--stop"], env=self.environment, capture_output=True, check=False)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def seconds_of_one_overlay(images: Path) -> float:
    """Read one staged image, stretch it, draw one ring, write a PNG: the work of one overlay, nothing else."""
    source = next(images.glob("*.png"))
    ring = np.array([[10, 10], [10, 100], [100, 100], [100, 10]], np.int32)

    def overlay() -> None:
        image = cv2.imread(str(source), cv2.IMREAD_UNCHANGED)
        low, high = np.percentile(image, (1, 99.8))
        grey = np.clip((image - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
        colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
        cv2.polylines(colour, [ring], isClosed=True, color=(0, 255, 0), thickness=1, lineType=cv2.LINE_AA)
        cv2.imwrite(str(source.with_suffix(".overlay.png")), colour)

    seconds = statistics.median(timed(overlay) for _ in range(9))
    source.with_suffix(".overlay.png").unlink()
    return seconds


if __name__ == "__main__":
    main()
