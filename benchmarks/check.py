"""Static check of a repository with 1,000 files: seconds of the whole command, and where they go.

python benchmarks/check.py [--files 1000] [--profile]

Target: at most 2 s on an idle machine.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.corpus import GOOD
from tests.repositories import make_repository

MODULE = '''\
"""Module {number}."""
import numpy as np


def smooth(image, width={number}):
    """A moving average."""
    kernel = np.ones(width) / width
    return np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same"), 1, image)


class Filter:
    names = ["a", "b", "c"]

    def __call__(self, image):
        if image.ndim == 3:
            return np.stack([smooth(image[..., channel]) for channel in range(image.shape[-1])], axis=-1)
        return smooth(image)
'''


def make(folder: Path, files: int) -> None:
    """The good executor, whose main.py imports a package of `files` modules."""
    imports = "".join(f"from cells.m{number:04d} import smooth\n" for number in range(files))
    tree: dict[str, str | bytes] = {**GOOD, "cells/__init__.py": imports}
    tree["main.py"] = GOOD["main.py"].replace("import mlflow", "import cells\nimport mlflow")
    tree |= {f"cells/m{number:04d}.py": MODULE.format(number=number) for number in range(files)}
    make_repository(folder, tree)


def main() -> None:
    """Print the median of five runs of the command, and with --profile the functions that take most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "executor"
        identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        os.environ.update(identity, SEGSERVE_HOME=str(Path(scratch) / "home"))
        make(folder, options.files)
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "segserve", "check", str(folder)], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        print(f"segserve check, {options.files} modules, all reached: first {seconds[0]:.2f} s (makes the mirror),")
        print(f"then {statistics.median(seconds[1:]):.2f} s (median of 5, {min(seconds[1:]):.2f} best)")
        if options.profile:
            from segserve.cli import main as segserve

            profile = cProfile.Profile()
            profile.runcall(segserve, ["check", str(folder)])
            pstats.Stats(profile).sort_stats("cumulative").print_stats(35)


if __name__ == "__main__":
    main()
